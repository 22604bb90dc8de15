//! The manager's machine: events in, actions out, one commit in flight at a time.
//!
//! Decides: when a decision may be taken and when its consequences may be told.
//! Does not: know the rules themselves; they are functions of the state and of what servers
//! report, in the modules beside this one.
//! Invariants: every decision is taken on durable state; nothing that depends on a write is sent
//! or answered before [`Event::Committed`]; what must be told to a server or node manager is
//! derived again from the state, never remembered, so that nothing is lost with a link or a
//! process.

mod looking;

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use format::{
    ctl::{FromManager, ToManager},
    record::Record,
};
use model::{
    id::{AccountId, DriveId, GroupId, ServerId},
    time::{Instant, WallTime},
};

use crate::{
    account,
    api::{ApiError, CallToken, Caller, Command, Done, Place, View},
    command::{self, Desk},
    http::{HttpRequest, HttpResponse},
    links,
    live::Live,
    metrics,
    random::Random,
    router::{Received, Render, receive},
    state::{State, Write},
};

/// An inbound control link; the shell numbers them, never reusing a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

#[derive(Debug, Clone)]
pub struct ManagerParams {
    pub cluster: String,
    pub place: Place,
    pub root: RootAccount,
    /// How long a server may be away before its replicas are made anew elsewhere.
    pub remirror_delay: Duration,
    pub timing: Timing,
}

/// The account that exists from the first start on.
#[derive(Clone)]
pub struct RootAccount {
    pub account: AccountId,
    pub access_key: String,
    pub secret: String,
}

/// Leaves the secret out: parameters are logged.
impl std::fmt::Debug for RootAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootAccount").field("account", &self.account).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A server or node manager that has sent nothing for this long is down.
    pub server_silence: Duration,
    /// Nobody is declared down before this long after the manager's start.
    pub start_grace: Duration,
    /// What is not answered is sent again after this long; also the pace of looking again.
    pub resend: Duration,
    /// A member that the primary calls silent while its server seems up is dropped after this
    /// long.
    pub member_patience: Duration,
    /// A hand-over whose primary has not drained within this long is given up.
    pub drain: Duration,
    /// A hand-over that has not come to its commit this long after the primary stopped is given
    /// up. Must be well below the primaries' own `hand_over_limit`.
    pub hand_over: Duration,
    /// A primary that runs and has not adopted its configuration for this long never will: it
    /// goes on alone.
    pub adoption: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            server_silence: Duration::from_secs(3),
            start_grace: Duration::from_secs(3),
            resend: Duration::from_secs(1),
            member_patience: Duration::from_secs(3),
            drain: Duration::from_secs(3),
            hand_over: Duration::from_millis(500),
            adoption: Duration::from_secs(20),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    LinkOpened {
        link: LinkId,
    },
    LinkClosed {
        link: LinkId,
    },
    LinkReceived {
        link: LinkId,
        message: ToManager,
    },
    HttpReceived {
        call: CallToken,
        request: HttpRequest,
    },
    /// On the address for operators, which asks nobody who they are.
    ScrapeReceived {
        call: CallToken,
        request: HttpRequest,
    },
    /// The writes of that commit are durable.
    Committed {
        commit: u64,
    },
    /// `Manager::deadline` has come.
    TimeReached,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dropped when the link has closed.
    Send {
        link: LinkId,
        message: FromManager,
    },
    CloseLink {
        link: LinkId,
    },
    /// Make all of these durable or none, then report [`Event::Committed`]. There is never more
    /// than one in flight. A store that cannot commit (another manager holds the leader term)
    /// ends this process.
    Commit {
        commit: u64,
        writes: Vec<Write>,
    },
    AnswerHttp {
        call: CallToken,
        response: HttpResponse,
    },
    /// Something that operators should see in the log.
    Report {
        text: String,
    },
}

/// Commands that wait for their turn. Beyond it callers are told to come back.
const WAITING_MAX: usize = 1_024;
/// How often the machine looks at what time alone changes.
const LOOK: Duration = Duration::from_millis(250);
/// A link of another run of the same server is believed dead when silent for this long.
const TAKEOVER: Duration = Duration::from_secs(2);

/// The manager.
#[derive(Debug)]
pub struct Manager {
    params: ManagerParams,
    state: State,
    live: Live,
    random: Random,
    commits: u64,
    in_flight: Option<InFlight>,
    waiting: VecDeque<Waiting>,
    /// Commands and reconciliation take turns.
    commands_first: bool,
    looked: Instant,
    passed: Instant,
    /// Old client tokens are to be looked for.
    sweep: bool,
    servers_up: BTreeSet<ServerId>,
    /// Full drives from which a replica may be moved.
    full_drives: Vec<DriveId>,
    /// Servers from which a replica may be moved now, each as often as that is so.
    draining: Vec<ServerId>,
    /// Groups that waited for an answer when last looked at.
    busy: BTreeSet<GroupId>,
    /// Groups that were not whole when last looked at.
    unsettled: BTreeSet<GroupId>,
    passes: u64,
    /// The last group of the part of all groups that was looked at in the last pass.
    round: GroupId,
    /// What node managers hold and should not is to be looked for.
    leftovers: bool,
    #[cfg(test)]
    pub(crate) typed_answers: Vec<(CallToken, Result<Done, ApiError>)>,
}

/// A commit that the store has not confirmed yet, and who waits for it.
#[derive(Debug)]
struct InFlight {
    commit: u64,
    writes: Vec<Write>,
    answer: Option<(Reply, Result<Done, ApiError>)>,
}

#[derive(Debug)]
struct Waiting {
    reply: Reply,
    caller: Caller,
    command: Command,
}

#[derive(Debug)]
enum Reply {
    Http {
        call: CallToken,
        render: Render,
        request_id: String,
    },
    #[cfg(test)]
    Typed {
        call: CallToken,
    },
}

impl Manager {
    /// A manager over what the metadata store holds. `out` gets the first actions.
    pub fn new(
        params: ManagerParams,
        records: Vec<Record>,
        seed: u64,
        now: Instant,
        wall: WallTime,
        out: &mut Vec<Action>,
    ) -> Self {
        let mut state = State::default();
        for record in records {
            state.apply(&Write::Put(record));
        }
        let live = Live { started: now, ..Live::default() };
        let bootstrap = account::bootstrap(&state, &params.root, wall);
        let mut manager = Self {
            params,
            state,
            live,
            random: Random::new(seed),
            commits: 0,
            in_flight: None,
            waiting: VecDeque::new(),
            commands_first: false,
            looked: now,
            passed: now,
            sweep: true,
            servers_up: BTreeSet::new(),
            full_drives: Vec::new(),
            draining: Vec::new(),
            busy: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            passes: 0,
            round: GroupId::from_raw(0),
            leftovers: true,
            #[cfg(test)]
            typed_answers: Vec::new(),
        };
        if !bootstrap.is_empty() {
            manager.commit(bootstrap, None, out);
        }
        manager
    }

    pub fn handle(&mut self, now: Instant, wall: WallTime, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::LinkOpened { link } => links::opened(&mut self.live, link, out),
            Event::LinkClosed { link } => links::closed(&mut self.live, link),
            Event::LinkReceived { link, message } => {
                let context = links::Context {
                    state: &self.state,
                    cluster: &self.params.cluster,
                    zones: &self.params.place.zones,
                    now,
                    takeover: TAKEOVER,
                };
                links::received(&mut self.live, &context, link, message, out);
            }
            Event::HttpReceived { call, request } => {
                self.receive(now, wall, call, &request, out);
            }
            Event::ScrapeReceived { call, request } => {
                let response =
                    self.with_view(now, wall, "", |view| metrics::receive(view, &request));
                out.push(Action::AnswerHttp { call, response });
            }
            Event::Committed { commit } => self.committed(now, wall, commit, out),
            Event::TimeReached => {}
        }
        self.look(now, wall);
        self.work(now, wall, out);
    }

    /// When the machine wants [`Event::TimeReached`], whatever else happens.
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.looked + LOOK)
    }

    /// What is durable.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Reads are answered at once from what is durable; commands wait for their turn.
    fn receive(
        &mut self,
        now: Instant,
        wall: WallTime,
        call: CallToken,
        request: &HttpRequest,
        out: &mut Vec<Action>,
    ) {
        let request_id = self.random.uuid();
        let received = self.with_view(now, wall, &request_id, |view| receive(view, request));
        let (caller, command, render) = match received {
            Received::Answer(response) => {
                out.push(Action::AnswerHttp { call, response });
                return;
            }
            Received::Command { caller, command, render } => (caller, command, render),
        };
        let reply = Reply::Http { call, render, request_id };
        if self.waiting.len() >= WAITING_MAX {
            let error = ApiError::new("RequestLimitExceeded", "Too many requests at once.");
            self.answer(now, wall, reply, Err(error), out);
            return;
        }
        self.waiting.push_back(Waiting { reply, caller, command });
    }

    #[cfg(test)]
    pub(crate) fn submit(&mut self, call: CallToken, caller: Caller, command: Command) {
        self.waiting.push_back(Waiting { reply: Reply::Typed { call }, caller, command });
    }

    fn with_view<T>(
        &self,
        now: Instant,
        wall: WallTime,
        request_id: &str,
        read: impl FnOnce(&View<'_>) -> T,
    ) -> T {
        let servers_up = self.live.servers_up(now, &self.params.timing);
        let nodes_up = self.live.nodes_up(now, &self.params.timing);
        read(&View {
            state: &self.state,
            place: &self.params.place,
            servers_up: &servers_up,
            nodes_up: &nodes_up,
            live: &self.live,
            wall,
            request_id,
        })
    }

    fn answer(
        &mut self,
        now: Instant,
        wall: WallTime,
        reply: Reply,
        result: Result<Done, ApiError>,
        out: &mut Vec<Action>,
    ) {
        match reply {
            Reply::Http { call, render, request_id } => {
                let response =
                    self.with_view(now, wall, &request_id, |view| render.render(view, result));
                out.push(Action::AnswerHttp { call, response });
            }
            #[cfg(test)]
            Reply::Typed { call } => self.typed_answers.push((call, result)),
        }
    }

    fn commit(
        &mut self,
        writes: Vec<Write>,
        answer: Option<(Reply, Result<Done, ApiError>)>,
        out: &mut Vec<Action>,
    ) {
        assert!(self.in_flight.is_none(), "one commit at a time");
        self.commits += 1;
        let commit = self.commits;
        out.push(Action::Commit { commit, writes: writes.clone() });
        self.in_flight = Some(InFlight { commit, writes, answer });
    }

    fn committed(&mut self, now: Instant, wall: WallTime, commit: u64, out: &mut Vec<Action>) {
        let done = self.in_flight.take().expect("a commit is in flight");
        assert_eq!(done.commit, commit, "the store confirms the commit that is in flight");
        for write in &done.writes {
            self.mark(write);
            self.state.apply(write);
        }
        if let Some((reply, result)) = done.answer {
            self.answer(now, wall, reply, result, out);
        }
    }

    /// Whose situation a write changes.
    fn mark(&mut self, write: &Write) {
        let (Write::Put(record) | Write::Delete(record)) = write;
        let group_of = |volume| self.state.volumes.get(&volume).map(|v| v.group);
        let group = match record {
            Record::Group(r) => Some(r.config.group),
            Record::Volume(r) => Some(r.group),
            Record::Attachment(r) => group_of(r.volume),
            Record::Modification(r) => group_of(r.volume),
            Record::Server(_) | Record::Instance(_) => {
                self.live.dirty.all = true;
                None
            }
            Record::Account(_) | Record::AccessKey(_) | Record::ClientToken(_) => None,
        };
        self.live.dirty.groups.extend(group);
    }

    /// Everything that can be decided now, until a commit is in flight.
    fn work(&mut self, now: Instant, wall: WallTime, out: &mut Vec<Action>) {
        let mut worked = true;
        while worked {
            worked = false;
            self.commands_first = !self.commands_first;
            for commands in [self.commands_first, !self.commands_first] {
                if self.in_flight.is_some() {
                    return;
                }
                worked |= if commands {
                    self.execute(now, wall, out)
                } else {
                    self.reconcile(now, wall, out)
                };
            }
        }
    }

    /// Carries out one command. False when none waits.
    fn execute(&mut self, now: Instant, wall: WallTime, out: &mut Vec<Action>) -> bool {
        let Some(Waiting { reply, caller, command }) = self.waiting.pop_front() else {
            return false;
        };
        let mut desk = Desk {
            state: &self.state,
            live: &self.live,
            params: &self.params,
            now,
            wall,
            random: &mut self.random,
        };
        match command::execute(&mut desk, &caller, command) {
            Ok((writes, done)) if !writes.is_empty() => {
                self.commit(writes, Some((reply, Ok(done))), out);
            }
            Ok((_, done)) => {
                if let Done::Scrub(scrub) = &done {
                    self.live.groups.entry(scrub.group).or_default().scrub = Some(scrub.clone());
                    self.live.mark(scrub.group);
                }
                self.answer(now, wall, reply, Ok(done), out);
            }
            Err(error) => self.answer(now, wall, reply, Err(error), out),
        }
        true
    }
}
