//! Links between processes: dialled, broken, and what travels on them.

use bds::api as bds_api;
use bytes::{Bytes, BytesMut};
use control::machine as control_api;
use format::{data::DataMessage, frame};
use node::api as node_api;

use std::time::Duration;

use super::{Happening, World};
use crate::network::{Broken, Life, Process};

/// Within how many microseconds an end gives up a link on which nothing gets through. The real
/// sockets have a user timeout.
const BEARS: (u64, u64) = (4_000_000, 18_000_000);

impl World {
    /// Breaks one random link that is up, often one with something on its way.
    pub fn reset_a_link(&mut self) {
        self.reset_one_of(self.network.up_links());
    }

    /// As [`Self::reset_a_link`], one between two servers.
    pub fn reset_between_servers(&mut self) {
        let mut links = self.network.up_links();
        let server = |p: &Process| matches!(p, Process::Server(_));
        links.retain(|(from, to)| server(from) && server(to));
        self.reset_one_of(links);
    }

    fn reset_one_of(&mut self, links: Vec<(Process, Process)>) {
        if links.is_empty() {
            return;
        }
        let mut on_their_way = self.queue.values().filter_map(|happening| match happening {
            Happening::Data { from, to, life, outward: true, .. }
                if self.network.is_current(from, to, *life) =>
            {
                Some((from.clone(), to.clone()))
            }
            _ => None,
        });
        let busy = on_their_way.find(|link| links.contains(link));
        let (from, to) = match busy {
            Some(busy) if self.random.chance(70) => busy,
            _ => self.random.pick(&links).clone(),
        };
        self.trace(|| format!("RESET {from:?} -> {to:?}"));
        let broken = self.network.break_link(&from, &to);
        if self.random.chance(30) { self.linger(broken) } else { self.tell_broken(broken) }
    }

    /// The near end is rid of the link. The far end learns of it later, and until then gets what was on
    /// its way: perhaps after the near end has said more on another link.
    pub(super) fn linger(&mut self, mut broken: Broken) {
        if std::mem::take(&mut broken.far) {
            let to_life = self.life(&broken.to);
            let (to, life, conn) = (broken.to.clone(), broken.life, broken.conn);
            let longest = if self.random.chance(50) { 30_000 } else { 3_000_000 };
            let delay = self.random.micros(0, longest);
            self.lingering.insert(life, Vec::new());
            self.schedule(delay, Happening::FarLearns { to, to_life, life, conn });
        }
        self.tell_broken(broken);
    }

    /// Everything that was on its way has come, and then the end.
    pub(super) fn far_learns(
        &mut self,
        to: &Process,
        to_life: u64,
        life: Life,
        conn: bds_api::ConnId,
    ) {
        let late = self.lingering.remove(&life).unwrap_or_default();
        if self.life(to) != to_life {
            return;
        }
        for happening in late {
            match happening {
                Happening::Data { from, to, wire, .. } => {
                    self.trace(|| "late, on an older link:".to_owned());
                    self.deliver(&from, &to, Some(conn), &wire);
                }
                Happening::ToManager { message, .. } => {
                    self.trace(|| format!("late, on an older link: {message:?}"));
                    let link = control_api::LinkId(conn.0);
                    self.feed_manager(control_api::Event::LinkReceived { link, message });
                }
                _ => unreachable!("nothing else is kept"),
            }
        }
        self.tell_far(to, conn);
    }

    /// Nothing gets through from the one to the other, for a while. Links between the two die if
    /// it takes longer than their ends bear.
    pub fn cut(&mut self, from: &Process, to: &Process) {
        self.trace(|| format!("CUT {from:?} -> {to:?}"));
        self.network.cut(from, to);
        for (near, far) in [(from, to), (to, from)] {
            let Some(life) = self.network.life(near, far) else { continue };
            let delay = self.random.micros(BEARS.0, BEARS.1);
            let (from, to) = (near.clone(), far.clone());
            self.schedule(delay, Happening::GivenUp { from, to, life });
        }
    }

    /// Everything gets through again, and what waited in sockets arrives.
    pub fn heal_cuts(&mut self) {
        self.trace(|| "HEAL".to_owned());
        self.network.heal();
        for (_, held) in std::mem::take(&mut self.held) {
            for happening in held {
                self.schedule(Duration::from_micros(1), happening);
            }
        }
    }

    /// One end gives the link up; the other learns of it later, and sends into nothing until then.
    pub(super) fn given_up(&mut self, from: &Process, to: &Process, life: Life) {
        if !self.network.is_severed(from, to) {
            return;
        }
        if self.random.chance(50) {
            let delay = self.random.micros(0, 3_000_000);
            if let Some(conn) = self.network.abandon(from, to, life) {
                self.trace(|| format!("GIVEN UP {from:?} -> {to:?}, at the far end"));
                self.tell_far(to, conn);
                let (from, to) = (from.clone(), to.clone());
                self.schedule(delay, Happening::NearLearns { from, to, life });
            }
        } else if self.network.life(from, to) == Some(life) {
            self.trace(|| format!("GIVEN UP {from:?} -> {to:?}, at the near end"));
            let broken = self.network.break_link(from, to);
            self.linger(broken);
        }
    }

    pub(super) fn near_learns(&mut self, from: &Process, to: &Process, life: Life) {
        if self.network.life(from, to) == Some(life) {
            let broken = self.network.break_link(from, to);
            self.tell_broken(broken);
        }
    }

    pub(super) fn dial(&mut self, from: &Process, to: &Process) {
        if let Some(life) = self.network.want(from, to) {
            let delay = self.random.micros(200, 10_000);
            let (from, to) = (from.clone(), to.clone());
            self.schedule(delay, Happening::Dialled { from, to, life });
        }
    }

    pub(super) fn dialled(&mut self, from: &Process, to: &Process, life: Life) {
        if self.network.life(from, to) != Some(life) {
            return;
        }
        if self.network.is_severed(from, to) {
            let delay = self.random.micros(500_000, 1_500_000);
            let (from, to) = (from.clone(), to.clone());
            self.schedule(delay, Happening::Dialled { from, to, life });
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
    pub(super) fn tell_broken(&mut self, broken: Broken) {
        let Broken { from, to, near, far, conn, .. } = broken;
        if far {
            self.tell_far(&to, conn);
        }
        if !self.is_up(&from) {
            return;
        }
        self.dial(&from, &to);
        if !near {
            return;
        }
        match (&from, &to) {
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

    pub(super) fn tell_far(&mut self, to: &Process, conn: bds_api::ConnId) {
        match to {
            Process::Manager => {
                let link = control_api::LinkId(conn.0);
                self.feed_manager(control_api::Event::LinkClosed { link });
            }
            Process::Server(s) => self.feed_server(s, bds_api::Event::ConnClosed { conn }),
            Process::Node(_) => unreachable!("nobody dials a node manager"),
        }
    }

    pub(super) fn send_data(
        &mut self,
        from: &Process,
        to: &Process,
        outward: bool,
        message: DataMessage,
    ) {
        let delay = self.travel(from, to, (30, 300));
        let Some((at, life)) = self.network.send(from, to, outward, self.now, delay) else {
            return;
        };
        let wire = message.into_frame().encode();
        let (from, to) = (from.clone(), to.clone());
        self.schedule_at(at, Happening::Data { from, to, life, outward, wire });
    }

    /// On that connection of the far end, or back to who wanted the link.
    pub(super) fn deliver(
        &mut self,
        from: &Process,
        to: &Process,
        outward: Option<bds_api::ConnId>,
        wire: &Bytes,
    ) {
        let frame = frame::decode(&mut BytesMut::from(&wire[..])).expect("we encoded it");
        let message = DataMessage::from_frame(frame.expect("whole")).expect("we encoded it");
        self.trace(|| {
            let text = format!("{message:?}");
            let arrow = if outward.is_some() { "->" } else { "<-" };
            format!("{from:?} {arrow} {to:?}: {}", text.chars().take(300).collect::<String>())
        });
        if let Some(conn) = outward {
            let Process::Server(server) = to else { unreachable!("data goes to servers") };
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
