//! What every metadata store must do, run on each of them.
//!
//! Fault model: the process dies at any moment (a handle is dropped, or its transaction is left
//! unfinished); another manager takes over at any moment.

use std::path::PathBuf;

use super::*;

/// A place that stores can be opened at, again and again.
trait Site {
    type Store: MetaStore;

    fn open(&self) -> Self::Store;
}

struct Memory(MemoryStore);

impl Site for Memory {
    type Store = MemoryStore;

    fn open(&self) -> MemoryStore {
        self.0.clone()
    }
}

struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let name = format!("pliant-store-{}-{test}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("metadata.sqlite")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Site for Directory {
    type Store = SqliteStore;

    fn open(&self) -> SqliteStore {
        SqliteStore::open(&self.file()).expect("the store opens")
    }
}

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec() }
}

fn delete(key: &str) -> Write {
    Write::Delete { key: key.to_owned() }
}

fn keys(store: &impl MetaStore, prefix: &str, after: Option<&str>, max: usize) -> Vec<String> {
    let range = Range { prefix, after, entries_max: max };
    let entries = store.range(range).expect("range");
    entries.into_iter().map(|e| e.key).collect()
}

fn value(store: &impl MetaStore, key: &str) -> Option<String> {
    let entry = store.get(key).expect("get")?;
    Some(String::from_utf8(entry.value).expect("the tests write text"))
}

fn a_write_is_read_back_and_a_delete_removes_it(site: &impl Site) {
    let mut store = site.open();
    let term = store.take_over().expect("take over");
    store.txn(term, &[], &[put("volume/1", "a"), put("volume/2", "b")]).expect("txn");
    assert_eq!(value(&store, "volume/1").as_deref(), Some("a"));
    store.txn(term, &[], &[put("volume/1", "c"), delete("volume/2")]).expect("txn");
    assert_eq!(value(&store, "volume/1").as_deref(), Some("c"));
    assert_eq!(value(&store, "volume/2"), None);
    store.txn(term, &[], &[delete("volume/absent")]).expect("deleting nothing is done at once");
}

fn ranges_are_in_order_and_page(site: &impl Site) {
    let mut store = site.open();
    let term = store.take_over().expect("take over");
    let names = ["b/3", "b/1", "a/9", "b/2", "b/10", "b", "c/1", "b0"];
    let writes: Vec<_> = names.iter().map(|key| put(key, key)).collect();
    store.txn(term, &[], &writes).expect("txn");
    assert_eq!(keys(&store, "b/", None, 10), ["b/1", "b/10", "b/2", "b/3"]);
    assert_eq!(keys(&store, "b/", None, 2), ["b/1", "b/10"]);
    assert_eq!(keys(&store, "b/", Some("b/10"), 2), ["b/2", "b/3"]);
    assert_eq!(keys(&store, "b/", Some("b/3"), 2), [""; 0]);
    let mut all = names.map(str::to_owned);
    all.sort();
    assert_eq!(keys(&store, "", None, 100), all, "and nothing of the store's own");
}

fn a_failed_precondition_changes_nothing(site: &impl Site) {
    let mut store = site.open();
    let term = store.take_over().expect("take over");
    store.txn(term, &[], &[put("k", "1")]).expect("txn");
    let absent = Precondition::Absent { key: "k".to_owned() };
    let refused = store.txn(term, &[absent], &[put("other", "x"), put("k", "2")]);
    assert!(matches!(refused, Err(StoreError::Conflict { key }) if key == "k"));
    assert_eq!(value(&store, "k").as_deref(), Some("1"));
    assert_eq!(value(&store, "other"), None);
}

fn a_revision_names_one_write(site: &impl Site) {
    let mut store = site.open();
    let term = store.take_over().expect("take over");
    let unchanged = |revision| [Precondition::Unchanged { key: "k".to_owned(), revision }];
    let first = store.txn(term, &[], &[put("k", "1")]).expect("txn");
    assert_eq!(store.get("k").expect("get").expect("written").revision, first);
    let second = store.txn(term, &unchanged(first), &[put("k", "2")]).expect("txn");
    assert!(second > first);
    let stale = store.txn(term, &unchanged(first), &[put("k", "3")]);
    assert!(matches!(stale, Err(StoreError::Conflict { .. })));
    store.txn(term, &unchanged(second), &[delete("k")]).expect("txn");
    let gone = store.txn(term, &unchanged(second), &[put("k", "4")]);
    assert!(matches!(gone, Err(StoreError::Conflict { .. })));
    let again = store.txn(term, &[], &[put("k", "5")]).expect("txn");
    assert!(again > second, "a revision is not given twice, not even after a delete");
}

fn an_older_term_is_refused(site: &impl Site) {
    let mut old = site.open();
    let mut new = site.open();
    let old_term = old.take_over().expect("take over");
    old.txn(old_term, &[], &[put("k", "old")]).expect("the only manager");
    let new_term = new.take_over().expect("take over");
    assert!(new_term > old_term);
    let refused = old.txn(old_term, &[], &[put("k", "late")]);
    assert!(matches!(refused, Err(StoreError::StaleTerm { held, stored })
        if held == old_term && stored == new_term));
    assert_eq!(value(&new, "k").as_deref(), Some("old"));
    new.txn(new_term, &[], &[put("k", "new")]).expect("the new manager goes on");
    let refused = old.txn(old_term, &[], &[]);
    assert!(matches!(refused, Err(StoreError::StaleTerm { .. })), "even when it writes nothing");
}

fn what_was_answered_survives_a_reopen(site: &impl Site) {
    let mut store = site.open();
    let term = store.take_over().expect("take over");
    let last = store.txn(term, &[], &[put("k", "kept")]).expect("txn");
    drop(store);
    let mut store = site.open();
    assert_eq!(value(&store, "k").as_deref(), Some("kept"));
    let next = store.take_over().expect("take over");
    assert!(next > term, "terms grow over restarts");
    assert!(store.txn(next, &[], &[put("k", "x")]).expect("txn") > last);
}

macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        mod memory_store {
            $(#[test] fn $name() { super::$name(&super::Memory(super::MemoryStore::default())); })+
        }
        mod sqlite_store {
            $(#[test] fn $name() { super::$name(&super::Directory::new(stringify!($name))); })+
        }
    };
}

contract!(
    a_write_is_read_back_and_a_delete_removes_it,
    ranges_are_in_order_and_page,
    a_failed_precondition_changes_nothing,
    a_revision_names_one_write,
    an_older_term_is_refused,
    what_was_answered_survives_a_reopen,
);

/// A copy of the files at any moment is what a crash leaves: a transaction that was answered is
/// in it, one that was not finished is not.
#[test]
fn a_crash_in_the_middle_of_a_transaction_leaves_the_last_whole_one() {
    let site = Directory::new("crash");
    let mut store = site.open();
    let term = store.take_over().expect("take over");
    store.txn(term, &[], &[put("a", "1"), put("b", "1")]).expect("txn");

    let unfinished = rusqlite::Connection::open(site.file()).expect("open");
    unfinished
        .execute_batch("BEGIN IMMEDIATE; UPDATE kv SET value = '2' WHERE key = 'a';")
        .expect("half of a transaction");
    let after = Directory::new("crash-after");
    for suffix in ["", "-wal"] {
        let name = format!("metadata.sqlite{suffix}");
        std::fs::copy(site.0.join(&name), after.0.join(&name)).expect("copy");
    }
    let recovered = after.open();
    assert_eq!(value(&recovered, "a").as_deref(), Some("1"));
    assert_eq!(value(&recovered, "b").as_deref(), Some("1"));
}

#[test]
fn only_the_owner_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let site = Directory::new("mode");
    std::fs::write(site.file(), "").expect("write");
    std::fs::set_permissions(site.file(), std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let mut store = site.open();
    store.take_over().expect("take over");
    for entry in std::fs::read_dir(&site.0).expect("list") {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is open to others", entry.path().display());
    }
}

#[test]
fn a_newer_schema_is_refused_by_name() {
    let site = Directory::new("schema");
    drop(site.open());
    let connection = rusqlite::Connection::open(site.file()).expect("open");
    connection
        .execute("UPDATE kv SET value = CAST('2' AS BLOB) WHERE key = 'meta/schema'", [])
        .expect("update");
    let refused = SqliteStore::open(&site.file()).expect_err("schema 2 is not known");
    assert!(matches!(&refused, StoreError::Schema { found, known: 1, .. } if found == "2"));
}
