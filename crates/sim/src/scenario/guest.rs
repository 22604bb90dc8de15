//! What the program that uses the volume does, and what it must see.

use super::*;

impl Run {
    pub(super) fn guest_acts(&mut self) {
        let node = self.node.clone();
        let showing = self.world.exports.contains_key(&(node.clone(), self.volume));
        if !showing || self.moving.is_some() || self.pending.len() >= 12 {
            return;
        }
        let (token, request) = self.make_request(node.clone(), None);
        self.world.guest(&node, self.volume, token, request);
    }

    /// A request of a guest, noted as pending.
    pub(super) fn make_request(
        &mut self,
        node: NodeId,
        write: Option<bool>,
    ) -> (GuestToken, GuestRequest) {
        // A few hot blocks, some at a distance, and whole extents now and then.
        let hot = self.hot();
        let (first, count) = match self.world.random.below(10) {
            0 => (hot + 16 * self.world.random.below(4), 16),
            1 | 2 => (hot + self.world.random.below(60), 1 + self.world.random.below(4)),
            3 => (256 * self.world.random.below(3) + 1_024, 1),
            _ => (hot + self.world.random.below(64), 1),
        };
        let token = GuestToken(self.next_token);
        self.next_token += 1;
        let write = write.unwrap_or_else(|| self.world.random.chance(60));
        let began = self.world.now;
        let mut contents = Vec::new();
        let request = if write {
            let mut data = Vec::new();
            for block in first..first + count {
                let content = self.next_content;
                self.next_content += 1;
                contents.push(content);
                data.extend(std::iter::repeat_n(content.to_le_bytes(), 512).flatten());
                self.registers.begin_write(block, content, began);
            }
            GuestRequest::Write { offset: first * BLOCK, data: Bytes::from(data) }
        } else {
            let length = u32::try_from(count * BLOCK).expect("a few blocks");
            GuestRequest::Read { offset: first * BLOCK, length }
        };
        self.pending.insert(token, Pending { node, first, count, contents, began, write });
        (token, request)
    }

    /// The first of the blocks that are written again and again.
    pub(super) fn hot(&self) -> u64 {
        if self.options.striped { 256 - 28 } else { 0 }
    }

    /// Every block that guests write.
    pub(super) fn probes(&self) -> impl Iterator<Item = u64> + use<> {
        let hot = self.hot();
        (hot..hot + 64).chain((0..3).map(|n| 256 * n + 1_024))
    }

    pub(super) fn take_answers(&mut self) -> Result<(), String> {
        if let Some(what) = self.world.take_wrong() {
            return Err(what);
        }
        for answered in std::mem::take(&mut self.world.answered) {
            let now = self.world.now;
            if let Some(pending) = self.zombies.remove(&answered.token) {
                self.take_from_former(&pending, answered.reply)?;
                continue;
            }
            let Some(pending) = self.pending.remove(&answered.token) else {
                return Err(format!("answered twice: {answered:?}"));
            };
            self.fence();
            self.latencies.push((pending.began, now - pending.began));
            self.outcome.longest_wait = self.outcome.longest_wait.max(now - pending.began);
            match answered.reply {
                GuestReply::Done if pending.write => {
                    self.outcome.writes += 1;
                    for (block, &content) in (pending.first..).zip(&pending.contents) {
                        self.registers.end_write(block, content, now);
                        self.note(content);
                    }
                }
                GuestReply::Data(data) if !pending.write => {
                    self.outcome.reads += 1;
                    self.check_read(&pending, &data)?;
                }
                other => return Err(format!("a guest saw {other:?}")),
            }
        }
        Ok(())
    }

    /// What the former guest is told, if anything, must be true as well.
    fn take_from_former(&mut self, pending: &Pending, reply: GuestReply) -> Result<(), String> {
        match reply {
            GuestReply::Done if pending.write => {
                for (block, content) in pending.writes() {
                    self.registers.end_write(block, content, self.world.now);
                }
                Ok(())
            }
            GuestReply::Data(data) if !pending.write => self.check_read(pending, &data),
            GuestReply::Failed(GuestError::Gone) => {
                self.unanswered.extend(pending.writes());
                Ok(())
            }
            other => Err(format!("the former guest saw {other:?}")),
        }
    }

    pub(super) fn check_read(&mut self, pending: &Pending, data: &Bytes) -> Result<(), String> {
        if data.len() as u64 != pending.count * BLOCK {
            return Err(format!(
                "a read of {} blocks returned {} bytes",
                pending.count,
                data.len()
            ));
        }
        let now = self.world.now;
        for (block, content) in (pending.first..).zip(data.chunks_exact(4096)) {
            let found = u64::from_le_bytes(content[..8].try_into().expect("eight bytes"));
            if content.chunks_exact(8).any(|word| word != found.to_le_bytes()) {
                return Err(format!("block {block} is torn"));
            }
            self.note(found);
            self.registers.check_read(block, found, pending.began, now).map_err(|wrong| {
                let Wrong { block, found, why } = wrong;
                format!("block {block} held {found}: {why}")
            })?;
        }
        Ok(())
    }

    pub(super) fn note(&mut self, content: u64) {
        let mixed = self.outcome.digest.rotate_left(7) ^ content ^ self.world.now.as_nanos();
        self.outcome.digest = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
