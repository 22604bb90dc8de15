//! One partition of a given shape, long enough that nobody can wait for its end.

use super::*;

/// Who is cut off, by what it is to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Manager,
    Primary,
    Mirror,
    Node,
    /// Every process but the one named beside it.
    All,
}

/// From whom nothing gets through to whom.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    pub cuts: &'static [(Who, Who)],
    /// In both directions.
    pub both: bool,
}

/// How long the partition lasts.
pub const LASTS: Duration = Duration::from_secs(40);

/// Every partition of two or three of the four that leaves the volume a way to be served.
pub const SHAPES: &[Shape] = {
    use Who::*;
    &[
        Shape { name: "primary | mirror", cuts: &[(Primary, Mirror)], both: true },
        Shape { name: "node | primary", cuts: &[(Node, Primary)], both: true },
        Shape { name: "node | mirror", cuts: &[(Node, Mirror)], both: true },
        Shape { name: "primary | all", cuts: &[(Primary, All)], both: true },
        Shape { name: "mirror | all", cuts: &[(Mirror, All)], both: true },
        Shape { name: "manager | all", cuts: &[(Manager, All)], both: true },
        Shape { name: "manager | primary", cuts: &[(Manager, Primary)], both: true },
        Shape { name: "manager | mirror", cuts: &[(Manager, Mirror)], both: true },
        Shape { name: "manager | node", cuts: &[(Manager, Node)], both: true },
        Shape { name: "primary -> mirror", cuts: &[(Primary, Mirror)], both: false },
        Shape { name: "mirror -> primary", cuts: &[(Mirror, Primary)], both: false },
        Shape { name: "node -> primary", cuts: &[(Node, Primary)], both: false },
        Shape { name: "primary -> node", cuts: &[(Primary, Node)], both: false },
        Shape { name: "primary -> manager", cuts: &[(Primary, Manager)], both: false },
        Shape { name: "manager -> primary", cuts: &[(Manager, Primary)], both: false },
        Shape {
            name: "primary | manager, mirror",
            cuts: &[(Primary, Manager), (Primary, Mirror)],
            both: true,
        },
        Shape {
            name: "primary | node, mirror",
            cuts: &[(Primary, Node), (Primary, Mirror)],
            both: true,
        },
        Shape {
            name: "primary | node, manager",
            cuts: &[(Primary, Node), (Primary, Manager)],
            both: true,
        },
        Shape {
            name: "mirror | manager, primary",
            cuts: &[(Mirror, Manager), (Mirror, Primary)],
            both: true,
        },
    ]
};

/// What a guest of a partitioned volume saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The longest time without an answer, while the partition lasted.
    pub stall: Duration,
    pub answers: u64,
}

/// Uses a volume while its world is cut in this shape, heals it, and checks everything.
pub fn partition(seed: u64, shape: &Shape, keep_trace: bool) -> Result<Served, Box<Violation>> {
    let options =
        Options { fault_every: None, modify_every: None, keep_trace, ..Options::default() };
    let mut run = Run::new(seed, &options);
    run.play_shape(shape).map_err(|what| {
        let trace = run.world.trace.take().unwrap_or_default();
        Box::new(Violation { seed, what: format!("{}: {what}", shape.name), trace })
    })
}

impl Run {
    fn play_shape(&mut self, shape: &Shape) -> Result<Served, String> {
        self.make_volume()?;
        self.use_it(Duration::from_secs(2))?;
        self.cut_shape(shape)?;
        let served = self.use_it(LASTS)?;
        self.world.heal_cuts();
        self.heal()?;
        self.read_everything()?;
        self.compare_replicas()?;
        Ok(served)
    }

    pub(super) fn use_it(&mut self, length: Duration) -> Result<Served, String> {
        let end = self.world.now + length;
        let (mut stall, mut last) = (Duration::ZERO, self.world.now);
        let first = self.outcome.reads + self.outcome.writes;
        let mut before = first;
        while self.world.now < end {
            self.guest_acts();
            let next = self.world.now + self.world.random.micros(1_000, 20_000);
            self.settle(next - self.world.now)?;
            let answers = self.outcome.reads + self.outcome.writes;
            stall = stall.max(self.world.now - last);
            if answers > before {
                (before, last) = (answers, self.world.now);
            }
        }
        Ok(Served { stall, answers: before - first })
    }

    fn cut_shape(&mut self, shape: &Shape) -> Result<(), String> {
        let group = self.group().ok_or("the volume has no group")?;
        let primary = Process::Server(group.config.primary().server.clone());
        let mirror = group.config.mirrors().next().ok_or("the volume has no mirror")?;
        let mirror = Process::Server(mirror.server.clone());
        let one = |who: Who| match who {
            Who::Manager => Some(Process::Manager),
            Who::Primary => Some(primary.clone()),
            Who::Mirror => Some(mirror.clone()),
            Who::Node => Some(Process::Node(self.node.clone())),
            Who::All => None,
        };
        let mut pairs = Vec::new();
        for (from, to) in shape.cuts {
            let from = one(*from).ok_or("somebody is cut from all")?;
            let all = self.world.processes().into_iter().filter(|p| *p != from);
            let to: Vec<Process> = one(*to).map_or_else(|| all.collect(), |to| vec![to]);
            for to in to {
                pairs.push((from.clone(), to.clone()));
                if shape.both {
                    pairs.push((to, from.clone()));
                }
            }
        }
        pairs.iter().for_each(|(from, to)| self.world.cut(from, to));
        Ok(())
    }
}
