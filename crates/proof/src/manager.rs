//! The manager: an atomic register that holds one configuration, and what it has been told.
//!
//! Decides: which configurations may follow the stored one, and when it may be told to whom.
//! Does not: wait or measure time. It may believe anybody to be silent or gone at any moment, and
//! may act on what it was told as late as it likes.
//! Invariants: a configuration follows the stored one with the next epoch (1); a failover goes to
//! a mirror, or to the restarted or stuck primary itself, after its promise (2, 4, 16), and leaves
//! it alone in the set; a learner is admitted on the primary's word for its present stint (15).
//!
//! Its links to servers are no queues here. Promises and adoptions are durable, so hearing of one
//! late is to act on it late. `Configure` comes to the process that it was made for or to none,
//! and so does the one before it, late. `HandedOver` is believed however long ago it was said,
//! where the scope says so.

use crate::{
    breaks::Break,
    history::Wrong,
    model::{Action, Turn},
    scope::HandOvers,
    state::{Config, Note, SERVERS_MAX, Set},
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HandOver {
    pub target: u8,
    /// The primary has said that nothing is in flight.
    pub handed_over: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Manager {
    pub stored: Config,
    /// The one before it: may still be on its way.
    pub before: Config,
    /// Of the volume; configurations follow.
    pub generation: u8,
    /// The runs of servers that have registered.
    pub boots: [u8; SERVERS_MAX],
    /// The epoch in which the primary called the present learner ready.
    pub ready: Option<(u8, u8)>,
    /// The epoch in which the present learner became one.
    pub learning_since: u8,
    /// Under the stored configuration.
    pub hand_over: Option<HandOver>,
}

impl Manager {
    pub fn new(config: Config) -> Self {
        Self {
            stored: config,
            before: Config::NONE,
            generation: config.generation,
            boots: [1; SERVERS_MAX],
            ready: None,
            learning_since: 0,
            hand_over: None,
        }
    }

    fn next_epoch(&self) -> u8 {
        self.stored.epoch + 1
    }

    /// As far as it knows, the primary is in the run that the configuration was made for.
    fn primary_runs(&self) -> bool {
        self.boots[usize::from(self.stored.primary)] == self.stored.boot
    }
}

impl Turn<'_> {
    pub fn manager_actions(&self, actions: &mut Vec<Action>) {
        let manager = &self.state.manager;
        for server in self.model.scope.all_servers().iter() {
            if manager.boots[usize::from(server)] != self.state.server(server).boot {
                actions.push(Action::Register(server));
            }
            for late in [false, true] {
                let config = if late { manager.before } else { manager.stored };
                if config.primary == server && self.may_configure(server, &config) {
                    actions.push(Action::Configure { server, late });
                }
            }
        }
        for (client, known) in (0_u8..).zip(&self.state.clients) {
            let attached = known.generation == manager.generation;
            let current = known.generation == manager.stored.generation;
            if attached && current && !known.over && known.epoch < manager.stored.epoch {
                actions.push(Action::Tell(client));
            }
        }
        if manager.hand_over.is_some() {
            actions.push(Action::GiveHandOverUp);
        }
        if self.model.scope.clients > 1 && manager.generation == 1 {
            actions.push(Action::TakeOver);
        }
        if manager.next_epoch() <= self.model.scope.epochs {
            self.candidate_actions(actions);
            self.membership_actions(actions);
        }
    }

    /// Whose promise counts: the mirrors', or the primary's own if it has restarted or does not
    /// take its configuration.
    fn is_candidate(&self, server: u8) -> bool {
        let manager = &self.state.manager;
        let stored = &manager.stored;
        let adopted = self.state.server(stored.primary).adopted.epoch == stored.epoch;
        let afresh = server == stored.primary && (!manager.primary_runs() || !adopted);
        let promoted = self.has(Break::LearnerPromoted) && stored.is_learner(server);
        stored.mirrors.contains(server) || afresh || promoted
    }

    fn candidate_actions(&self, actions: &mut Vec<Action>) {
        let (manager, scope) = (&self.state.manager, &self.model.scope);
        let next = manager.next_epoch();
        for server in scope.all_servers().iter() {
            let replica = self.state.server(server);
            let promised = replica.answered >= next;
            let target = manager.hand_over.filter(|h| h.handed_over && h.target == server);
            let fails_over = scope.failover && self.is_candidate(server);
            if (fails_over || target.is_some()) && !promised && !replica.stale {
                actions.push(Action::Prepare(server));
            }
            if fails_over && (promised || self.has(Break::FailoverUnpromised)) {
                actions.push(Action::FailOver(server));
            }
            if target.is_some() && (promised || self.has(Break::SwitchUnpromised)) {
                actions.push(Action::Switch);
            }
        }
    }

    fn membership_actions(&self, actions: &mut Vec<Action>) {
        let (manager, scope) = (&self.state.manager, &self.model.scope);
        let stored = &manager.stored;
        if !manager.primary_runs() {
            return;
        }
        let fenced = stored.others().chain([stored.primary]);
        let mut fenced = fenced.map(|s| self.state.server(s).answered);
        if manager.hand_over.is_none() && fenced.any(|promised| promised > stored.epoch) {
            actions.push(Action::Unfence);
        }
        if stored.generation < manager.generation {
            actions.push(Action::Refresh);
        }
        if scope.drop {
            actions.extend(stored.mirrors.iter().map(Action::Drop));
        }
        let adopted = self.state.server(stored.primary).adopted.epoch == stored.epoch;
        let Some(learner) = stored.learner else {
            if adopted && manager.hand_over.is_none() {
                if scope.learn {
                    let others = scope.all_servers().minus(stored.in_sync());
                    actions.extend(others.iter().map(Action::Learn));
                }
                if scope.hand_over != HandOvers::None {
                    actions.extend(stored.mirrors.iter().map(Action::HandOver));
                }
            }
            return;
        };
        let ready = |(epoch, who)| {
            let present = epoch >= manager.learning_since || self.has(Break::OldReadyBelieved);
            who == learner && present
        };
        if manager.ready.is_some_and(ready) {
            actions.push(Action::Admit);
        }
        if scope.abandon {
            actions.push(Action::Abandon);
        }
    }

    /// Writes the next configuration over the stored one.
    fn store(&mut self, primary: u8, mirrors: Set, learner: Option<u8>, boot: u8) {
        let manager = &mut self.state.manager;
        let (epoch, generation) = (manager.next_epoch(), manager.generation);
        manager.before = manager.stored;
        manager.stored = Config { epoch, primary, mirrors, learner, generation, boot };
        manager.hand_over = None;
        let old_ready = self.model.broken.contains(&Break::OldReadyBelieved);
        let in_sync = manager.before.in_sync();
        if !in_sync.contains(primary) || !in_sync.meets(manager.stored.in_sync()) {
            self.state.history.note(Wrong::NotInSync);
        }
        let manager = &mut self.state.manager;
        if learner.is_none() {
            manager.learning_since = 0;
        }
        if learner.is_none() && !old_ready {
            manager.ready = None;
        }
    }

    /// The same primary with other members.
    fn store_members(&mut self, mirrors: Set, learner: Option<u8>) {
        let Config { primary, boot, .. } = self.state.manager.stored;
        self.store(primary, mirrors, learner, boot);
    }

    pub fn fail_over(&mut self, successor: u8) {
        let manager = &self.state.manager;
        let boot = manager.boots[usize::from(successor)];
        let kept = if self.has(Break::SurvivorsKept) {
            manager.stored.in_sync().without(successor)
        } else {
            Set::EMPTY
        };
        self.store(successor, kept, None, boot);
    }

    /// The same members under the next epoch: for a promise that came to nothing, or a newer
    /// generation.
    pub fn store_again(&mut self) {
        let Config { mirrors, learner, .. } = self.state.manager.stored;
        self.store_members(mirrors, learner);
    }

    pub fn drop_member(&mut self, mirror: u8) {
        let Config { mirrors, learner, .. } = self.state.manager.stored;
        self.store_members(mirrors.without(mirror), learner);
    }

    pub fn learn(&mut self, learner: u8) {
        let mirrors = self.state.manager.stored.mirrors;
        if self.has(Break::LearnerInSyncAtOnce) {
            return self.store_members(mirrors.with(learner), None);
        }
        self.store_members(mirrors, Some(learner));
        if !self.has(Break::OldReadyBelieved) {
            self.state.manager.ready = None;
        }
        self.state.manager.learning_since = self.state.manager.stored.epoch;
    }

    pub fn abandon(&mut self) {
        self.store_members(self.state.manager.stored.mirrors, None);
    }

    pub fn admit(&mut self) {
        let Config { mirrors, learner, .. } = self.state.manager.stored;
        self.store_members(mirrors.with(learner.expect("it is ready")), None);
        self.note(Note::LearnerAdmitted);
    }

    pub fn begin_hand_over(&mut self, target: u8) {
        self.state.manager.hand_over = Some(HandOver { target, handed_over: false });
        let primary = self.state.manager.stored.primary;
        self.asked_to_hand_over(primary);
    }

    /// The primary has handed over and the target has promised.
    pub fn switch(&mut self) {
        let manager = &self.state.manager;
        let target = manager.hand_over.expect("it is under way").target;
        let boot = manager.boots[usize::from(target)];
        let others = manager.stored.in_sync().without(target);
        self.store(target, others, None, boot);
        self.note(Note::HandedOver);
    }

    /// By force: the first client is not asked, and is told nothing more.
    pub fn take_over(&mut self) {
        self.state.manager.generation = 2;
    }
}
