//! The metadata store: the durable, ordered keys from which a manager rebuilds its memory.
//!
//! Decides: that no transaction of an older manager takes effect, and that a transaction takes
//! effect whole or not at all.
//! Does not: know what the keys mean.
//! Invariants:
//! - Terms only grow. Once [`MetaStore::take_over`] has answered, every transaction under an older
//!   term is refused: the term is a precondition of each.
//! - A transaction that was answered is durable.
//! - Every write of a key gives it a revision larger than all before it.
//! - Keys below [`RESERVED`] are the store's own: never shown, never written by a caller.

#[cfg(test)]
mod memory;
mod sqlite;

#[cfg(test)]
mod contract;

use std::{fmt, path::PathBuf};

#[cfg(test)]
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Where a store keeps what it needs itself: its schema, the term, the last revision.
const RESERVED: &str = "meta/";

/// Grows by one with each manager that takes the store over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of a write among all writes of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    pub revision: Revision,
}

/// What must hold for a transaction to take effect, beside its term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    Absent {
        key: String,
    },
    /// The key exists and was last written at this revision.
    #[cfg_attr(not(test), expect(dead_code, reason = "the manager alone writes what it rewrites"))]
    Unchanged {
        key: String,
        revision: Revision,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
}

impl Write {
    fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Which keys to read: those that begin with `prefix` and come after `after`, in order.
#[derive(Debug, Clone, Copy)]
pub struct Range<'a> {
    pub prefix: &'a str,
    pub after: Option<&'a str>,
    pub entries_max: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The caller must stop at once: it is no longer the manager.
    #[error(
        "another manager has taken over the metadata store: this one holds term {held}, the store \
         is at term {stored}. Run one manager per store"
    )]
    StaleTerm { held: Term, stored: Term },
    /// Nothing was written.
    #[error("the key '{key}' is not as the transaction expects")]
    Conflict { key: String },
    #[error(
        "metadata store {path} has schema {found}, this program knows {known}: start the version \
         that wrote it"
    )]
    Schema { path: PathBuf, found: String, known: u64 },
    #[error("metadata store {path}: its own entry '{key}' does not parse")]
    Damaged { path: PathBuf, key: &'static str },
    #[error("metadata store {path}: cannot {attempt}")]
    File {
        path: PathBuf,
        attempt: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// Whether a transaction took effect is unknown: the caller must stop and start again.
    #[error("metadata store {path}: cannot {attempt}")]
    Sqlite {
        path: PathBuf,
        attempt: &'static str,
        #[source]
        source: rusqlite::Error,
    },
}

/// Ordered keys with transactional preconditions.
pub trait MetaStore: Send {
    /// Makes the caller the only one whose transactions take effect.
    fn take_over(&mut self) -> Result<Term, StoreError>;

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    fn range(&self, range: Range<'_>) -> Result<Vec<Entry>, StoreError>;

    /// Does all of `writes`, in order, durably, if `term` is the store's and every precondition
    /// holds; else nothing.
    fn txn(
        &mut self,
        term: Term,
        preconditions: &[Precondition],
        writes: &[Write],
    ) -> Result<Revision, StoreError>;
}

/// Reserved keys in a transaction are our own bug.
fn assert_keys(preconditions: &[Precondition], writes: &[Write]) {
    for condition in preconditions {
        let (Precondition::Absent { key } | Precondition::Unchanged { key, .. }) = condition;
        assert!(!key.starts_with(RESERVED), "precondition on reserved key '{key}'");
    }
    for write in writes {
        assert!(!write.key().starts_with(RESERVED), "write to reserved key '{}'", write.key());
    }
}
