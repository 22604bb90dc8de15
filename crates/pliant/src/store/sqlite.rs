//! The metadata store in one SQLite file: for a manager on one machine.
//!
//! Write-ahead log and `synchronous=FULL`, so that a transaction that was answered survives a
//! crash of the machine. The file is readable by its owner alone: it holds the secrets of access
//! keys. Everything is in one table, so that the `sqlite3` program shows it all.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{Entry, MetaStore, Precondition, RESERVED, Range, Revision, StoreError, Term, Write};

const SCHEMA: u64 = 1;
const SCHEMA_KEY: &str = "meta/schema";
const TERM_KEY: &str = "meta/term";
const REVISION_KEY: &str = "meta/revision";

/// Another manager holds the file for one transaction at a time.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    connection: Connection,
}

impl SqliteStore {
    /// Opens the store, and makes it when there is none.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_private(path)?;
        let connection =
            Connection::open(path).map_err(|source| error(path, "open the file", source))?;
        let mut store = Self { path: path.to_owned(), connection };
        store.prepare().map_err(|source| error(path, "prepare the file", source))?;
        store.check_schema()?;
        Ok(store)
    }

    fn prepare(&mut self) -> rusqlite::Result<()> {
        self.connection.busy_timeout(BUSY_LIMIT)?;
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS kv (
                 key TEXT PRIMARY KEY NOT NULL,
                 value BLOB NOT NULL,
                 rev INTEGER NOT NULL
             ) WITHOUT ROWID",
            [],
        )?;
        self.connection.execute(
            "INSERT INTO kv (key, value, rev) VALUES (?1, ?2, 0), (?3, ?4, 0), (?5, ?4, 0)
             ON CONFLICT (key) DO NOTHING",
            params![SCHEMA_KEY, text(SCHEMA), TERM_KEY, text(0), REVISION_KEY],
        )?;
        Ok(())
    }

    fn check_schema(&self) -> Result<(), StoreError> {
        let found: Vec<u8> = self
            .connection
            .query_row("SELECT value FROM kv WHERE key = ?1", [SCHEMA_KEY], |row| row.get(0))
            .map_err(|source| error(&self.path, "read its schema", source))?;
        if found == text(SCHEMA) {
            return Ok(());
        }
        Err(StoreError::Schema {
            path: self.path.clone(),
            found: String::from_utf8_lossy(&found).into_owned(),
            known: SCHEMA,
        })
    }
}

impl MetaStore for SqliteStore {
    fn take_over(&mut self) -> Result<Term, StoreError> {
        let path = self.path.clone();
        let attempt = |source| error(&path, "take it over", source);
        let txn = begin(&mut self.connection).map_err(attempt)?;
        let term = read_number(&txn, &path, TERM_KEY)? + 1;
        write_number(&txn, TERM_KEY, term).map_err(attempt)?;
        txn.commit().map_err(attempt)?;
        Ok(Term(term))
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if key.starts_with(RESERVED) {
            return Ok(None);
        }
        self.connection
            .prepare_cached("SELECT key, value, rev FROM kv WHERE key = ?1")
            .and_then(|mut statement| statement.query_row([key], read_entry).optional())
            .map_err(|source| error(&self.path, "read", source))
    }

    fn range(&self, range: Range<'_>) -> Result<Vec<Entry>, StoreError> {
        let read = || -> rusqlite::Result<Vec<Entry>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT key, value, rev FROM kv WHERE key >= ?1 AND key > ?2 ORDER BY key",
            )?;
            let mut rows = statement.query([range.prefix, range.after.unwrap_or_default()])?;
            let mut entries = Vec::new();
            while entries.len() < range.entries_max
                && let Some(row) = rows.next()?
            {
                let entry = read_entry(row)?;
                if !entry.key.starts_with(range.prefix) {
                    break;
                }
                if !entry.key.starts_with(RESERVED) {
                    entries.push(entry);
                }
            }
            Ok(entries)
        };
        read().map_err(|source| error(&self.path, "read", source))
    }

    fn txn(
        &mut self,
        term: Term,
        preconditions: &[Precondition],
        writes: &[Write],
    ) -> Result<Revision, StoreError> {
        super::assert_keys(preconditions, writes);
        let path = self.path.clone();
        let attempt = |source| error(&path, "commit", source);
        let txn = begin(&mut self.connection).map_err(attempt)?;
        let stored = Term(read_number(&txn, &path, TERM_KEY)?);
        if stored != term {
            return Err(StoreError::StaleTerm { held: term, stored });
        }
        for condition in preconditions {
            let (Precondition::Absent { key } | Precondition::Unchanged { key, .. }) = condition;
            if !holds(&txn, condition).map_err(attempt)? {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        let revision = read_number(&txn, &path, REVISION_KEY)? + 1;
        write_number(&txn, REVISION_KEY, revision).map_err(attempt)?;
        for write in writes {
            apply(&txn, write, revision).map_err(attempt)?;
        }
        txn.commit().map_err(attempt)?;
        Ok(Revision(revision))
    }
}

/// Makes the file, readable by its owner alone, before SQLite does; its other files take the
/// mode from it. A file that others can read is closed to them.
fn create_private(path: &Path) -> Result<(), StoreError> {
    let failed =
        |attempt| move |source| StoreError::File { path: path.to_owned(), attempt, source };
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            let directory = fs::File::open(parent.unwrap_or(Path::new(".")));
            directory.and_then(|d| d.sync_all()).map_err(failed("make the file durable"))
        }
        Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            let metadata = fs::metadata(path).map_err(failed("look at the file"))?;
            if metadata.permissions().mode() & 0o077 == 0 {
                return Ok(());
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))
                .map_err(failed("close the file to other users"))
        }
        Err(source) => Err(failed("make the file")(source)),
    }
}

fn error(path: &Path, attempt: &'static str, source: rusqlite::Error) -> StoreError {
    StoreError::Sqlite { path: path.to_owned(), attempt, source }
}

/// Takes the write lock at once, so that what is read is what will be written over.
fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

fn text(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

fn read_number(txn: &Transaction<'_>, path: &Path, key: &'static str) -> Result<u64, StoreError> {
    let stored: Vec<u8> = txn
        .prepare_cached("SELECT value FROM kv WHERE key = ?1")
        .and_then(|mut statement| statement.query_row([key], |row| row.get(0)))
        .map_err(|source| error(path, "read its own entry", source))?;
    std::str::from_utf8(&stored)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| StoreError::Damaged { path: path.to_owned(), key })
}

fn write_number(txn: &Transaction<'_>, key: &str, number: u64) -> rusqlite::Result<()> {
    let mut statement = txn.prepare_cached("UPDATE kv SET value = ?2 WHERE key = ?1")?;
    let changed = statement.execute(params![key, text(number)])?;
    assert_eq!(changed, 1, "'{key}' was read in this transaction");
    Ok(())
}

fn holds(txn: &Transaction<'_>, condition: &Precondition) -> rusqlite::Result<bool> {
    let (Precondition::Absent { key } | Precondition::Unchanged { key, .. }) = condition;
    let stored = txn
        .prepare_cached("SELECT key, value, rev FROM kv WHERE key = ?1")?
        .query_row([key], read_entry)
        .optional()?;
    Ok(match condition {
        Precondition::Absent { .. } => stored.is_none(),
        Precondition::Unchanged { revision, .. } => stored.is_some_and(|e| e.revision == *revision),
    })
}

fn apply(txn: &Transaction<'_>, write: &Write, revision: u64) -> rusqlite::Result<()> {
    match write {
        Write::Put { key, value } => {
            let revision = i64::try_from(revision).expect("fewer than 2^63 transactions");
            txn.prepare_cached(
                "INSERT INTO kv (key, value, rev) VALUES (?1, ?2, ?3)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value, rev = excluded.rev",
            )?
            .execute(params![key, value, revision])?;
        }
        Write::Delete { key } => {
            txn.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute([key])?;
        }
    }
    Ok(())
}

fn read_entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let revision: i64 = row.get(2)?;
    let revision = u64::try_from(revision)
        .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(2, revision))?;
    Ok(Entry { key: row.get(0)?, value: row.get(1)?, revision: Revision(revision) })
}
