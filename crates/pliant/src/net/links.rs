//! The reactor's part that keeps links: dial, greet, dial again.

use std::net::SocketAddr;

use format::data::DataMessage;

use super::{
    Fault, NetEvent, Reactor,
    conn::Kind,
    dial::{Link, LinkName},
    output::Output,
    reactor::Timer,
    socket::Stream,
};

impl<P> Reactor<P> {
    pub(super) fn keep_link(&mut self, name: LinkName, address: SocketAddr) {
        if let Some(link) = self.links.get_mut(&name) {
            if link.address == address {
                return;
            }
            link.address = address;
            if let Some(conn) = link.conn {
                // Reads as a link that went down, and is dialed again at the new address.
                if let Some(held) = self.conns.get_mut(&conn) {
                    held.closing = true;
                    held.output = Output::default();
                    self.mark_dirty(conn);
                }
            }
            return;
        }
        self.links.insert(name.clone(), Link::new(address));
        self.dial(&name);
    }

    pub(super) fn dial(&mut self, name: &LinkName) {
        let Some(link) = self.links.get(name) else { return };
        if link.conn.is_some() {
            return;
        }
        let kind = Kind::Dialed { link: name.clone(), connected: false };
        let dialed = Stream::dial(link.address).and_then(|stream| self.add_conn(stream, kind));
        match dialed {
            Ok(id) => {
                self.links.get_mut(name).expect("looked up above").conn = Some(id);
                self.limit_handshake(id);
            }
            Err(error) => {
                self.lower_link(name, &error.into());
            }
        }
    }

    pub(super) fn finish_dial(&mut self, id: u64, events: &mut Vec<NetEvent<P>>) {
        let conn = self.conns.get_mut(&id).expect("the caller holds it");
        let Kind::Dialed { link, connected } = &mut conn.kind else { return };
        *connected = true;
        match link.clone() {
            LinkName::Manager => {
                let now = self.clock.now();
                let link = self.links.get_mut(&LinkName::Manager).expect("it has a connection");
                link.raise(now);
                tracing::info!(address = %link.address, "link to the manager is up");
                events.push(NetEvent::ManagerLinkUp);
            }
            LinkName::Server(_) => {
                let hello = DataMessage::Hello(self.hello.clone());
                self.queue(id, &hello.into_frame());
            }
        }
    }

    /// The link's connection is gone: note it and set the time of the next try. Returns whether
    /// the link was up.
    pub(super) fn lower_link(&mut self, name: &LinkName, fault: &Fault) -> bool {
        let now = self.clock.now();
        let Some(link) = self.links.get_mut(name) else { return false };
        let was_up = link.up_since.is_some();
        let wait = link.lower(now);
        if was_up || link.first_failure() {
            tracing::warn!(link = %name, address = %link.address, %fault, "link is down; dialing");
        }
        self.timers.insert((now + wait, Timer::Redial(name.clone())));
        was_up
    }

    pub(super) fn link_conn(&self, name: &LinkName) -> Option<u64> {
        let link = self.links.get(name)?;
        let conn = link.up_since.and(link.conn)?;
        self.conns.get(&conn).is_some_and(|held| !held.closing).then_some(conn)
    }
}
