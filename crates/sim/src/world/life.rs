//! Processes begin, wake when their machines want it, and are killed.

use std::time::Duration;

use bds::api as bds_api;
use control::machine as control_api;
use model::{id::BootId, time::Instant};
use node::api as node_api;

use super::{Fed, Happening, World};
use crate::network::Process;

impl World {
    /// `kill -9`: memory and whatever was in flight are gone.
    pub fn kill(&mut self, process: &Process, power: bool) {
        if !self.is_up(process) {
            return;
        }
        self.trace(|| format!("KILL {process:?} power={power}"));
        self.wakes.remove(process);
        match process {
            Process::Manager => {
                self.manager.machine = None;
                self.manager.life += 1;
                // The commit in flight was durable or not.
                if let Some((_, writes)) = self.manager.pending.take()
                    && self.random.chance(50)
                {
                    self.apply(&writes);
                }
            }
            Process::Server(id) => {
                let server = self.servers.get_mut(id).expect("known");
                server.machine = None;
                server.ready = false;
                server.life += 1;
                for drive in server.drives.values_mut() {
                    if power {
                        drive.cut_power(&mut self.random);
                    } else {
                        drive.kill(&mut self.random);
                    }
                }
            }
            Process::Node(id) => {
                let node = self.nodes.get_mut(id).expect("known");
                node.machine = None;
                node.life += 1;
                self.exports.retain(|(n, _), _| n != id);
            }
        }
        self.paused.remove(process);
        if let Process::Server(id) = process {
            self.watch.server_dies(id);
        }
        for broken in self.network.break_all(process) {
            // What it had sent may still be on its way.
            if broken.from == *process && self.random.chance(30) {
                self.linger(broken);
            } else {
                self.tell_broken(broken);
            }
        }
    }

    pub fn start_later(&mut self, process: &Process, delay: Duration) {
        self.schedule(delay, Happening::Start { process: process.clone() });
    }

    pub(super) fn start(&mut self, process: &Process) {
        if self.is_up(process) {
            return;
        }
        self.trace(|| format!("START {process:?}"));
        let (now, wall, seed) = (self.local(process), self.wall(), self.random.number());
        match process {
            Process::Manager => {
                let mut out = Vec::new();
                let records = self.manager.records.values().cloned().collect();
                let params = self.manager.params.clone();
                let machine =
                    control::machine::Manager::new(params, records, seed, now, wall, &mut out);
                self.manager.machine = Some(machine);
                self.act_manager(out);
            }
            Process::Server(id) => {
                let server = self.servers.get_mut(id).expect("known");
                server.params.boot = BootId::from_random(u128::from(seed));
                let mut out = Vec::new();
                let machine = bds::Server::new(server.params.clone(), seed, now, &mut out)
                    .expect("the drives fit their geometry");
                server.machine = Some(machine);
                self.act_server(id, out);
            }
            Process::Node(id) => {
                let node = self.nodes.get_mut(id).expect("known");
                node.params.boot = BootId::from_random(u128::from(seed));
                node.params.cached = node.cached.clone();
                let mut out = Vec::new();
                let machine = node::Node::new(node.params.clone(), seed, now, &mut out);
                node.machine = Some(machine);
                self.act_node(id, out);
                self.dial(process, &Process::Manager);
            }
        }
        self.schedule_wake(process);
    }

    pub(super) fn wake(&mut self, process: &Process, life: u64) {
        if self.life(process) != life || !self.is_up(process) {
            return;
        }
        // One that was set earlier, and then again for an earlier time, must not set itself anew: there
        // would be ever more of them.
        if self.wakes.get(process) != Some(&self.now) {
            return;
        }
        self.wakes.remove(process);
        if self.paused.contains_key(process) {
            return;
        }
        if self.deadline(process).is_some_and(|d| d <= self.local(process)) {
            match process {
                Process::Manager => self.feed_manager(control_api::Event::TimeReached),
                Process::Server(s) => self.feed_server(&s.clone(), bds_api::Event::TimeReached),
                Process::Node(n) => self.feed_node(&n.clone(), node_api::Event::TimeReached),
            }
        } else {
            self.schedule_wake(process);
        }
    }

    /// How often it has been started.
    pub(super) fn life(&self, process: &Process) -> u64 {
        match process {
            Process::Manager => self.manager.life,
            Process::Server(s) => self.servers[s].life,
            Process::Node(n) => self.nodes[n].life,
        }
    }

    /// It stands still, as after SIGSTOP: its kernel goes on, and it finds everything later.
    pub fn pause(&mut self, process: &Process) {
        if self.is_up(process) {
            self.trace(|| format!("PAUSE {process:?}"));
            self.paused.entry(process.clone()).or_default();
        }
    }

    pub fn resume(&mut self, process: &Process) {
        let Some(missed) = self.paused.remove(process) else { return };
        self.trace(|| format!("RESUME {process:?}"));
        for fed in missed {
            match (process, fed) {
                (Process::Manager, Fed::Manager(event)) => self.feed_manager(event),
                (Process::Server(s), Fed::Server(event)) => self.feed_server(s, event),
                (Process::Node(n), Fed::Node(event)) => self.feed_node(n, event),
                _ => unreachable!("fed to its own kind"),
            }
        }
        if self.is_up(process) {
            self.schedule_wake(process);
        }
    }

    pub(super) fn deadline(&self, process: &Process) -> Option<Instant> {
        match process {
            Process::Manager => self.manager.machine.as_ref()?.deadline(),
            Process::Server(s) => self.servers[s].machine.as_ref()?.deadline(),
            Process::Node(n) => self.nodes[n].machine.as_ref()?.deadline(),
        }
    }

    pub(super) fn schedule_wake(&mut self, process: &Process) {
        let Some(deadline) = self.deadline(process) else { return };
        let at = self.clock(process).global(deadline).max(self.now + Duration::from_micros(1));
        if self.wakes.get(process).is_some_and(|&w| w <= at && w > self.now) {
            return;
        }
        self.wakes.insert(process.clone(), at);
        let life = self.life(process);
        self.schedule_at(at, Happening::Wake { process: process.clone(), life });
    }
}
