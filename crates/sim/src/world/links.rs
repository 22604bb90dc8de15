//! Links between processes: dialled, broken, and what travels on them.

use bds::api as bds_api;
use bytes::{Bytes, BytesMut};
use control::machine as control_api;
use format::{data::DataMessage, frame};
use node::api as node_api;

use super::{Happening, World};
use crate::network::{Life, Process};

impl World {
    /// Resets one random link that is up.
    pub fn reset_a_link(&mut self) {
        let links = self.network.up_links();
        if links.is_empty() {
            return;
        }
        let (from, to) = self.random.pick(&links).clone();
        self.trace(|| format!("RESET {from:?} -> {to:?}"));
        let (from, to, up, conn) = self.network.break_link(&from, &to);
        self.tell_broken(&from, &to, up, conn);
    }

    pub(super) fn dial(&mut self, from: &Process, to: &Process) {
        if let Some(life) = self.network.want(from, to) {
            let delay = self.random.micros(200, 10_000);
            let (from, to) = (from.clone(), to.clone());
            self.schedule(delay, Happening::Dialled { from, to, life });
        }
    }

    pub(super) fn dialled(&mut self, from: &Process, to: &Process, life: Life) {
        if !self.network.link(from, to).is_some_and(|l| l.life == life) {
            return;
        }
        let listening = match to {
            Process::Manager => self.is_up(to),
            Process::Server(s) => self.servers[s].ready,
            Process::Node(_) => unreachable!("nobody dials a node manager"),
        };
        if !listening {
            let delay = self.random.micros(5_000, 50_000);
            let (from, to) = (from.clone(), to.clone());
            self.schedule(delay, Happening::Dialled { from, to, life });
            return;
        }
        assert!(self.network.raise(from, to, life));
        match (from, to) {
            (_, Process::Manager) => {
                let link = control_api::LinkId(self.conn(from, to));
                self.feed_manager(control_api::Event::LinkOpened { link });
                match from {
                    Process::Server(s) => self.feed_server(s, bds_api::Event::ManagerLinkUp),
                    Process::Node(n) => self.feed_node(n, node_api::Event::ManagerLinkUp),
                    Process::Manager => unreachable!("no link to itself"),
                }
            }
            (Process::Server(s), Process::Server(t)) => {
                self.feed_server(s, bds_api::Event::LinkUp { server: t.clone() });
            }
            (Process::Node(n), Process::Server(t)) => {
                self.feed_node(n, node_api::Event::LinkUp { server: t.clone() });
            }
            _ => unreachable!("no such link"),
        }
    }

    pub(super) fn conn(&self, from: &Process, to: &Process) -> u64 {
        self.network.link(from, to).expect("a current link").conn.0
    }

    /// Tells both ends, and dials again for who still wants it.
    pub(super) fn tell_broken(
        &mut self,
        from: &Process,
        to: &Process,
        up: bool,
        conn: bds_api::ConnId,
    ) {
        if up && self.is_up(to) {
            match to {
                Process::Manager => {
                    let link = control_api::LinkId(conn.0);
                    self.feed_manager(control_api::Event::LinkClosed { link });
                }
                Process::Server(s) => self.feed_server(s, bds_api::Event::ConnClosed { conn }),
                Process::Node(_) => unreachable!("nobody dials a node manager"),
            }
        }
        if !self.is_up(from) {
            return;
        }
        self.dial(from, to);
        if !up {
            return;
        }
        match (from, to) {
            (Process::Server(s), Process::Manager) => {
                self.feed_server(s, bds_api::Event::ManagerLinkDown);
            }
            (Process::Node(n), Process::Manager) => {
                self.feed_node(n, node_api::Event::ManagerLinkDown);
            }
            (Process::Server(s), Process::Server(t)) => {
                self.feed_server(s, bds_api::Event::LinkDown { server: t.clone() });
            }
            (Process::Node(n), Process::Server(t)) => {
                self.feed_node(n, node_api::Event::LinkDown { server: t.clone() });
            }
            _ => unreachable!("no such link"),
        }
    }

    pub(super) fn send_data(
        &mut self,
        from: &Process,
        to: &Process,
        outward: bool,
        message: DataMessage,
    ) {
        let delay = self.random.micros(30, 300);
        let Some((at, life)) = self.network.send(from, to, outward, self.now, delay) else {
            return;
        };
        let wire = message.into_frame().encode();
        let (from, to) = (from.clone(), to.clone());
        self.schedule_at(at, Happening::Data { from, to, life, outward, wire });
    }

    pub(super) fn deliver(&mut self, from: &Process, to: &Process, outward: bool, wire: &Bytes) {
        let frame = frame::decode(&mut BytesMut::from(&wire[..])).expect("we encoded it");
        let message = DataMessage::from_frame(frame.expect("whole")).expect("we encoded it");
        self.trace(|| {
            let text = format!("{message:?}");
            let arrow = if outward { "->" } else { "<-" };
            format!("{from:?} {arrow} {to:?}: {}", text.chars().take(300).collect::<String>())
        });
        if outward {
            let Process::Server(server) = to else { unreachable!("data goes to servers") };
            let conn = bds_api::ConnId(self.conn(from, to));
            self.feed_server(server, bds_api::Event::MessageReceived { conn, message });
            return;
        }
        let Process::Server(server) = to.clone() else { unreachable!("data comes from servers") };
        match from {
            Process::Server(s) => {
                self.feed_server(s, bds_api::Event::LinkReceived { server, message });
            }
            Process::Node(n) => {
                self.feed_node(n, node_api::Event::LinkReceived { server, message })
            }
            Process::Manager => unreachable!("the manager has no data links"),
        }
    }
}
