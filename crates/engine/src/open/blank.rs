//! Formatting a blank drive.
//!
//! Invariant: the superblocks come last, so a crash before them starts it again. The head of a
//! journal that lies apart comes right before them.

use bytes::Bytes;
use format::disk::{BLOCK_LEN, JournalPlace, Layout, page};
use model::units::{BLOCK, BLOCK_BYTES};

use super::{Opening, Step, is_zero, journal_device, step};
use crate::api::{Action, Device};

/// Whether a drive that begins with two blocks of zeros is nobody's, by what follows them up to the
/// end of the first page: many file systems leave their beginning alone, and have what tells of them
/// within 64 KiB and a little (btrfs, ZFS, ISO 9660). The gap before the pages is zeros on every drive
/// of ours; the first page is one of ours if the superblocks were wiped.
pub(super) fn is_free(layout: &Layout, behind: &[u8]) -> bool {
    let gap = usize::try_from(layout.pages_offset).expect("near the beginning") - 2 * BLOCK_LEN;
    let (gap, first) = behind.split_at(gap);
    is_zero(gap) && (is_zero(first) || first.starts_with(&page::MAGIC.to_le_bytes()))
}

impl Opening {
    pub(super) fn read_rows_area(&mut self, half: u8, first: u32, out: &mut Vec<Action>) {
        let length = self.rows_len(first);
        self.read(self.layout.page_offset(first, half), length, out);
        self.step = Step::WipeRows { half, first, wiping: false };
    }

    fn rows_len(&self, first: u32) -> u32 {
        step(u64::from(self.layout.replica_pages - first) * BLOCK)
    }

    /// Rows must be zeros or ours. A thin drive's are zeros, and stay unwritten. Descriptor pages
    /// are not looked at before they are written.
    pub(super) fn wipe_rows(
        &mut self,
        half: u8,
        first: u32,
        wiping: bool,
        bytes: &Bytes,
        out: &mut Vec<Action>,
    ) {
        let length = self.rows_len(first);
        if !wiping && !is_zero(bytes) {
            let at = self.layout.page_offset(first, half);
            self.write_zeros(Device::Data, at, length, out);
            self.step = Step::WipeRows { half, first, wiping: true };
            return;
        }
        let next = first + length / BLOCK_BYTES;
        if next < self.layout.replica_pages {
            self.read_rows_area(half, next, out);
        } else if half == 0 {
            self.read_rows_area(1, 0, out);
        } else {
            self.wipe_journal(self.layout.journal_offset, out);
        }
    }

    /// The journal is written once, so that later writes to it change no file system's metadata.
    pub(super) fn wipe_journal(&mut self, at: u64, out: &mut Vec<Action>) {
        let end = self.layout.journal_offset + self.layout.journal_bytes;
        if at == end {
            match self.layout.journal {
                JournalPlace::Inside => self.format_flush(out),
                JournalPlace::Apart => self.format_journal_head(out),
            }
            return;
        }
        let length = step(end - at);
        self.write_zeros(journal_device(&self.layout), at, length, out);
        self.step = Step::WipeJournal { at: at + u64::from(length) };
    }

    pub(super) fn format_flush(&mut self, out: &mut Vec<Action>) {
        self.flush(out);
        self.step = Step::FormatFlush;
    }

    /// The first of the two.
    pub(super) fn format_superblock(&mut self, out: &mut Vec<Action>) {
        self.put_superblock(out);
        self.step = Step::FormatSuperblock;
    }
}
