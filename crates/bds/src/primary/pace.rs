//! Which member makes all others wait.
//!
//! Decides: whether one of the in-sync set, the primary itself among them, takes so much longer than all
//! others for the same changes that guests should not wait for it any more.
//! Does not: do anything about it. The manager hears of it, and knows whether another place is better.
//! Invariants: members are compared over the same time and the same changes; one slow moment, or a
//! handful of changes, says nothing.

use std::{collections::BTreeMap, time::Duration};

use format::ctl::ToManager;
use model::{id::ReplicaId, time::Instant, volume::Media};

use crate::turn::Turn;

use super::Primary;

/// Latencies are compared over such a time.
const WINDOW: Duration = Duration::from_millis(500);
/// In so many of them in a row the same member must be slow.
const WINDOWS: u32 = 4;
/// A window goes on for so long at most when too little is done in it to tell.
const LONGEST: Duration = Duration::from_secs(2);
/// So many changes of each member tell something.
const CHANGES_MIN: u32 = 8;

/// What is slow, beside the next slowest.
#[derive(Debug, Clone, Copy)]
struct Bar {
    /// In steps of [`step_of`].
    steps_apart: usize,
    /// Below that guests do not suffer.
    floor: Duration,
}

impl Bar {
    fn of(media: Media) -> Self {
        match media {
            // Five times as long.
            Media::Ssd => Self { steps_apart: 9, floor: Duration::from_millis(4) },
            // Sixty-four times: a hard disk that is read, by guests or for a fill, writes late, and its
            // mirror is not read. That is no fault of its own, and would be the same elsewhere.
            Media::Hdd => Self { steps_apart: 24, floor: Duration::from_millis(250) },
        }
    }
}

/// Of 400 Mbit/s.
const NANOS_PER_BYTE: u64 = 20;

const STEPS_PER_OCTAVE: usize = 4;
/// Up to 2^24 microseconds.
const STEPS: usize = 24 * STEPS_PER_OCTAVE;

/// Logarithmic: four steps for each factor of two.
fn step_of(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
    let octave = micros.ilog2() as usize;
    let quarter = if octave < 2 { 0 } else { (micros >> (octave - 2)) as usize & 3 };
    (octave * STEPS_PER_OCTAVE + quarter).min(STEPS - 1)
}

/// The shortest latency of a step.
fn micros_of(step: usize) -> u64 {
    let (octave, quarter) = (step / STEPS_PER_OCTAVE, step as u64 % 4);
    if octave < 2 { 1 << octave } else { (4 + quarter) << (octave - 2) }
}

/// How long the changes of one window took one member.
#[derive(Debug)]
struct Tally {
    counts: [u16; STEPS],
    count: u32,
}

impl Tally {
    fn add(&mut self, latency: Duration) {
        let count = &mut self.counts[step_of(latency)];
        *count = count.saturating_add(1);
        self.count += 1;
    }

    fn median(&self) -> Option<usize> {
        if self.count < CHANGES_MIN {
            return None;
        }
        let mut seen = 0;
        self.counts.iter().position(|&count| {
            seen += u32::from(count);
            2 * seen >= self.count
        })
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self { counts: [0; STEPS], count: 0 }
    }
}

/// Empty, and without memory of its own, while nothing is written.
#[derive(Debug, Default)]
pub struct Pace {
    since: Option<Instant>,
    /// By member; the primary's own engine is one.
    tallies: BTreeMap<ReplicaId, Tally>,
    streak: Option<Streak>,
    /// The lowest median of each member so far: one that is far away, and was never faster, is not slow.
    best: BTreeMap<ReplicaId, usize>,
}

/// Who was slow in the last windows, and in how many of them in a row.
#[derive(Debug, Clone, Copy)]
struct Streak {
    member: ReplicaId,
    windows: u32,
}

/// Who is slow, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slow {
    member: ReplicaId,
    takes: u64,
    others_take: u64,
}

impl Pace {
    /// A change of so many bytes took that long. What a slow network takes for the bytes does not count.
    pub fn took(&mut self, now: Instant, member: ReplicaId, (latency, bytes): (Duration, u64)) {
        // After a time without writes nothing that was seen before it says anything.
        if self.since.is_some_and(|since| now.since(since) > 2 * LONGEST) {
            (self.since, self.streak) = (None, None);
            self.tallies.clear();
        }
        self.since.get_or_insert(now);
        let latency = latency.saturating_sub(Duration::from_nanos(bytes * NANOS_PER_BYTE));
        self.tallies.entry(member).or_default().add(latency);
    }

    /// Another configuration: what members of it could do before still counts.
    pub fn forget(&mut self, goes_on: impl Fn(ReplicaId) -> bool) {
        (self.since, self.streak) = (None, None);
        self.tallies.clear();
        self.best.retain(|member, _| goes_on(*member));
    }

    fn is_over(&mut self, now: Instant) -> bool {
        now.since(*self.since.get_or_insert(now)) >= WINDOW
    }

    /// Ends the window; whoever has been slow for long enough. `stuck`: who alone has not done for so long
    /// what all others have.
    fn end(
        &mut self,
        now: Instant,
        members: &[ReplicaId],
        stuck: Option<(ReplicaId, Duration)>,
        bar: Bar,
    ) -> Option<Slow> {
        let stuck = stuck.filter(|(_, age)| *age >= 4 * bar.floor).map(|(member, age)| Slow {
            member,
            takes: u64::try_from(age.as_micros()).unwrap_or(u64::MAX),
            others_take: self.tallies.values().filter_map(Tally::median).min().map_or(0, micros_of),
        });
        let seen = stuck.map(Some).or_else(|| self.slowest(members, bar));
        // Where too little was done to tell, the window goes on for a while.
        if seen.is_none() && self.since.is_some_and(|since| now.since(since) < LONGEST) {
            return None;
        }
        self.since = Some(now);
        self.tallies.clear();
        let before = self.streak.take();
        let slow = seen??;
        let windows = before.filter(|s| s.member == slow.member).map_or(1, |s| s.windows + 1);
        self.streak = Some(Streak { member: slow.member, windows });
        (windows >= WINDOWS).then_some(slow)
    }

    /// Nothing: it cannot be told. No member: none is slow.
    fn slowest(&mut self, members: &[ReplicaId], bar: Bar) -> Option<Option<Slow>> {
        let median = |member| Some((self.tallies.get(member)?.median()?, *member));
        let mut medians: Vec<_> = members.iter().map(median).collect::<Option<_>>()?;
        for &(step, member) in &medians {
            let best = self.best.entry(member).or_insert(step);
            *best = (*best).min(step);
        }
        medians.sort_unstable();
        let &[.., (others, _), (step, member)] = medians.as_slice() else { return None };
        let before = self.best[&member];
        let is_slow = step >= others.max(before) + bar.steps_apart && step >= step_of(bar.floor);
        let slow = Slow { member, takes: micros_of(step), others_take: micros_of(others) };
        Some(is_slow.then_some(slow))
    }
}

impl Primary {
    /// Looks at a window that is over, and tells the manager who is slow.
    pub(super) fn watch_pace(&mut self, turn: &mut Turn<'_>) {
        // Where space is short, changes wait for it, and that is another matter.
        if self.is_full(turn) || self.is_deposed() {
            return self.pace.forget(|_| true);
        }
        if !self.pace.is_over(turn.now) {
            return;
        }
        let members: Vec<ReplicaId> = self.config.in_sync().map(|m| m.replica).collect();
        let (stuck, bar) = (self.stuck_at(turn, &members), Bar::of(self.config.media));
        if let Some(Slow { member, takes, others_take }) =
            self.pace.end(turn.now, &members, stuck, bar)
        {
            let (group, epoch) = (self.config.group, self.config.epoch);
            let (takes_us, others_take_us) = (takes, others_take);
            turn.tell(ToManager::MemberSlow { group, epoch, member, takes_us, others_take_us });
        }
    }

    /// Who alone has not done the oldest change in flight, if that is old, and is there: one that has said
    /// nothing since is silent, and not slow.
    fn stuck_at(&self, turn: &Turn<'_>, members: &[ReplicaId]) -> Option<(ReplicaId, Duration)> {
        let flight = self.flights.values().next()?;
        let age = turn.now.since(flight.since);
        if age < WINDOW {
            return None;
        }
        let owes = |member| flight.is_owed_to(member) || (member == self.id && flight.is_own());
        let mut owing = members.iter().copied().filter(|member| owes(*member));
        let (member, nobody_else) = (owing.next()?, owing.next().is_none());
        let is_there = member == self.id || self.has_answered_since(turn, member, flight.since);
        (nobody_else && members.len() > 1 && is_there).then_some((member, age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(raw: u64) -> ReplicaId {
        ReplicaId::from_raw(raw)
    }

    fn window(pace: &mut Pace, latencies: &[(u64, u64)], changes: usize) -> Option<Slow> {
        window_of(Media::Ssd, pace, latencies, changes)
    }

    fn window_of(
        media: Media,
        pace: &mut Pace,
        latencies: &[(u64, u64)],
        changes: usize,
    ) -> Option<Slow> {
        for &(member, micros) in latencies {
            for _ in 0..changes {
                pace.took(Instant::ZERO, replica(member), (Duration::from_micros(micros), 0));
            }
        }
        let members: Vec<_> = latencies.iter().map(|&(member, _)| replica(member)).collect();
        pace.end(Instant::ZERO, &members, None, Bar::of(media))
    }

    #[test]
    fn steps_are_a_quarter_of_an_octave() {
        for micros in 1..5_000_000_u64 {
            let step = step_of(Duration::from_micros(micros));
            assert!(micros_of(step) <= micros, "{micros}");
            assert!(micros < 4 || micros < micros_of(step) * 5 / 4 + 1, "{micros}");
        }
        assert_eq!(step_of(Duration::from_secs(3_600)), STEPS - 1);
    }

    #[test]
    fn a_member_that_is_slow_for_long_is_named() {
        let mut pace = Pace::default();
        window(&mut pace, &[(1, 400), (2, 500)], 20);
        for _ in 1..WINDOWS {
            assert_eq!(window(&mut pace, &[(1, 400), (2, 8_000)], 20), None);
        }
        let slow = window(&mut pace, &[(1, 400), (2, 8_000)], 20).expect("long enough");
        assert_eq!(slow.member, replica(2));
        assert!(slow.takes >= 7_000 && slow.others_take <= 400, "{slow:?}");
        assert!(window(&mut pace, &[(1, 400), (2, 8_000)], 20).is_some(), "until somebody acts");
    }

    #[test]
    fn a_hard_disk_that_is_read_and_its_mirror_not_is_none() {
        let mut pace = Pace::default();
        for _ in 0..2 * WINDOWS {
            let found = window_of(Media::Hdd, &mut pace, &[(1, 250_000), (2, 8_000)], 20);
            assert_eq!(found, None);
        }
        window_of(Media::Hdd, &mut pace, &[(1, 8_000), (2, 8_000)], 20);
        let mut slow = None;
        for _ in 0..WINDOWS {
            slow = window_of(Media::Hdd, &mut pace, &[(1, 2_000_000), (2, 8_000)], 20);
        }
        assert_eq!(slow.map(|s| s.member), Some(replica(1)));
    }

    #[test]
    fn a_pause_or_another_member_begins_anew() {
        let mut pace = Pace::default();
        window(&mut pace, &[(1, 400), (2, 500)], 20);
        for _ in 1..WINDOWS {
            window(&mut pace, &[(1, 400), (2, 8_000)], 20);
        }
        assert_eq!(window(&mut pace, &[(1, 400), (2, 600)], 20), None);
        assert_eq!(window(&mut pace, &[(1, 400), (2, 8_000)], 20), None);
        assert_eq!(window(&mut pace, &[(1, 8_000), (2, 400)], 20), None);
    }

    #[test]
    fn a_member_that_is_far_away_and_never_was_faster_is_not_slow() {
        let mut pace = Pace::default();
        for _ in 0..2 * WINDOWS {
            assert_eq!(window(&mut pace, &[(1, 400), (2, 8_000)], 20), None);
        }
    }

    #[test]
    fn what_was_seen_before_a_long_pause_is_forgotten() {
        let mut pace = Pace::default();
        window(&mut pace, &[(1, 400), (2, 500)], 20);
        for _ in 1..WINDOWS {
            window(&mut pace, &[(1, 400), (2, 8_000)], 20);
        }
        let later = Instant::ZERO + Duration::from_secs(3_600);
        pace.took(later, replica(1), (Duration::from_micros(400), 0));
        assert!(pace.streak.is_none() && pace.since == Some(later));
    }

    #[test]
    fn nobody_is_slow_where_all_are_or_where_it_hurts_nobody() {
        for latencies in [[(1, 50_000), (2, 90_000)], [(1, 100), (2, 3_000)]] {
            let mut pace = Pace::default();
            for _ in 0..2 * WINDOWS {
                assert_eq!(window(&mut pace, &latencies, 20), None);
            }
        }
        let mut pace = Pace::default();
        for _ in 0..2 * WINDOWS {
            assert_eq!(window(&mut pace, &[(1, 100), (2, 90_000)], 3), None, "too few changes");
        }
    }
}
