//! The thread that owns the metadata store, and how records lie in it.
//!
//! Invariants: one commit at a time; its answer comes once, after it is durable; after a failure
//! nothing more is written.

use std::thread::JoinHandle;

use anyhow::{Context, bail};
use control::state::Write as RecordWrite;
use format::record::Record;
use model::{id::VolumeId, state::ModificationState};
use tokio::sync::mpsc;

use crate::store::{MetaStore, Precondition, Range, StoreError, Term, Write};

/// Whose store this is. Not a record: the machine never sees it.
const CLUSTER_KEY: &str = "cluster";
const LOAD_PAGE: usize = 1000;

struct Commit {
    commit: u64,
    writes: Vec<Write>,
    /// What the log says once it is durable.
    steps: Vec<Step>,
}

/// Where a modification stands: an operator follows it in the log.
struct Step {
    volume: VolumeId,
    state: ModificationState,
    step: String,
    progress_percent: u8,
}

pub(super) struct Commits {
    /// `None` once closed.
    queue: Option<mpsc::Sender<Commit>>,
    results: mpsc::Receiver<Result<u64, StoreError>>,
    thread: Option<JoinHandle<()>>,
}

impl Commits {
    pub(super) fn start(mut store: Box<dyn MetaStore>, term: Term) -> std::io::Result<Self> {
        let (queue, mut commits) = mpsc::channel::<Commit>(1);
        let (results_in, results) = mpsc::channel(1);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            while let Some(Commit { commit, writes, steps }) = commits.blocking_recv() {
                let result = store.txn(term, &[], &writes).map(|_| commit);
                let failed = result.is_err();
                for Step { volume, state, step, progress_percent } in steps {
                    tracing::info!(%volume, %state, %step, progress_percent, "modification");
                }
                if results_in.blocking_send(result).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self { queue: Some(queue), results, thread: Some(thread) })
    }

    pub(super) fn begin(&self, commit: u64, writes: &[RecordWrite]) {
        let steps = writes.iter().filter_map(step).collect();
        let writes = writes.iter().map(encode).collect();
        // After a failure the queue is closed, and `committed` is about to say why.
        match self.queue.as_ref().map(|queue| queue.try_send(Commit { commit, writes, steps })) {
            Some(Ok(()) | Err(mpsc::error::TrySendError::Closed(_))) | None => {}
            Some(Err(mpsc::error::TrySendError::Full(_))) => {
                panic!("the machine began commit {commit} with two under way")
            }
        }
    }

    /// Waits for the commit that is under way; for ever when there is none.
    pub(super) async fn committed(&mut self) -> Result<u64, StoreError> {
        match self.results.recv().await {
            Some(result) => result,
            None => std::future::pending().await,
        }
    }

    /// Lets the commit that is under way finish, and closes the store.
    pub(super) fn close(&mut self) {
        drop(self.queue.take());
        self.results.close();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a panic would have stopped the process");
        }
    }
}

fn step(write: &RecordWrite) -> Option<Step> {
    match write {
        RecordWrite::Put(Record::Modification(m)) => Some(Step {
            volume: m.volume,
            state: m.state,
            step: m.step.clone(),
            progress_percent: m.progress_percent,
        }),
        _ => None,
    }
}

fn encode(write: &RecordWrite) -> Write {
    match write {
        RecordWrite::Put(record) => {
            let value = serde_json::to_vec(record).expect("records always serialize");
            Write::Put { key: record.key(), value }
        }
        RecordWrite::Delete(record) => Write::Delete { key: record.key() },
    }
}

/// Every record of the store.
pub(super) fn load(store: &dyn MetaStore) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let range = Range { prefix: "", after: after.as_deref(), entries_max: LOAD_PAGE };
        let entries = store.range(range)?;
        let Some(last) = entries.last() else { return Ok(records) };
        after = Some(last.key.clone());
        for entry in entries.iter().filter(|entry| entry.key != CLUSTER_KEY) {
            let record: Record = serde_json::from_slice(&entry.value).with_context(|| {
                format!("the metadata store's record '{}' does not parse", entry.key)
            })?;
            if record.key() != entry.key {
                bail!("the metadata store holds '{}' under '{}'", record.key(), entry.key);
            }
            records.push(record);
        }
    }
}

/// A store serves one cluster, from its first start on.
pub(super) fn check_cluster(
    store: &mut dyn MetaStore,
    term: Term,
    cluster: &str,
) -> anyhow::Result<()> {
    match store.get(CLUSTER_KEY)? {
        Some(entry) if entry.value == cluster.as_bytes() => Ok(()),
        Some(entry) => bail!(
            "the metadata store belongs to cluster '{}', the configuration names '{cluster}': \
             correct `cluster` or `store`",
            String::from_utf8_lossy(&entry.value)
        ),
        None => {
            let key = CLUSTER_KEY.to_owned();
            let absent = Precondition::Absent { key: key.clone() };
            let write = Write::Put { key, value: cluster.as_bytes().to_vec() };
            store.txn(term, &[absent], &[write])?;
            Ok(())
        }
    }
}
