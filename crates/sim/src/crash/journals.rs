//! Journals that lie apart and are not the ones of their drives.
//!
//! Decides: that each is refused, and nothing is written then: what such a journal lacks was
//! acknowledged.

use format::disk::apart::{JOURNAL_HEADS_BYTES, JournalHead};

use super::{bench::Bench, plan::Plan, trace::Trace};
use crate::drive::image::{Image, Images};

/// `now` has been opened since `before`.
pub fn check_journals(plan: &Plan, before: Images, now: Images) -> Result<(), String> {
    let heads = now.journal.read(0, usize::try_from(JOURNAL_HEADS_BYTES).expect("two blocks"));
    let head = JournalHead::newest(&heads).ok_or("an open drive's journal has no head")?;
    let mut other = head;
    other.uuid.0[0] ^= 1;
    let longer = JournalHead { bytes: head.bytes + 4096, ..head };
    let mut rotten = now.journal.clone();
    rotten.rot(0, 77);
    rotten.rot(1, 2000);
    let journals = [
        ("from before it was opened", before.journal.clone()),
        ("blank", Image::default()),
        ("of another drive", with_head(&now.journal, &other)),
        ("of another length", with_head(&now.journal, &longer)),
        ("without a head", rotten),
    ];
    for (what, journal) in journals {
        refused(plan, what, Images { data: now.data.clone(), journal })?;
    }
    let data = Image::default();
    refused(plan, "of a drive that is gone", Images { data, journal: now.journal.clone() })?;
    // One whole copy of the head is enough.
    let mut images = now;
    images.journal.rot(head.generation % 2, 200);
    Bench::open(plan.geometry, images, Trace::default()).map(drop)
}

fn with_head(journal: &Image, head: &JournalHead) -> Image {
    let mut journal = journal.clone();
    let copies = head.encode();
    journal.put(0, copies.slice(..4096));
    journal.put(1, copies.slice(4096..));
    journal
}

fn refused(plan: &Plan, what: &str, images: Images) -> Result<(), String> {
    let bench = Bench::tried(plan.geometry, images, Trace::default());
    if bench.out_of_service.is_none() {
        return Err(format!("a journal {what} is taken for the drive's"));
    }
    if bench.unstable_writes() > 0 || !bench.durable_writes.is_empty() {
        return Err(format!("a journal {what} is refused, and something was written"));
    }
    Ok(())
}
