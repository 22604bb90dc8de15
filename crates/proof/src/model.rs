//! The model: which steps are possible in a state, and which state each leads to.
//!
//! Decides: what may happen at all: anything that a party may do, any message that may arrive, and
//! every failure that the scope still allows, in any order.
//! Does not: know the rules; each step is in the module of the party that takes it.

use stateright::{Model, Property};

use crate::{
    breaks::Break,
    client::Client,
    history::History,
    manager::Manager,
    network::{Conn, Links, Message, take_first},
    primary::{Phase, Primary},
    properties,
    scope::{HandOvers, Scope},
    server::{Mirror, Role, Server},
    state::{Config, Content, Note, Notes, Set, State},
};

/// One scope to be explored, as specified or with one mistake.
#[derive(Clone, Debug)]
pub struct Proof {
    pub scope: Scope,
    pub broken: Vec<Break>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    // The manager. What names a server is about it.
    Register(u8),
    Configure { server: u8, late: bool },
    Tell(u8),
    Prepare(u8),
    FailOver(u8),
    Unfence,
    Refresh,
    Drop(u8),
    Learn(u8),
    Abandon,
    Admit,
    HandOver(u8),
    GiveHandOverUp,
    Switch,
    TakeOver,
    // Servers.
    Complete { server: u8, index: u8 },
    Crash { server: u8, survived: u8 },
    Announce(u8),
    Resume(u8),
    Fill { primary: u8, block: u8 },
    Pull { learner: u8, index: u8 },
    Install { learner: u8, index: u8 },
    Compare { primary: u8, block: u8 },
    GiveMemberUp { primary: u8, member: u8 },
    // Links; `from` counts clients after servers.
    Connect { from: u8, to: u8 },
    Break { from: u8, to: u8 },
    Deliver { from: u8, to: u8 },
    DeliverLate { from: u8, to: u8 },
    Answer { from: u8, to: u8 },
    // Clients.
    Dial(u8),
    Reopen(u8),
    BreakClient(u8),
    Write { client: u8, block: u8 },
    Read { client: u8, block: u8 },
}

/// One step: the state before it, which becomes the one after it.
pub struct Turn<'a> {
    pub model: &'a Proof,
    pub state: State,
}

impl Turn<'_> {
    pub fn has(&self, mistake: Break) -> bool {
        self.model.broken.contains(&mistake)
    }

    pub fn note(&mut self, note: Note) {
        self.state.notes.add(note);
    }
}

impl Proof {
    pub fn new(scope: Scope) -> Self {
        Self { scope, broken: Vec::new() }
    }

    pub fn broken(scope: Scope, mistakes: &[Break]) -> Self {
        Self { scope, broken: mistakes.to_vec() }
    }

    /// Server 0 leads, the others of the set follow, and client 0 has a session open.
    fn initial(&self) -> State {
        let Scope { servers, in_sync, clients, .. } = self.scope;
        let mirrors = Set::first(in_sync).without(0);
        let config =
            Config { epoch: 1, primary: 0, mirrors, learner: None, generation: 1, boot: 1 };
        let known = |s| if s < in_sync { config } else { Config::NONE };
        let mut state = State {
            manager: Manager::new(config),
            servers: (0..servers).map(|s| Server::new(known(s))).collect(),
            clients: (0..clients).map(|c| Client::new(c + 1)).collect(),
            links: Links::new(servers, clients),
            history: History::default(),
            crashes_left: self.scope.crashes,
            breaks_left: self.scope.breaks,
            notes: Notes::default(),
        };
        for mirror in mirrors.iter() {
            state.links.get_mut(0, mirror).number = 1;
            let server = state.server_mut(mirror);
            server.connections = 1;
            let conn = Some(Conn { from: 0, number: 1 });
            server.role = Role::Mirror(Mirror { conn, pulls: Vec::new() });
        }
        let from = state.links.client(0);
        state.links.get_mut(from, 0).number = 1;
        let conn = Conn { from, number: 1 };
        let server = state.server_mut(0);
        server.connections = 1;
        server.role = Role::Primary(Primary::leading(conn));
        state.client_mut(0).attached_to(0);
        state
    }
}

impl Turn<'_> {
    fn server_actions(&self, at: u8, actions: &mut Vec<Action>) {
        let server = self.state.server(at);
        let jobs = server.engine.len();
        for index in (0..jobs).filter(|&index| server.may_complete(index)) {
            let index = u8::try_from(index).expect("few jobs");
            actions.push(Action::Complete { server: at, index });
        }
        if self.state.crashes_left > 0 {
            for survived in 0..1 << jobs {
                actions.push(Action::Crash { server: at, survived });
            }
        }
        self.fill_actions(at, actions);
        let Some(primary) = server.primary() else { return };
        if self.may_announce(at) {
            actions.push(Action::Announce(at));
        }
        if self.may_resume(at) {
            actions.push(Action::Resume(at));
        }
        for member in server.adopted.others() {
            if !self.state.links.get(at, member).is_up() {
                actions.push(Action::Connect { from: at, to: member });
            } else if self.state.breaks_left > 0 {
                actions.push(Action::Break { from: at, to: member });
            }
            let owes = primary.flights.iter().any(|f| f.owed[usize::from(member)] > 0);
            if owes && self.has(Break::ShrunkEarly) {
                actions.push(Action::GiveMemberUp { primary: at, member });
            }
        }
    }

    fn link_actions(&self, from: u8, to: u8, actions: &mut Vec<Action>) {
        let link = self.state.links.get(from, to);
        let may = |number, message: Option<&Message>| {
            message.is_some_and(|m| self.may_deliver(to, Conn { from, number }, m))
        };
        if may(link.number, link.forth.first()) {
            actions.push(Action::Deliver { from, to });
        }
        if may(link.late_number, link.late.first()) {
            actions.push(Action::DeliverLate { from, to });
        }
        if !link.back.is_empty() {
            actions.push(Action::Answer { from, to });
        }
    }

    /// What would have to wait for something stays where it is.
    fn may_deliver(&self, to: u8, conn: Conn, message: &Message) -> bool {
        match *message {
            Message::Adopt(_) => self.state.server(to).engine.is_empty(),
            Message::Write { epoch, block, value } => !self.waits(to, conn, epoch, (block, value)),
            _ => true,
        }
    }

    fn deliver(&mut self, to: u8, conn: Conn, message: Message) {
        match message {
            Message::Adopt(config) => self.adopt(to, conn, config),
            Message::Replicate { epoch, mod_seq, block, value } => {
                self.replicate(to, conn, epoch, block, Content { mod_seq, value });
            }
            Message::FillRegion { epoch, token, block } => {
                self.fill_region(to, conn, epoch, (token, block));
            }
            Message::OpenSession { epoch, generation } => {
                self.open_session(to, conn, epoch, generation);
            }
            Message::Write { epoch, block, value } => self.write(to, conn, epoch, (block, value)),
        }
    }

    /// The link is there (again): what was sent before may be lost.
    fn connect(&mut self, from: u8, to: u8) {
        self.next_connection(from, to);
        let config = self.state.server(from).adopted;
        self.state.links.send(from, to, Message::Adopt(config));
        self.reset_fill(from, to);
        self.resend(from, to, u8::MAX);
    }

    /// Whether the old primary of a hand-over may go on serving: see [`HandOvers`].
    fn may_resume(&self, at: u8) -> bool {
        let told = Phase::HandingOver { told: true };
        if self.state.primary(at).is_none_or(|p| p.phase != told) {
            return false;
        }
        let manager = &self.state.manager;
        let given_up = manager.hand_over.is_none();
        match self.model.scope.hand_over {
            HandOvers::None => false,
            HandOvers::Prompt => {
                given_up && manager.stored.epoch == self.state.server(at).adopted.epoch
            }
            HandOvers::Slow => given_up,
            HandOvers::Late => true,
        }
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::Register(server) => {
                let boot = self.state.server(server).boot;
                self.state.manager.boots[usize::from(server)] = boot;
            }
            Action::Configure { server, late } => {
                let manager = &self.state.manager;
                let config = if late { manager.before } else { manager.stored };
                self.configure(server, config);
            }
            Action::Tell(client) => self.tell(client),
            Action::Prepare(server) => self.prepare(server, self.state.manager.stored.epoch + 1),
            Action::FailOver(server) => self.fail_over(server),
            Action::Unfence | Action::Refresh => self.store_again(),
            Action::Drop(member) => self.drop_member(member),
            Action::Learn(server) => self.learn(server),
            Action::Abandon => self.abandon(),
            Action::Admit => self.admit(),
            Action::HandOver(target) => self.begin_hand_over(target),
            Action::GiveHandOverUp => self.state.manager.hand_over = None,
            Action::Switch => self.switch(),
            Action::TakeOver => self.take_over(),
            Action::Complete { server, index } => self.complete(server, usize::from(index)),
            Action::Crash { server, survived } => self.crash(server, survived),
            Action::Announce(server) => self.announce(server),
            Action::Resume(server) => self.resume(server),
            Action::Fill { primary, block } => self.begin_fill(primary, block),
            Action::Pull { learner, index } => self.pull(learner, usize::from(index)),
            Action::Install { learner, index } => self.install(learner, usize::from(index)),
            Action::Compare { primary, block } => self.compare(primary, block),
            Action::GiveMemberUp { primary, member } => self.give_member_up(primary, member),
            Action::Connect { from, to } => self.connect(from, to),
            Action::Break { from, to } => {
                self.state.links.get_mut(from, to).close();
                self.state.breaks_left -= 1;
                self.connect(from, to);
            }
            Action::Deliver { from, to } => {
                let link = self.state.links.get_mut(from, to);
                let conn = Conn { from, number: link.number };
                let message = take_first(&mut link.forth).expect("something was to be delivered");
                self.deliver(to, conn, message);
            }
            Action::DeliverLate { from, to } => {
                let link = self.state.links.get_mut(from, to);
                let conn = Conn { from, number: link.late_number };
                let message = link.take_late().expect("something was left");
                self.deliver(to, conn, message);
            }
            Action::Answer { from, to } => {
                let link = self.state.links.get_mut(from, to);
                let reply = take_first(&mut link.back).expect("something was answered");
                match self.state.links.as_client(from) {
                    Some(client) => self.told(client, reply),
                    None => self.answered(from, to, reply),
                }
            }
            Action::Dial(client) => self.dial(client),
            Action::Reopen(client) => self.open(client),
            Action::BreakClient(client) => self.break_client(client),
            Action::Write { client, block } => self.begin_write(client, block),
            Action::Read { client, block } => self.read(client, block),
        }
    }
}

impl Model for Proof {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Nothing follows from what is wrong already.
        if state.history.wrong.is_some() {
            return;
        }
        let turn = Turn { model: self, state: state.clone() };
        turn.manager_actions(actions);
        let Scope { servers, clients, .. } = self.scope;
        for server in 0..servers {
            turn.server_actions(server, actions);
        }
        for from in 0..servers + clients {
            (0..servers).for_each(|to| turn.link_actions(from, to, actions));
        }
        for client in 0..clients {
            turn.client_actions(client, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut turn = Turn { model: self, state: last.clone() };
        turn.state.notes.clear();
        turn.take(action);
        turn.forget();
        Some(turn.state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = properties::all();
        if self.broken.is_empty() {
            properties.extend(properties::reached(&self.scope));
        }
        properties
    }
}
