//! A metadata store in memory, for tests: several handles may share one, as managers share a
//! file. A handle that is dropped loses nothing; "durable" means "in the shared map".

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{Entry, MetaStore, Precondition, RESERVED, Range, Revision, StoreError, Term, Write};

#[derive(Debug, Default)]
struct Contents {
    term: u64,
    revision: u64,
    entries: BTreeMap<String, (Vec<u8>, Revision)>,
}

#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    contents: Arc<Mutex<Contents>>,
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().expect("nothing panics while it holds the lock")
    }
}

impl MetaStore for MemoryStore {
    fn take_over(&mut self) -> Result<Term, StoreError> {
        let mut contents = self.lock();
        contents.term += 1;
        Ok(Term(contents.term))
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let found = self.lock().entries.get(key).cloned();
        Ok(found.map(|(value, revision)| Entry { key: key.to_owned(), value, revision }))
    }

    fn range(&self, range: Range<'_>) -> Result<Vec<Entry>, StoreError> {
        let contents = self.lock();
        let entries = contents
            .entries
            .range(range.prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(range.prefix))
            .filter(|(key, _)| range.after.is_none_or(|after| key.as_str() > after))
            .take(range.entries_max)
            .map(|(key, (value, revision))| Entry {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            });
        Ok(entries.collect())
    }

    fn txn(
        &mut self,
        term: Term,
        preconditions: &[Precondition],
        writes: &[Write],
    ) -> Result<Revision, StoreError> {
        super::assert_keys(preconditions, writes);
        let mut contents = self.lock();
        if term.0 != contents.term {
            return Err(StoreError::StaleTerm { held: term, stored: Term(contents.term) });
        }
        for condition in preconditions {
            let (key, holds) = match condition {
                Precondition::Absent { key } => (key, !contents.entries.contains_key(key)),
                Precondition::Unchanged { key, revision } => {
                    let found = contents.entries.get(key);
                    (key, found.is_some_and(|(_, stored)| stored == revision))
                }
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        contents.revision += 1;
        let revision = Revision(contents.revision);
        for write in writes {
            match write {
                Write::Put { key, value } => {
                    drop(contents.entries.insert(key.clone(), (value.clone(), revision)));
                }
                Write::Delete { key } => drop(contents.entries.remove(key)),
            }
        }
        debug_assert!(!contents.entries.keys().any(|key| key.starts_with(RESERVED)));
        Ok(revision)
    }
}
