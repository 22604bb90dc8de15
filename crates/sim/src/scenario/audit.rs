//! The end of a run: faults stop, everything comes to its end, and what is held is compared.

use super::*;
use crate::reader::Reader;

impl Run {
    /// No more faults: everything must come to its end.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.end_faults();
        for process in self.world.processes() {
            self.world.start_later(&process, Duration::from_millis(1));
        }
        self.until("the attachment is where it should be", 60, |run| {
            run.go_on_moving();
            Some(run.moving.is_none())
        })?;
        self.until("all servers take replicas", 30, |run| {
            let servers: Vec<ServerId> = run.world.servers().cloned().collect();
            Some(servers.iter().all(|server| run.set_duty(server, "uncordon")))
        })?;
        self.until("the guest has its device", 30, |run| {
            let shown = run.world.exports.contains_key(&(run.node.clone(), run.volume));
            Some(shown && run.world.processes().iter().all(|p| run.world.is_up(p)))
        })?;
        self.until("every request is answered", 60, |run| Some(run.pending.is_empty()))?;
        self.until("the modification has ended", 90, |run| {
            let shown = run.show()?;
            let state = shown["modification"]["state"].as_str();
            Some(state.is_none_or(|s| s == "completed" || s == "failed"))
        })?;
        self.until("the volume is whole", 90, |run| {
            let shown = run.show()?;
            let replicas = shown["replicas"].as_array()?.len();
            Some(shown["degraded"] == false && replicas == 2)
        })?;
        self.until("nothing is left over", 60, |run| {
            let group = run.group()?;
            Some(group.replicas.len() == group.config.members.len())
        })?;
        for record in self.world.records() {
            if let Record::Modification(m) = record {
                match m.state.as_str() {
                    "completed" => self.outcome.completed += 1,
                    _ => self.outcome.failed += 1,
                }
            }
        }
        Ok(())
    }

    pub(super) fn read_everything(&mut self) -> Result<(), String> {
        for first in self.probes() {
            let token = GuestToken(self.next_token);
            self.next_token += 1;
            let began = self.world.now;
            let (node, contents) = (self.node.clone(), Vec::new());
            let pending = Pending { node, first, count: 1, contents, began, write: false };
            self.pending.insert(token, pending);
            let request = GuestRequest::Read { offset: first * BLOCK, length: 4096 };
            let node = self.node.clone();
            self.world.guest(&node, self.volume, token, request);
            self.until("a quiet read is answered", 10, |run| Some(run.pending.is_empty()))?;
        }
        Ok(())
    }

    /// Opens the drives of every in-sync replica again and compares all blocks.
    /// Opens every drive again: in-sync replicas hold the same, and nobody holds anything else.
    pub(super) fn compare_replicas(&mut self) -> Result<(), String> {
        self.settle(Duration::from_secs(2))?;
        let group = self.group().ok_or("the volume has no group")?;
        let servers: Vec<ServerId> = self.world.servers().cloned().collect();
        let mut found: BTreeMap<ReplicaId, Vec<Reader<'_>>> = BTreeMap::new();
        for server in &servers {
            self.world.kill(&Process::Server(server.clone()), true);
        }
        let mut readers = BTreeMap::new();
        for server in &servers {
            for params in &self.world.server_params(server).drives {
                let disk = |device| self.world.drive(server, &params.drive, device);
                let (data, journal) = (disk(Device::Data), disk(Device::Journal));
                let reader = Reader::open(params.geometry, data.ok_or("no such drive")?, journal)?;
                let stranger = reader.replicas.iter().find(|id| {
                    !group.replicas.get(id).is_some_and(|placed| {
                        placed.drives().any(|d| d.server == *server && d.drive == params.drive)
                    })
                });
                if let Some(id) = stranger {
                    return Err(format!("{server} still holds {id} on {}", params.drive));
                }
                readers.insert((server.clone(), params.drive.clone()), reader);
            }
        }
        for member in group.config.in_sync() {
            for id in group.replicas[&member.replica].drives() {
                let reader = readers.remove(&(id.server, id.drive)).ok_or("no such drive")?;
                found.entry(member.replica).or_default().push(reader);
            }
        }
        let mut contents: Vec<(ReplicaId, Vec<Bytes>)> = Vec::new();
        for (replica, mut parts) in found {
            let mut read = Vec::new();
            for block in self.probes() {
                let (unit, count) = (block / 256, parts.len() as u64);
                let part = usize::try_from(unit % count).expect("a handful");
                let at = unit / count * 256 + block % 256;
                read.push(parts[part].read(replica, at * BLOCK)?);
            }
            contents.push((replica, read));
        }
        let [(first, one), (second, two)] = &contents[..] else {
            return Err(format!("{} in-sync replicas at rest", contents.len()));
        };
        let differs = one.iter().zip(two).position(|(a, b)| a != b);
        match differs {
            Some(index) => Err(format!("replicas {first} and {second} differ at probe {index}")),
            None => Ok(()),
        }
    }

    pub(super) fn group(&self) -> Option<format::record::Group> {
        self.world.records().find_map(|r| match r {
            Record::Group(group) if group.config.volume == self.volume => Some(group.clone()),
            _ => None,
        })
    }
}
