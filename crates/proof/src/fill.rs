//! Filling a learner while writes go on: the primary's side, the learner's, and the source's.
//!
//! Decides: when a region is held, asked for, pulled, installed and filled; when a learner is ready.
//! Does not: acknowledge changes (`primary`), or admit the learner (`manager`).
//! Invariants: a region is filled under a hold, and every change to it goes to the learner from then
//! on (17); an image is installed only while the fill that asked for it stands; a learner is ready
//! when everything was filled and then found equal (15).
//!
//! A region is one block here, one is filled at a time, and the digests of one are compared in one
//! step. What is read of the source may lie about before it is installed.

use crate::{
    breaks::Break,
    history::Wrong,
    model::{Action, Turn},
    network::{Conn, Message},
    primary::Primary,
    server::{Job, Origin, Role},
    state::{Content, Note, Set},
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Task {
    pub block: u8,
    pub token: u8,
}

/// The primary's view of its learner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fill {
    pub learner: u8,
    pub filled: Set,
    pub verified: Set,
    /// Under its hold.
    pub task: Option<Task>,
    /// It counts, and the manager was told.
    pub ready: bool,
}

impl Fill {
    fn new(learner: u8) -> Self {
        let (filled, verified) = (Set::EMPTY, Set::EMPTY);
        Self { learner, filled, verified, task: None, ready: false }
    }
}

/// What a learner was asked to pull, and the image once it has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pull {
    pub conn: Conn,
    epoch: u8,
    token: u8,
    block: u8,
    image: Option<Content>,
}

impl Turn<'_> {
    pub fn fill_actions(&self, at: u8, actions: &mut Vec<Action>) {
        let server = self.state.server(at);
        let pulls = server.mirror().map_or(&[][..], |m| &m.pulls);
        for (index, pull) in (0_u8..).zip(pulls) {
            let source = self.state.server(server.adopted.source());
            if pull.image.is_some() {
                actions.push(Action::Install { learner: at, index });
            } else if source.adopted.epoch == pull.epoch {
                actions.push(Action::Pull { learner: at, index });
            }
        }
        let Some(primary) = server.primary() else { return };
        let Some(fill) = primary.fill.filter(|f| !f.ready && f.task.is_none()) else { return };
        let reachable = self.state.links.get(at, fill.learner).is_up();
        if !reachable || primary.is_deposed() {
            return;
        }
        let blocks = Set::first(self.model.scope.blocks);
        let unheld = self.has(Break::FilledWithoutHold);
        let flies = |block| primary.flights.iter().any(|f| f.block == block);
        // In order: which region comes first makes no difference.
        if let Some(block) = blocks.minus(fill.filled).iter().next() {
            if !flies(block) || unheld {
                actions.push(Action::Fill { primary: at, block });
            }
        } else if let Some(block) = blocks.minus(fill.verified).iter().next()
            && !flies(block)
            && self.may_compare(at, fill.learner)
        {
            actions.push(Action::Compare { primary: at, block });
        }
    }

    /// Source and learner obey this primary, so they answer.
    fn may_compare(&self, at: u8, learner: u8) -> bool {
        let config = self.state.server(at).adopted;
        let follows = |member| {
            let server = self.state.server(member);
            let number = self.state.links.get(at, member).number;
            let conn = server.mirror().and_then(|m| m.conn);
            server.adopted.epoch == config.epoch && conn == Some(Conn { from: at, number })
        };
        follows(learner) && (config.source() == at || follows(config.source()))
    }

    fn fill_of(&mut self, at: u8) -> &mut Option<Fill> {
        &mut self.state.server_mut(at).primary_mut().expect("the caller found a primary").fill
    }

    /// A newer configuration lists the learner still, another, or none.
    pub fn meet_learner(&mut self, at: u8) {
        let config = self.state.server(at).adopted;
        let same_tokens = self.has(Break::TokensReused);
        let Some(learner) = config.learner else {
            *self.fill_of(at) = None;
            return;
        };
        let primary = self.state.server_mut(at).primary_mut().expect("it has adopted");
        let mut fill = primary.fill.filter(|f| f.learner == learner).unwrap_or(Fill::new(learner));
        if let Some(task) = &mut fill.task {
            // Members forgot what they were asked. Under a new token, so that a late answer to the
            // old one cannot end the hold.
            primary.tokens += u8::from(!same_tokens);
            task.token = primary.tokens;
            let (token, block, epoch) = (task.token, task.block, config.epoch);
            self.state.links.send(at, learner, Message::FillRegion { epoch, token, block });
        }
        *self.fill_of(at) = Some(fill);
        if fill.ready {
            self.report_ready(at, learner);
        }
    }

    /// The learner's link broke: changes go on without it, and it is filled afresh. Not once it
    /// counts.
    pub fn reset_fill(&mut self, at: u8, learner: u8) {
        let fill = self.fill_of(at);
        if fill.is_some_and(|f| f.learner == learner && !f.ready) {
            *fill = Some(Fill::new(learner));
            self.recount_flights(at);
        }
    }

    pub fn begin_fill(&mut self, at: u8, block: u8) {
        let epoch = self.state.server(at).adopted.epoch;
        let primary = self.state.server_mut(at).primary_mut().expect("it fills");
        primary.tokens += 1;
        let token = primary.tokens;
        let fill = primary.fill.as_mut().expect("it fills");
        fill.task = Some(Task { block, token });
        let learner = fill.learner;
        self.state.links.send(at, learner, Message::FillRegion { epoch, token, block });
    }

    /// The learner is asked to fill a region.
    pub fn fill_region(&mut self, at: u8, conn: Conn, epoch: u8, (token, block): (u8, u8)) {
        let server = self.state.server_mut(at);
        let stands = epoch >= server.promised && epoch == server.adopted.epoch;
        if let Role::Mirror(mirror) = &mut server.role
            && mirror.conn == Some(conn)
            && stands
        {
            mirror.pulls.push(Pull { conn, epoch, token, block, image: None });
        }
    }

    fn pulls_of(&mut self, at: u8) -> &mut Vec<Pull> {
        match &mut self.state.server_mut(at).role {
            Role::Mirror(mirror) => &mut mirror.pulls,
            Role::Primary(_) => unreachable!("a primary pulls nothing"),
        }
    }

    /// The source answers with what it holds now.
    pub fn pull(&mut self, at: u8, index: usize) {
        let source = self.state.server(at).adopted.source();
        let block = self.pulls_of(at)[index].block;
        let image = self.state.server(source).visible(block);
        self.pulls_of(at)[index].image = Some(image);
    }

    pub fn install(&mut self, at: u8, index: usize) {
        let Pull { conn, token, block, image, .. } = self.pulls_of(at).remove(index);
        let content = image.expect("it has come");
        let origin = Origin::Installed { conn, token };
        self.state.server_mut(at).engine.push(Job { block, content, origin });
    }

    pub fn fill_done(&mut self, at: u8, learner: u8, token: u8) {
        let at_once = self.has(Break::ReadyUnfilled);
        let Some(fill) = self.fill_of(at) else { return };
        let Some(task) = fill.task.filter(|t| t.token == token && fill.learner == learner) else {
            return;
        };
        fill.task = None;
        fill.filled = fill.filled.with(task.block);
        if at_once {
            fill.ready = true;
            self.report_ready(at, learner);
        }
    }

    /// Learner and source have described a region, under a hold.
    pub fn compare(&mut self, at: u8, block: u8) {
        let config = self.state.server(at).adopted;
        let fill = self.fill_of(at).expect("it fills");
        let learner = fill.learner;
        let theirs = self.state.server(learner).visible(block);
        let ours = self.state.server(config.source()).visible(block);
        let all = Set::first(self.model.scope.blocks);
        let fill = self.fill_of(at).as_mut().expect("it fills");
        if ours != theirs {
            fill.filled = fill.filled.without(block);
            self.state.history.note(Wrong::Differs);
            return self.note(Note::FilledAgain);
        }
        fill.verified = fill.verified.with(block);
        if fill.verified == all {
            fill.ready = true;
            self.report_ready(at, learner);
        }
    }

    fn report_ready(&mut self, at: u8, learner: u8) {
        let epoch = self.state.server(at).adopted.epoch;
        let manager = &mut self.state.manager;
        if manager.stored.is_learner(learner) && epoch >= manager.learning_since {
            manager.ready = Some((epoch, learner));
        }
    }

    /// Whether the learner counts for this primary.
    pub fn counts(primary: &Primary, learner: u8) -> bool {
        primary.fill.is_some_and(|f| f.learner == learner && f.ready)
    }
}
