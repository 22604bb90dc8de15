//! Checks what a guest saw: every 4 KiB block is a register.
//!
//! Each write has a content of its own. A read may return a write's content if that write began
//! before the read ended, and no other write that began after it had been answered was itself
//! answered before the read began. Also, once a read returned a content, a later read may not
//! return one that was overwritten for certain before it: by a write, or by whatever put there the
//! other content that a read has seen meanwhile. Unanswered writes may take effect or not; those of
//! a guest that has lost the volume, only until its successor was answered.

use std::collections::BTreeMap;

use model::time::Instant;

#[derive(Debug, Clone, Copy)]
struct Written {
    content: u64,
    began: Instant,
    /// Nothing while it is unanswered.
    answered: Option<Instant>,
    /// When a read first returned it: it has taken effect by then, answered or not.
    seen: Option<Instant>,
    /// Its guest lost the volume: by then it has taken effect, or never will.
    fenced: Option<Instant>,
    /// When a read had returned another content that must have replaced this one.
    replaced: Option<Instant>,
}

impl Written {
    fn begun(content: u64, began: Instant) -> Self {
        Self { content, began, answered: None, seen: None, fenced: None, replaced: None }
    }

    /// By when it had taken effect for certain.
    fn effective(&self) -> Option<Instant> {
        let fenced = self.fenced.filter(|_| self.seen.is_some() || self.answered.is_some());
        [self.answered, self.seen, fenced].into_iter().flatten().min()
    }
}

#[derive(Debug, Default)]
pub struct Registers {
    blocks: BTreeMap<u64, Vec<Written>>,
}

/// A block held what it could not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub block: u64,
    pub found: u64,
    pub why: String,
}

impl Registers {
    pub fn begin_write(&mut self, block: u64, content: u64, now: Instant) {
        let initial = Written { answered: Some(Instant::ZERO), ..Written::begun(0, Instant::ZERO) };
        let history = self.blocks.entry(block).or_insert_with(|| vec![initial]);
        history.push(Written::begun(content, now));
    }

    /// The guest that wrote this and had no answer has lost the volume, and its successor was
    /// answered at `now`.
    pub fn fence(&mut self, block: u64, content: u64, now: Instant) {
        let history = self.blocks.get_mut(&block).expect("begun");
        if let Some(written) = history.iter_mut().find(|w| w.content == content) {
            written.fenced = Some(written.fenced.map_or(now, |at| at.min(now)));
        }
    }

    pub fn end_write(&mut self, block: u64, content: u64, now: Instant) {
        let history = self.blocks.get_mut(&block).expect("begun");
        let written = history.iter_mut().find(|w| w.content == content).expect("begun");
        written.answered = Some(now);
        let (began, cut) = (written.began, now);
        // What had been answered before this write began can no longer be read by anyone who
        // begins from now on; keep a window so that reads in flight can still be judged.
        let keep = history.len().saturating_sub(64);
        if keep > 0 {
            let old = |w: &Written| w.answered.is_some_and(|a| a < began) && w.began < cut;
            let mut index = 0;
            history.retain(|w| {
                index += 1;
                index > keep || !old(w)
            });
        }
    }

    pub fn check_read(
        &mut self,
        block: u64,
        found: u64,
        began: Instant,
        ended: Instant,
    ) -> Result<(), Wrong> {
        let Some(history) = self.blocks.get_mut(&block) else {
            let why = "never written".to_owned();
            return if found == 0 { Ok(()) } else { Err(Wrong { block, found, why }) };
        };
        let Some(index) = history.iter().position(|w| w.content == found) else {
            let why = "no write had this content, or it was overwritten long ago".to_owned();
            return Err(Wrong { block, found, why });
        };
        let seen = history[index];
        if seen.replaced.is_some_and(|at| at < began) {
            let why = "a read had returned what replaced it, before this one began".to_owned();
            return Err(Wrong { block, found, why });
        }
        if seen.fenced.is_some_and(|at| seen.began >= at) {
            let why = "its guest had lost the volume when it wrote this".to_owned();
            return Err(Wrong { block, found, why });
        }
        history[index].seen = Some(seen.seen.map_or(ended, |s| s.min(ended)));
        for other in history.iter_mut().filter(|w| w.content != found) {
            if other.effective().is_some_and(|at| at < began) {
                other.replaced = Some(other.replaced.map_or(ended, |at| at.min(ended)));
            }
        }
        let later = history.iter().find(|w| {
            seen.effective().is_some_and(|a| w.began > a)
                && w.effective().is_some_and(|a| a < began)
        });
        if let Some(later) = later {
            let why = format!("overwritten by {} before the read began", later.content);
            return Err(Wrong { block, found, why });
        }
        Ok(())
    }
}
