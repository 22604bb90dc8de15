//! A journal that lies apart: whether it is this drive's, and its head, which every superblock
//! follows.
//!
//! Decides: that a drive without its journal, or with an older one, is refused.
//! Invariants: neither device is written to before both are known to belong together; no superblock
//! names a head that is not durable; what opens has a generation that no earlier copy has.

use bytes::Bytes;
use format::disk::{
    BLOCK_LEN, JournalPlace,
    apart::{JOURNAL_HEADS_BYTES, JournalHead, JournalMismatch},
};

use super::{Opening, Step, is_zero};
use crate::{
    api::{Action, Device, Durability},
    sabotage::{Sabotage, is_on},
};

const WHAT_IT_HAS: &str = "The journal has acknowledged changes that are nowhere else: bring back \
                           the journal (and the drive) that were formatted together. If it is \
                           lost, wipe the first 8 KiB of both to format them anew; replicas are \
                           then filled from their other copies";

impl Opening {
    /// The heads of the journal, if it lies apart, are read before anything is decided.
    pub(super) fn read_journal_heads(&mut self, superblocks: Bytes, out: &mut Vec<Action>) {
        let length = u32::try_from(JOURNAL_HEADS_BYTES).expect("two blocks");
        self.read_from(Device::Journal, 0, length, out);
        self.step = Step::JournalHeads { superblocks };
    }

    /// The drive is blank: so must its journal be, or left by a crash while both were formatted.
    pub(super) fn check_blank_journal(&self, heads: &[u8]) -> Result<(), String> {
        if self.layout.journal == JournalPlace::Inside || is_zero(heads) {
            return Ok(());
        }
        match JournalHead::newest(heads) {
            Some(head) if head.generation == 0 => Ok(()),
            Some(_) => Err(format!(
                "the drive is blank, and what its 'journal_path' names is the journal of a drive \
                 in use. {WHAT_IT_HAS}"
            )),
            None => Err(format!(
                "the drive is blank, and {}; wipe the first 8 KiB of it, if nobody needs it",
                JournalMismatch::Alien
            )),
        }
    }

    /// The drive has a superblock: its journal must be the one that this was written with.
    pub(super) fn check_journal(&mut self, heads: &[u8]) -> Result<(), String> {
        if self.layout.journal == JournalPlace::Inside {
            return Ok(());
        }
        let found = match JournalHead::newest(heads) {
            Some(head) => {
                let checked = head.check(&self.superblock, self.layout.journal_device_bytes());
                checked.map(|()| head)
            }
            None if is_zero(heads) => Err(JournalMismatch::Blank),
            None => Err(JournalMismatch::Alien),
        };
        match found {
            Ok(head) => self.journal_seen = head.generation,
            Err(_) if is_on(Sabotage::JournalUnchecked) => {}
            Err(mismatch) => return Err(format!("{mismatch}. {WHAT_IT_HAS}")),
        }
        Ok(())
    }

    /// Before there is a superblock: whoever finds this head knows that nothing was ever
    /// acknowledged. The zeros behind it are stable with it.
    pub(super) fn format_journal_head(&mut self, out: &mut Vec<Action>) {
        self.put_journal_head(0, out);
        self.step = Step::FormatHead;
    }

    /// The superblock comes next: at once, or when the head that it names is durable.
    pub(super) fn begin_superblock(&mut self, out: &mut Vec<Action>) {
        if self.layout.journal == JournalPlace::Inside {
            self.put_superblock(out);
            self.step = Step::Superblock;
            return;
        }
        let seen = self.journal_seen.max(self.superblock.journal_generation);
        let next = if is_on(Sabotage::GenerationKept) { seen } else { seen + 1 };
        self.put_journal_head(next, out);
        self.superblock.journal_generation = next;
        self.step = Step::JournalHead;
    }

    /// Whatever was found in the journal, and wiped, is stable with it.
    fn put_journal_head(&mut self, generation: u64, out: &mut Vec<Action>) {
        let head = JournalHead {
            uuid: self.superblock.uuid,
            bytes: self.layout.journal_device_bytes(),
            generation,
            previous: self.superblock.journal_generation,
        };
        let data = head.encode();
        assert_eq!(data.len(), 2 * BLOCK_LEN);
        self.write(Device::Journal, 0, vec![data], Durability::Everything, out);
    }
}
