//! What a striped replica's engines are asked in place of one, and one answer made of theirs.
//!
//! Decides: who is asked what, and what several answers come to.
//! Invariants: the answer is, byte for byte, what one engine with the whole replica would give, so
//! that replicas compare equal however they are striped; it comes when all parts have answered, and
//! is an error when any failed. What is not acknowledged may have taken effect on some of the parts.

use bytes::{Bytes, BytesMut};
use engine::api::{OpError, Outcome, Request};
use format::{
    data::{Change, UnitMeta},
    replica::{Part, PartRecord, ReplicaRecord},
};
use model::{
    limits::RESYNC_UNIT_BYTES,
    units::{BLOCK, ByteCount},
};

use crate::{image::checksums_match, lock::Range, place::Place, stripe::Stripe};

const UNIT_BYTES: u64 = RESYNC_UNIT_BYTES as u64;

/// Requests of the parts by their index.
pub type Asked = Vec<(usize, Request)>;

/// What the answers of the parts are to become.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Done,
    Read,
    Units,
    Digest,
    /// One bit for each so many bytes of the range.
    Bitmap {
        range: Range,
        cell: u64,
    },
    Newer {
        range: Range,
    },
    /// As `Bitmap`, of blocks.
    Changed {
        range: Range,
    },
    Layers,
    End,
}

/// Waits for the answers of the parts.
#[derive(Debug)]
pub struct Join {
    stripe: Stripe,
    answer: Answer,
    /// Of each request, in the order asked: its part and what was answered.
    answers: Vec<(usize, Option<Result<Outcome, OpError>>)>,
    waits: usize,
}

/// What to ask the parts for a request of the replica that lies at `place`.
pub fn split(place: &Place, request: Request) -> Result<(Join, Asked), OpError> {
    let stripe = place.stripe();
    let parts = 0..place.drives().len();
    let (answer, asked): (Answer, Asked) = match request {
        Request::CreateReplica { replica, size, meta } => {
            let part = |index| {
                let (size, meta) = stored(place, index, size, &meta);
                (index, Request::CreateReplica { replica, size, meta })
            };
            (Answer::Done, parts.map(part).collect())
        }
        Request::SetReplicaMeta { replica, size, meta } => {
            let part = |index| {
                let (size, meta) = stored(place, index, size, &meta);
                (index, Request::SetReplicaMeta { replica, size, meta })
            };
            (Answer::Done, parts.map(part).collect())
        }
        // A part takes a freeze in its place among the changes, so all parts are cut alike.
        Request::RemoveReplica { .. }
        | Request::Withdraw { .. }
        | Request::Freeze { .. }
        | Request::Release { .. } => {
            (Answer::Done, parts.map(|index| (index, request.clone())).collect())
        }
        Request::HighestAllocated { .. } => {
            (Answer::End, parts.map(|index| (index, request.clone())).collect())
        }
        Request::Change { replica, mod_seq, offset, change } => {
            let pieces = changes(stripe, offset, change)?;
            let piece = |(index, offset, change)| {
                (index, Request::Change { replica, mod_seq, offset, change })
            };
            (Answer::Done, pieces.into_iter().map(piece).collect())
        }
        Request::Install { replica, units, data } => {
            let piece = |(index, units, data)| (index, Request::Install { replica, units, data });
            (Answer::Done, installs(stripe, units, &data)?.into_iter().map(piece).collect())
        }
        Request::Read { replica, offset, length } => {
            let read = |offset, length| Request::Read { replica, offset, length };
            (Answer::Read, reads(stripe, range(offset, u64::from(length))?, read))
        }
        Request::ReadStream { replica, offset, length } => {
            let read = |offset, length| Request::ReadStream { replica, offset, length };
            (Answer::Read, reads(stripe, range(offset, u64::from(length))?, read))
        }
        Request::ReadLayer { replica, layer, offset, length } => {
            let read = |offset, length| Request::ReadLayer { replica, layer, offset, length };
            (Answer::Read, reads(stripe, range(offset, u64::from(length))?, read))
        }
        Request::Layers { .. } => {
            (Answer::Layers, parts.map(|index| (index, request.clone())).collect())
        }
        Request::AllocatedIn { replica, layer, offset, length } => {
            let range = range(offset, length)?;
            let ask = |offset, length| Request::AllocatedIn { replica, layer, offset, length };
            let runs = runs(stripe, parts, range);
            let asked = runs.map(|(i, r)| (i, ask(r.start, r.length()))).collect();
            (Answer::Bitmap { range, cell: BLOCK }, asked)
        }
        Request::ChangedBetween { replica, from, to, offset, length } => {
            let range = range(offset, length)?;
            let ask =
                |offset, length| Request::ChangedBetween { replica, from, to, offset, length };
            let runs = runs(stripe, parts, range);
            (Answer::Changed { range }, runs.map(|(i, r)| (i, ask(r.start, r.length()))).collect())
        }
        Request::Describe { replica, offset, length } => {
            let runs = runs(stripe, parts, range(offset, length)?);
            let ask = |offset, length| Request::Describe { replica, offset, length };
            (Answer::Units, runs.map(|(i, r)| (i, ask(r.start, r.length()))).collect())
        }
        Request::Digest { replica, offset, length } => {
            let runs = runs(stripe, parts, range(offset, length)?);
            let ask = |offset, length| Request::Describe { replica, offset, length };
            (Answer::Digest, runs.map(|(i, r)| (i, ask(r.start, r.length()))).collect())
        }
        Request::Allocated { replica, offset, length } => {
            let range = range(offset, length)?;
            let ask = |offset, length| Request::Allocated { replica, offset, length };
            let runs = runs(stripe, parts, range);
            let asked = runs.map(|(i, r)| (i, ask(r.start, r.length()))).collect();
            (Answer::Bitmap { range, cell: BLOCK }, asked)
        }
        Request::ChangedSince { replica, mod_seq, offset, length } => {
            let range = range(offset, length)?;
            let ask = |offset, length| Request::ChangedSince { replica, mod_seq, offset, length };
            let runs = runs(stripe, parts, range);
            (Answer::Newer { range }, runs.map(|(i, r)| (i, ask(r.start, r.length()))).collect())
        }
    };
    let answers: Vec<_> = asked.iter().map(|(part, _)| (*part, None)).collect();
    Ok((Join { stripe, answer, waits: answers.len(), answers }, asked))
}

fn range(offset: u64, length: u64) -> Result<Range, OpError> {
    let end = offset.checked_add(length).ok_or(OpError::OutOfRange)?;
    Ok(Range { start: offset, end })
}

fn runs(
    stripe: Stripe,
    parts: std::ops::Range<usize>,
    range: Range,
) -> impl Iterator<Item = (usize, Range)> {
    parts.filter_map(move |part| Some((part, stripe.of_part(part, range)?)))
}

/// Size and record of a part.
fn stored(place: &Place, part: usize, size: ByteCount, record: &[u8]) -> (ByteCount, Bytes) {
    let of = place.striped().expect("only what is striped has parts");
    let record = ReplicaRecord::decode(record).expect("the replica encoded it");
    let index = u32::try_from(part).expect("a handful");
    let serial = place.serial;
    let whole = PartRecord { part: Part { index, of, size, serial }, record };
    (ByteCount::new(place.stripe().part_size(part, size.get())), whole.encode())
}

/// A change in pieces: the part, the offset there, and the change.
fn changes(
    stripe: Stripe,
    offset: u64,
    change: Change,
) -> Result<Vec<(usize, u64, Change)>, OpError> {
    let range = range(offset, u64::from(change.length()))?;
    let pieces = stripe.pieces(range);
    let Change::Write { crcs, data } = change else {
        let zero = |(index, piece): (usize, Range)| {
            let length = u32::try_from(piece.length()).expect("of a length that is u32");
            (index, stripe.to_part(piece.start).1, Change::Zero { length })
        };
        return Ok(pieces.map(zero).collect());
    };
    // None of a change with a wrong checksum takes effect.
    if !checksums_match(&crcs, &data) {
        return Err(OpError::BadChecksum);
    }
    let at = |byte: u64| usize::try_from(byte - offset).expect("within the payload");
    let blocks =
        |byte: u64| usize::try_from((byte - offset) / BLOCK).expect("as many as checksums");
    let write = |(index, piece): (usize, Range)| {
        let crcs = crcs[blocks(piece.start)..blocks(piece.end)].to_vec();
        let data = data.slice(at(piece.start)..at(piece.end));
        (index, stripe.to_part(piece.start).1, Change::Write { crcs, data })
    };
    Ok(pieces.map(write).collect())
}

type Installation = (usize, Vec<UnitMeta>, Bytes);

/// An image in runs of units that lie on one part.
fn installs(
    stripe: Stripe,
    units: Vec<UnitMeta>,
    data: &Bytes,
) -> Result<Vec<Installation>, OpError> {
    let block = usize::try_from(BLOCK).expect("small");
    let blocks: usize = units.iter().map(|u| u.crcs.len()).sum();
    if blocks * block != data.len() {
        return Err(OpError::BadChecksum);
    }
    let mut pieces: Vec<Installation> = Vec::new();
    let mut done = 0;
    for mut unit in units {
        let (part, offset) = stripe.to_part(unit.offset);
        unit.offset = offset;
        let (start, end) = (done, done + unit.crcs.len() * block);
        done = end;
        match pieces.last_mut() {
            Some((index, units, content)) if *index == part => {
                units.push(unit);
                let begin = start - content.len();
                *content = data.slice(begin..end);
            }
            _ => pieces.push((part, vec![unit], data.slice(start..end))),
        }
    }
    Ok(pieces)
}

impl Join {
    /// The request of this number has been answered.
    pub fn take(&mut self, number: usize, outcome: Result<Outcome, OpError>) {
        let slot = &mut self.answers[number].1;
        assert!(slot.is_none(), "an engine answers each request once");
        *slot = Some(outcome);
        self.waits -= 1;
    }

    pub fn is_complete(&self) -> bool {
        self.waits == 0
    }

    /// One answer of all; the worst, if any is an error.
    pub fn answer(self) -> Result<Outcome, OpError> {
        let Self { stripe, answer, answers, .. } = self;
        let mut outcomes = Vec::with_capacity(answers.len());
        let mut worst: Option<OpError> = None;
        for (part, outcome) in answers {
            match outcome.expect("the caller knows that it is complete") {
                Ok(outcome) => outcomes.push((part, outcome)),
                Err(error) => {
                    let error = match error {
                        OpError::BadBlock { offset } => {
                            OpError::BadBlock { offset: stripe.to_whole(part, offset) }
                        }
                        other => other,
                    };
                    if worst.as_ref().is_none_or(|known| weight(&error) < weight(known)) {
                        worst = Some(error);
                    }
                }
            }
        }
        match worst {
            Some(error) => Err(error),
            None => Ok(joined(stripe, answer, outcomes)),
        }
    }
}

/// The pieces of a range, each as a read of its part, by offset and length there.
fn reads(
    stripe: Stripe,
    range: Range,
    read: impl Fn(u64, u32) -> Request,
) -> Vec<(usize, Request)> {
    let piece = |(index, piece): (usize, Range)| {
        let (_, offset) = stripe.to_part(piece.start);
        (index, read(offset, u32::try_from(piece.length()).expect("of a length that is u32")))
    };
    stripe.pieces(range).map(piece).collect()
}

/// The lowest counts: what ends the replica before what ends the request, the first block before
/// the later ones.
fn weight(error: &OpError) -> (u8, u64) {
    match error {
        OpError::DriveFailed => (0, 0),
        OpError::UnknownReplica => (1, 0),
        OpError::Full
        | OpError::Memory { .. }
        | OpError::Layers { .. }
        | OpError::NoLayers
        | OpError::UnknownLayer
        | OpError::Released => (2, 0),
        OpError::OutOfRange | OpError::BadChecksum => (3, 0),
        OpError::Withdrawn => (4, 0),
        OpError::BadBlock { offset } => (5, *offset),
    }
}

fn joined(stripe: Stripe, answer: Answer, outcomes: Vec<(usize, Outcome)>) -> Outcome {
    match answer {
        Answer::Done => Outcome::Done,
        Answer::Read => read(outcomes),
        Answer::Units => Outcome::Described { units: units(stripe, outcomes) },
        Answer::Digest => {
            let units = units(stripe, outcomes);
            let digest = units.iter().fold(0, |digest, unit| unit.fold_into(digest));
            Outcome::Digest { digest }
        }
        Answer::Bitmap { range, cell } => {
            Outcome::Allocated { bitmap: bitmap(stripe, (range, cell), outcomes) }
        }
        Answer::Newer { range } => {
            Outcome::ChangedSince { bitmap: bitmap(stripe, (range, UNIT_BYTES), outcomes) }
        }
        Answer::Changed { range } => {
            Outcome::ChangedBetween { bitmap: bitmap(stripe, (range, BLOCK), outcomes) }
        }
        Answer::Layers => {
            // One that not all parts have is of a freeze or a release that is not done.
            let mut all = outcomes.into_iter().map(|(_, outcome)| match outcome {
                Outcome::Layers { layers } => layers,
                other => unexpected(&other),
            });
            let mut layers = all.next().unwrap_or_default();
            all.for_each(|some| layers.retain(|layer| some.contains(layer)));
            Outcome::Layers { layers }
        }
        Answer::End => {
            let end = |(part, outcome)| match outcome {
                Outcome::HighestAllocated { end: 0 } => 0,
                Outcome::HighestAllocated { end } => stripe.to_whole(part, end - BLOCK) + BLOCK,
                other => unexpected(&other),
            };
            let end = outcomes.into_iter().map(end).max().unwrap_or(0);
            Outcome::HighestAllocated { end }
        }
    }
}

fn unexpected(outcome: &Outcome) -> ! {
    unreachable!("an engine answers what it was asked, not {outcome:?}")
}

/// The pieces in order. One is passed on as it is.
fn read(mut outcomes: Vec<(usize, Outcome)>) -> Outcome {
    if outcomes.len() == 1 {
        return outcomes.remove(0).1;
    }
    let (mut all_crcs, mut all_data) = (Vec::new(), BytesMut::new());
    for (_, outcome) in outcomes {
        let Outcome::Read { crcs, data } = outcome else { unexpected(&outcome) };
        all_crcs.extend(crcs);
        all_data.extend_from_slice(&data);
    }
    Outcome::Read { crcs: all_crcs, data: all_data.freeze() }
}

fn units(stripe: Stripe, outcomes: Vec<(usize, Outcome)>) -> Vec<UnitMeta> {
    let mut all = Vec::new();
    for (part, outcome) in outcomes {
        let Outcome::Described { units } = outcome else { unexpected(&outcome) };
        all.extend(units.into_iter().map(|unit| {
            let offset = stripe.to_whole(part, unit.offset);
            UnitMeta { offset, ..unit }
        }));
    }
    all.sort_by_key(|unit| unit.offset);
    all
}

/// One bit for each cell of the range, taken from those of the parts.
fn bitmap(stripe: Stripe, (range, cell): (Range, u64), outcomes: Vec<(usize, Outcome)>) -> Bytes {
    let small = |number: u64| usize::try_from(number).expect("replicas are bounded");
    let of_parts: Vec<(usize, Bytes)> = outcomes
        .into_iter()
        .map(|(part, outcome)| match outcome {
            Outcome::Allocated { bitmap }
            | Outcome::ChangedSince { bitmap }
            | Outcome::ChangedBetween { bitmap } => (part, bitmap),
            other => unexpected(&other),
        })
        .collect();
    let first = range.start / cell;
    let cells = if range.start < range.end { range.end.div_ceil(cell) - first } else { 0 };
    let mut all = vec![0_u8; small(cells.div_ceil(8))];
    for (part, bits) in of_parts {
        let Some(run) = stripe.of_part(part, range) else { continue };
        for index in run.start / cell..run.end.div_ceil(cell) {
            let own = small(index - run.start / cell);
            if bits[own / 8] >> (own % 8) & 1 == 1 {
                let whole = small(stripe.to_whole(part, index * cell) / cell - first);
                all[whole / 8] |= 1 << (whole % 8);
            }
        }
    }
    Bytes::from(all)
}
