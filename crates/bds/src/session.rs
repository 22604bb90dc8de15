//! The session of the attached node manager, and what of it is known already.
//!
//! Decides: whether a request is of the current session, an older one, or a repetition.
//! Does not: carry out requests.
//! Invariants: once a session is superseded or its attachment over, its requests are refused for
//! good (10). Requests count only from the newest connection that spoke for the session: what an
//! older one still holds was sent again on the newer, and could undo a later request (9).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use format::data::{RequestId, Status};
use model::{
    epoch::AttachGeneration,
    limits::IN_FLIGHT_REQUESTS_MAX,
    sabotage::{Sabotage, is_on},
};

use crate::api::ConnId;

/// Superseded sessions that are remembered, to tell them from ones not opened yet.
const PAST_MAX: usize = 64;

#[derive(Debug)]
pub struct Session {
    pub id: u64,
    attach: AttachGeneration,
    conn: ConnId,
    /// Requests not answered yet: number to ticket.
    live: BTreeMap<u64, u64>,
    /// Changes acknowledged not long ago.
    done: BTreeSet<u64>,
    /// Of those, the ones that took effect when nobody waited for them any more: they may be waiting
    /// again, for themselves.
    settled: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub struct Sessions {
    current: Option<Session>,
    past: VecDeque<u64>,
}

/// What a request is to the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    New,
    /// Under way already, under this ticket.
    Repeated(u64),
    /// Acknowledged already.
    Acknowledged,
    Refuse(Status),
    /// From a connection that a newer one has replaced.
    Ignore,
}

/// What to do about a request to open a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// It is the current one.
    Current,
    /// It is current from now on; this one was before.
    Superseded(Option<u64>),
    Refuse(Status),
    Ignore,
}

impl Sessions {
    pub fn open(&mut self, id: u64, attach: AttachGeneration, conn: ConnId) -> Opening {
        if self.past.contains(&id) {
            return Opening::Refuse(Status::Fenced);
        }
        if let Some(current) = &mut self.current {
            if conn < current.conn {
                let same = current.id == id;
                return if same { Opening::Ignore } else { Opening::Refuse(Status::Fenced) };
            }
            if current.id == id {
                current.conn = conn;
                return Opening::Current;
            }
        }
        let before = self.end();
        let (live, done, settled) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        self.current = Some(Session { id, attach, conn, live, done, settled });
        Opening::Superseded(before)
    }

    /// Ends the session if it is of an older generation; its id.
    pub fn fence(&mut self, attach: AttachGeneration) -> Option<u64> {
        let older = self.current.as_ref().is_some_and(|s| s.attach < attach);
        if older && !is_on(Sabotage::FencedServed) { self.end() } else { None }
    }

    /// The session was not opened after all.
    pub fn forget(&mut self) {
        self.current = None;
    }

    fn end(&mut self) -> Option<u64> {
        let ended = self.current.take()?;
        if self.past.len() == PAST_MAX {
            self.past.pop_front();
        }
        self.past.push_back(ended.id);
        Some(ended.id)
    }

    pub fn classify(&mut self, id: RequestId, conn: ConnId) -> Standing {
        let Some(session) = self.current.as_mut().filter(|s| s.id == id.session) else {
            let fenced = self.current.is_some() || self.past.contains(&id.session);
            return Standing::Refuse(if fenced { Status::Fenced } else { Status::NotReady });
        };
        if conn < session.conn && !is_on(Sabotage::OldRequestCounts) {
            return Standing::Ignore;
        }
        session.conn = conn.max(session.conn);
        if is_on(Sabotage::RepetitionForgotten) {
            return Standing::New;
        }
        if let Some(&ticket) = session.live.get(&id.request) {
            Standing::Repeated(ticket)
        } else if session.done.contains(&id.request) {
            Standing::Acknowledged
        } else {
            Standing::New
        }
    }

    pub fn began(&mut self, id: RequestId, ticket: u64) {
        if let Some(session) = self.current.as_mut().filter(|s| s.id == id.session) {
            session.live.insert(id.request, ticket);
        }
    }

    /// A request was answered; `acknowledged`: it was a change, and it took effect.
    pub fn ended(&mut self, id: RequestId, acknowledged: bool) {
        let Some(session) = self.current.as_mut().filter(|s| s.id == id.session) else { return };
        session.live.remove(&id.request);
        if acknowledged {
            remember(&mut session.done, id.request);
        }
    }

    /// A change took effect whose request had been sent away, to be asked again.
    pub fn settle(&mut self, id: RequestId) {
        if let Some(session) = self.current.as_mut().filter(|s| s.id == id.session) {
            remember(&mut session.done, id.request);
            remember(&mut session.settled, id.request);
        }
    }

    /// Whether a change that was taken up as new has taken effect meanwhile.
    pub fn is_settled(&self, id: RequestId) -> bool {
        let session = self.current.as_ref().filter(|s| s.id == id.session);
        session.is_some_and(|s| s.settled.contains(&id.request))
    }
}

fn remember(requests: &mut BTreeSet<u64>, request: u64) {
    requests.insert(request);
    if requests.len() > 2 * IN_FLIGHT_REQUESTS_MAX {
        requests.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(raw: u64) -> AttachGeneration {
        AttachGeneration::from_raw(raw)
    }

    fn request(session: u64, request: u64) -> RequestId {
        RequestId { session, request }
    }

    #[test]
    fn a_superseded_session_is_fenced_for_good() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.open(7, generation(1), ConnId(1)), Opening::Superseded(None));
        assert_eq!(sessions.open(8, generation(1), ConnId(2)), Opening::Superseded(Some(7)));
        let fenced = Standing::Refuse(Status::Fenced);
        assert_eq!(sessions.classify(request(7, 1), ConnId(1)), fenced);
        let refused = Opening::Refuse(Status::Fenced);
        assert_eq!(sessions.open(7, generation(1), ConnId(3)), refused);
        assert_eq!(sessions.fence(generation(2)), Some(8));
        assert_eq!(sessions.classify(request(8, 1), ConnId(2)), fenced);
    }

    #[test]
    fn a_late_opening_of_a_dead_process_does_not_fence_the_living_one() {
        let mut sessions = Sessions::default();
        sessions.open(8, generation(1), ConnId(2));
        let late = sessions.open(7, generation(1), ConnId(1));
        assert_eq!(late, Opening::Refuse(Status::Fenced));
        assert_eq!(sessions.classify(request(8, 1), ConnId(2)), Standing::New);
    }

    #[test]
    fn a_request_from_a_replaced_connection_is_ignored() {
        let mut sessions = Sessions::default();
        sessions.open(7, generation(1), ConnId(1));
        sessions.began(request(7, 1), 100);
        assert_eq!(sessions.classify(request(7, 1), ConnId(2)), Standing::Repeated(100));
        sessions.ended(request(7, 1), true);
        assert_eq!(sessions.classify(request(7, 1), ConnId(2)), Standing::Acknowledged);
        assert_eq!(sessions.classify(request(7, 1), ConnId(1)), Standing::Ignore);
    }

    #[test]
    fn before_any_session_is_open_requests_are_put_off() {
        let mut sessions = Sessions::default();
        let standing = sessions.classify(request(7, 1), ConnId(1));
        assert_eq!(standing, Standing::Refuse(Status::NotReady));
    }
}
