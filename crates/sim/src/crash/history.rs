//! A history of requests, completions, crashes and restarts, and the moments at which it crashes.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use engine::api::{OpToken, Request};

use super::{
    bench::Bench,
    check::{check, check_space},
    content::FIRST,
    damage::Rest,
    journals::check_journals,
    model::{Model, Pending},
    plan::Plan,
    requests::{
        BLOCK, Wanted, id, layer_id, new_tags, release_of, remove, set_meta_of, write_of, zero_of,
    },
    streams::Streams,
    trace::Trace,
};
use crate::{
    drive::{Crash, Drive, image::Images},
    random::Random,
};

pub struct History {
    seed: u64,
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) model: Model,
    streams: Streams,
    /// What is under way, as it was asked for.
    asked: BTreeMap<OpToken, Wanted>,
    pub(super) trace: Trace,
    /// Crash states begun.
    states: Rc<Cell<u64>>,
    /// The one to stop after.
    last: u64,
}

impl History {
    pub fn new(seed: u64, trace: Trace, states: Rc<Cell<u64>>) -> Self {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let plan = Plan::of(seed, &mut random);
        let model = Model { last_tag: FIRST, ..Model::default() };
        let (streams, asked, last) = (Streams::new(seed), BTreeMap::new(), u64::MAX);
        Self { seed, plan, random, model, streams, asked, trace, states, last }
    }

    fn is_over(&self) -> bool {
        self.states.get() > self.last
    }

    pub fn run(mut self, last: Option<u64>) -> Result<(), String> {
        self.last = last.unwrap_or(u64::MAX - 1);
        self.trace.note(|| format!("{:?}", self.plan));
        engine::sabotage::scatter(self.plan.scattered);
        let mut random = self.random.clone();
        let mut bench = self.open(Images::default(), &mut random)?.0;
        self.prefill(&mut bench)?;
        for _ in 0..self.plan.steps {
            self.step(&mut bench);
            self.take_answers(&mut bench)?;
            let at_boundary = std::mem::take(&mut bench.at_boundary);
            if at_boundary {
                self.crash(&bench, Crash::Stable)?;
            }
            if self.random.below(12) == 0 && !self.is_over() {
                let kind = *self.random.pick(&Crash::KINDS);
                let (model, reopened) = self.crash(&bench, kind)?;
                if self.random.below(12) == 0 {
                    self.trace.note(|| "the history goes on from here".into());
                    (self.model, bench) = (model, reopened);
                    self.retry(&mut bench);
                } else {
                    self.melt(model, reopened)?;
                }
            }
            if self.is_over() {
                return Ok(());
            }
        }
        self.end(bench)
    }

    fn has_room(&self) -> bool {
        self.model.pending.len() + self.model.reading.len() < self.plan.in_flight_max
    }

    pub(super) fn step(&mut self, bench: &mut Bench) {
        let room = self.has_room();
        // One turn has one event or several.
        if self.random.below(3) > 0 && bench.end_turn() {
            return;
        }
        match self.random.below(10) {
            0..4 if room => {
                if self.random.below(100) < self.plan.mix.reads {
                    let times = if self.plan.streams { 1 + self.random.below(6) } else { 1 };
                    (0..times).for_each(|_| {
                        if self.has_room() {
                            self.request_read(bench);
                        }
                    });
                } else {
                    let wanted = if self.plan.streams && self.random.below(5) == 0 {
                        self.streams.write(&mut self.model)
                    } else {
                        self.plan.mix.change(&mut self.model, &mut self.random)
                    };
                    self.request(bench, wanted);
                }
            }
            4 if self.random.below(4) == 0 => {
                let passes = bench.pass_time();
                self.trace.note(|| format!("time passes: {passes}"));
            }
            _ if !bench.under_way.is_empty() => {
                let index = self.random.below(bench.under_way.len() as u64);
                bench.step(usize::try_from(index).expect("small"));
            }
            _ if !room && !bench.end_turn() => self.give_back(bench),
            _ => {}
        }
    }

    /// Everything waits for space: somebody gives some back.
    fn give_back(&mut self, bench: &mut Bench) {
        let replica = 1 + self.random.below(self.plan.mix.replicas);
        let size = self.model.replicas.get(&replica).map_or(0, |r| r.size);
        let kept = self.model.kept_layers(replica);
        let wanted = if !kept.is_empty() && self.random.below(2) == 0 {
            // What is taken away from a replica with layers stays in these.
            release_of(replica, *self.random.pick(&kept))
        } else if size > 0 && self.model.is_free(replica, 0, size) {
            zero_of(&mut self.model, replica, 0, size)
        } else {
            remove(replica)
        };
        self.request(bench, Some(wanted));
    }

    fn request(&mut self, bench: &mut Bench, wanted: Option<Wanted>) {
        let Some(wanted) = wanted else { return };
        let Wanted { request, replica, pending } = wanted.clone();
        // The answer may come before the token is known here: the model is told of it after.
        let token = bench.request(request);
        self.asked.insert(token, wanted);
        self.trace.note(|| format!("request {}: replica {replica} {}", token.0, told(&pending)));
        self.model.requested(token, replica, pending);
    }

    /// Who got no answer asks again after the restart, or does not.
    fn retry(&mut self, bench: &mut Bench) {
        for wanted in std::mem::take(&mut self.asked).into_values() {
            let known = self.model.replicas.contains_key(&wanted.replica);
            let again =
                known && matches!(wanted.pending, Pending::Blocks { .. } | Pending::Freeze { .. });
            if again && self.random.below(2) == 0 {
                self.request(bench, Some(wanted));
            }
        }
    }

    fn request_read(&mut self, bench: &mut Bench) {
        if self.random.below(3) == 0
            && let Some(read) = self.plan.mix.read_layer(&self.model, &mut self.random)
        {
            return self.request_layer_read(bench, read);
        }
        let goes_on = self.plan.streams && self.random.below(4) > 0;
        let read = if goes_on {
            self.streams.next(&self.model)
        } else {
            self.plan.mix.read(&self.model, &mut self.random)
        };
        let Some((replica, first, count)) = read else { return };
        let length = u32::try_from(count as u64 * BLOCK).expect("small");
        let (id, offset) = (id(replica), first as u64 * BLOCK);
        let token = bench.request(if goes_on {
            Request::ReadStream { replica: id, offset, length }
        } else {
            Request::Read { replica: id, offset, length }
        });
        self.trace.note(|| format!("request {}: read {replica} {first}+{count}", token.0));
        self.model.read_requested(token, replica, first, count);
    }

    fn request_layer_read(
        &mut self,
        bench: &mut Bench,
        (replica, layer, first, count): (u64, u64, usize, usize),
    ) {
        let length = u32::try_from(count as u64 * BLOCK).expect("small");
        let (id, offset) = (id(replica), first as u64 * BLOCK);
        let request = Request::ReadLayer { replica: id, layer: layer_id(layer), offset, length };
        let token = bench.request(request);
        self.trace
            .note(|| format!("request {}: read {replica} layer {layer} {first}+{count}", token.0));
        self.model.layer_read_requested(token, replica, layer, first, count);
    }

    pub(super) fn take_answers(&mut self, bench: &mut Bench) -> Result<(), String> {
        for (token, outcome) in std::mem::take(&mut bench.completed) {
            self.trace.note(|| match &outcome {
                Ok(_) => format!("answer {}", token.0),
                Err(error) => format!("answer {}: {error}", token.0),
            });
            self.asked.remove(&token);
            self.model.completed(token, &outcome, self.plan.mix.blocks_max)?;
        }
        match &bench.out_of_service {
            None => Ok(()),
            Some(reason) => Err(format!("the drive is out of service: {reason}")),
        }
    }

    /// Moves the journal's head somewhere, the end of the ring included.
    pub(super) fn prefill(&mut self, bench: &mut Bench) -> Result<(), String> {
        for _ in 0..self.random.below(self.plan.prefill_max) {
            let replica = 1 + self.random.below(self.plan.mix.replicas);
            let size = self.model.replicas.get(&replica).map_or(0, |r| r.size);
            let wanted = if size > 75 {
                let tags = new_tags(&mut self.model, 15);
                let first = self.random.below(60) as usize;
                // On a drive without room, one before it may still wait.
                let is_free = self.model.is_free(replica, first, tags.len());
                is_free.then(|| write_of(&mut self.model, replica, first, tags))
            } else {
                self.plan.mix.change(&mut self.model, &mut self.random)
            };
            self.request(bench, wanted);
            bench.run();
            self.take_answers(bench)?;
        }
        Ok(())
    }

    /// Looks at what a crash now leaves; returns what goes on from there.
    fn crash(&self, bench: &Bench, kind: Crash) -> Result<(Model, Bench), String> {
        let state = self.states.get();
        let mut random = Random::new(self.seed ^ state.wrapping_mul(0xd134_2543_de82_ef95));
        let unstable = bench.unstable_writes();
        let kinds = self.kinds(kind, &mut random);
        self.trace.note(|| format!("state {state}: {kinds:?} of {unstable} unstable writes"));
        let images = bench.crash_images(kinds, &mut random);
        let (mut reopened, before) = self.open(images, &mut random)?;
        if self.plan.is_apart() && random.below(4) == 0 {
            check_journals(&self.plan, before, reopened.seen())?;
        }
        let model = check(&self.model, &mut reopened, &self.plan)?;
        self.states.set(state + 1);
        Ok((model, reopened))
    }

    /// When all layers are released and have merged, everything is as if there had been none.
    fn melt(&self, mut model: Model, mut bench: Bench) -> Result<(), String> {
        let mut random = Random::new(self.seed ^ self.states.get());
        for (&raw, replica) in &mut model.replicas {
            while !replica.layers.is_empty() {
                let at = random.below(replica.layers.len() as u64) as usize;
                let layer = replica.layers[at].id;
                self.trace.note(|| format!("  melt: release {layer} of {raw}"));
                bench.ask(release_of(raw, layer).request)?;
                replica.release(layer);
            }
            replica.was_frozen = false;
        }
        bench.idle();
        check(&model, &mut bench, &self.plan).map(|_| ()).map_err(|e| format!("melted: {e}"))
    }

    /// What a crash leaves on each device: where the journal lies apart, one may lose what the
    /// other keeps.
    fn kinds(&self, kind: Crash, random: &mut Random) -> (Crash, Crash) {
        if !self.plan.is_apart() {
            return (kind, kind);
        }
        match (kind, random.below(3)) {
            (_, 0) => (kind, kind),
            (Crash::Stable, 1) => (Crash::Stable, Crash::All),
            (Crash::Stable, _) => (Crash::All, Crash::Stable),
            _ => (kind, *random.pick(&Crash::KINDS)),
        }
    }

    /// Sometimes it crashes again while it opens. Returns what it was opened on at last, too.
    fn open(&self, mut images: Images, random: &mut Random) -> Result<(Bench, Images), String> {
        let geometry = self.plan.geometry;
        while random.below(4) == 0 {
            let (data, journal) = (Drive::of(images.data), Drive::of(images.journal));
            let mut bench = Bench::start(geometry, data, journal, Trace::default());
            for _ in 0..random.below(40) {
                if !bench.under_way.is_empty() {
                    bench.step(0);
                }
            }
            let kind = *random.pick(&Crash::KINDS);
            let kinds = self.kinds(kind, random);
            self.trace.note(|| format!("  {kinds:?} while it opens"));
            images = bench.crash_images(kinds, random);
        }
        let bench = Bench::open(geometry, images.clone(), self.trace.clone())?;
        Ok((bench, images))
    }

    /// One small write, answered and sealed. If there is no replica, one is created.
    pub(super) fn one_write(&mut self, bench: &mut Bench) -> Result<(), String> {
        let found = self.model.replicas.iter().next().map(|(&raw, _)| raw);
        let wanted = match found {
            Some(raw) => {
                let meta = self.model.next_seq();
                let size = self.model.replicas[&raw].size;
                set_meta_of(raw, size, meta)
            }
            None => loop {
                if let Some(wanted) = self.plan.mix.change(&mut self.model, &mut self.random) {
                    break wanted;
                }
            },
        };
        self.request(bench, Some(wanted));
        bench.idle();
        self.take_answers(bench)
    }

    /// A drive at rest after a history without a crash, sealed.
    pub fn rest(mut self) -> Result<Rest, String> {
        self.model.past = Some(BTreeMap::new());
        let mut bench = Bench::open(self.plan.geometry, Images::default(), self.trace.clone())?;
        self.prefill(&mut bench)?;
        for _ in 0..self.plan.steps {
            self.step(&mut bench);
            self.take_answers(&mut bench)?;
        }
        self.settle(&mut bench)?;
        Ok(Rest::new(self.plan, self.model, &bench))
    }

    /// Everything is answered, and the last batch is sealed.
    pub(super) fn settle(&mut self, bench: &mut Bench) -> Result<(), String> {
        for _ in 0..100 {
            bench.run();
            self.take_answers(bench)?;
            if self.model.pending.is_empty() {
                break;
            }
            self.give_back(bench);
        }
        if !self.model.pending.is_empty() || !self.model.reading.is_empty() {
            return Err(format!("requests are never answered: {:?}", self.model.pending.keys()));
        }
        bench.idle();
        Ok(())
    }

    /// What is there is exactly the model, and space is all accounted for.
    fn end(mut self, mut bench: Bench) -> Result<(), String> {
        self.settle(&mut bench)?;
        check_space(&self.model, &bench, self.plan.slot_bytes())?;
        let last = bench;
        let (model, bench) = self.crash(&last, Crash::All)?;
        self.melt(model, bench)?;
        let (model, mut bench) = self.crash(&last, Crash::All)?;
        self.model = model;
        for replica in 1..=self.plan.mix.replicas {
            self.request(&mut bench, Some(remove(replica)));
        }
        bench.idle();
        self.take_answers(&mut bench)?;
        check_space(&self.model, &bench, self.plan.slot_bytes())?;
        self.crash(&bench, Crash::Stable).map(|_| ())
    }
}

fn told(pending: &Pending) -> String {
    match pending {
        Pending::Create { size, .. } => format!("create, {size} blocks"),
        Pending::Remove => "remove".into(),
        Pending::Freeze { layer } => format!("freeze {layer}"),
        Pending::Release { layer } => format!("release {layer}"),
        Pending::Meta { size, meta } => format!("metadata {meta}, {size} blocks"),
        Pending::Blocks { first, tags, seqs, exact } => {
            let what = match (exact, tags.iter().all(|&tag| tag == 0)) {
                (true, _) => "install",
                (false, true) => "zero",
                (false, false) => "write",
            };
            let (low, high) = (tags.iter().min(), tags.iter().max());
            let count = tags.len();
            format!("{what} {first}+{count}: content {low:?}..={high:?}, mod_seq {seqs:?}")
        }
    }
}
