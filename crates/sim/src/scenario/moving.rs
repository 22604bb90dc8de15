//! The volume goes from one guest to another, by force or in peace, while the former goes on writing.

use super::*;

/// How far a move of the attachment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moving {
    /// It was asked to leave.
    Detaching,
    /// It is free, or was asked to come to the next.
    Attaching,
}

impl Run {
    pub(super) fn begin_to_move(&mut self) {
        if self.moving.is_some() {
            return;
        }
        self.by_force = self.world.random.chance(60);
        if self.by_force && self.options.all_faults && self.world.random.chance(30) {
            // Why people use force: nobody hears of that machine, and it may be alive.
            let node = Process::Node(self.node.clone());
            self.world.cut(&node, &Process::Manager);
            self.world.cut(&Process::Manager, &node);
            self.ends_later(End::Cuts);
        }
        self.moving = Some(Moving::Detaching);
        self.outcome.moves += 1;
        // What the former guest still wants may be answered, refused, or left open.
        self.zombies.append(&mut self.pending);
        self.detach();
    }

    fn detach(&mut self) {
        let body = json!({
            "volume_id": self.volume.to_string(),
            "instance_id": instance(self.at).to_string(),
            "force": self.by_force,
        });
        // Without an answer nobody knows whether it was heard: it is asked for again.
        self.call("POST", "/v1/attachments/detach", Some(&body));
    }

    /// One step, if it can be made now.
    pub(super) fn go_on_moving(&mut self) {
        let Some(moving) = self.moving else { return };
        let Some(shown) = self.show() else { return };
        let state = shown["attachments"][0]["state"].as_str();
        match moving {
            Moving::Detaching if state.is_none() => {
                // A volume can be attached in its own zone alone, and it may move between zones.
                self.at = usize::from(shown["zone"] == ZONES[1]);
                self.moving = Some(Moving::Attaching);
                self.attach();
            }
            Moving::Detaching if state == Some("attached") => self.detach(),
            Moving::Detaching => {}
            Moving::Attaching if state == Some("attached") => {
                self.former = std::mem::replace(&mut self.node, node(self.at));
                self.moving = None;
                self.fencing = true;
            }
            Moving::Attaching if state.is_none() => {
                self.at = usize::from(shown["zone"] == ZONES[1]);
                self.attach();
            }
            Moving::Attaching => {}
        }
    }

    fn attach(&mut self) {
        let body = json!({
            "volume_id": self.volume.to_string(),
            "instance_id": instance(self.at).to_string(),
            "device": "/dev/sdf",
            "kernel_device": false,
        });
        // Refused while the volume is not free yet; asked again then.
        self.call("POST", "/v1/attachments", Some(&body));
    }

    /// The present guest was answered for the first time: nothing of the former one that has not
    /// taken effect ever will.
    pub(super) fn fence(&mut self) {
        if !std::mem::take(&mut self.fencing) {
            return;
        }
        self.unanswered.extend(self.zombies.values().flat_map(Pending::writes));
        for (block, content) in std::mem::take(&mut self.unanswered) {
            self.registers.fence(block, content, self.world.now);
        }
    }

    /// The former guest still has its device, and does not know.
    pub(super) fn zombie_acts(&mut self) {
        let former = self.former.clone();
        let shown = self.world.exports.contains_key(&(former.clone(), self.volume));
        if self.moving.is_some() || former == self.node || !shown || self.zombies.len() > 20 {
            return;
        }
        let (token, request) = self.make_request(former.clone(), Some(true));
        let pending = self.pending.remove(&token).expect("just made");
        if !self.fencing {
            for (block, content) in pending.writes() {
                self.registers.fence(block, content, self.world.now);
            }
        }
        self.zombies.insert(token, pending);
        self.world.guest(&former, self.volume, token, request);
    }
}
