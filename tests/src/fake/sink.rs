//! The database: a ledger, how many rows of each object are in the table, and transactions that
//! take their time. What is admitted is decided by the importer's own `admit`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weirgate_common::fault::{Dependency, Fault};
use weirgate_common::ledger::{Failure as FailureRecord, LedgerError, WorkerReport};
use weirgate_importer::failure::Failure;
use weirgate_importer::rows::{self, Chunks, Format, Opened};
use weirgate_importer::sink::admission::{Admission, LedgerRow, RowState, admit};
use weirgate_importer::sink::{Destination, Job, Outcome, Refusal, object_busy};
use weirgate_importer::worker::Journal;

use super::Faults;

#[derive(Clone)]
pub struct FakeSink {
    state: Arc<Mutex<State>>,
    faults: Faults,
    defect: Option<Defect>,
}

/// What a broken one does to one object in seven, so that the checks of tests can be checked.
#[derive(Clone, Copy, Debug)]
pub enum Defect {
    /// Its ledger row is there, its rows are not.
    RowsLost,
    /// Its rows are there, its ledger row is not.
    LedgerLost,
    /// It is said to be there, and nothing is.
    AllLost,
}

type Key = (String, String, String);

#[derive(Default)]
struct State {
    ledger: BTreeMap<Key, Vec<LedgerRow>>,
    /// By the id of the ledger row.
    rows: BTreeMap<i64, u64>,
    locks: BTreeSet<Key>,
    transactions: u64,
    next: i64,
}

fn key(job: &Job<'_>) -> Key {
    (job.feed_name.to_owned(), job.object.bucket.clone(), job.object.key.clone())
}

impl FakeSink {
    pub fn new(faults: Faults) -> Self {
        FakeSink { state: Arc::default(), faults, defect: None }
    }

    pub fn broken(defect: Defect) -> Self {
        FakeSink { defect: Some(defect), ..Self::new(Faults::none()) }
    }

    /// Rows in the table that the ledger knows to be of this key.
    pub fn rows_of(&self, key: &str) -> u64 {
        let state = self.lock();
        let of_key = state.ledger.iter().filter(|((_, _, of), _)| of == key);
        of_key.flat_map(|(_, rows)| rows).filter_map(|row| state.rows.get(&row.id)).sum()
    }

    /// Rows in the table.
    pub fn rows(&self) -> u64 {
        self.lock().rows.values().sum()
    }

    /// Ledger rows, by the key of their objects.
    pub fn ledger(&self) -> BTreeMap<String, Vec<LedgerRow>> {
        let state = self.lock();
        state.ledger.iter().map(|((_, _, key), rows)| (key.clone(), rows.clone())).collect()
    }

    /// How many were committed.
    pub fn transactions(&self) -> u64 {
        self.lock().transactions
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object streams, several come whole.
    async fn read(&self, objects: Vec<Opened>) -> Vec<Result<Chunks, Refusal>> {
        let mut objects: Vec<_> = objects.into_iter().map(|it| (it, Format::Blocks)).collect();
        if objects.len() > 1 {
            let outsized = |chunks: Option<Chunks>| chunks.ok_or(Refusal::Apart);
            let read = rows::gather(objects).await.into_iter();
            return read.map(|it| it.map_err(Refusal::Own).and_then(outsized)).collect();
        }
        match objects.pop() {
            Some((opened, format)) => vec![opened.start(format).await.map_err(Refusal::Own)],
            None => Vec::new(),
        }
    }

    fn outage(&self, detail: &str) -> Failure {
        let fault = match self.faults.kind(2) {
            0 => Fault::Outage(Dependency::Database),
            _ => Fault::Transient,
        };
        Failure::new(fault, "database_away", detail)
    }

    /// Decides and writes, all of it at one moment.
    fn commit(&self, members: &[(Job<'_>, u64)]) -> Vec<Outcome> {
        let mut state = self.lock();
        let mut changed = false;
        let mut outcomes = Vec::with_capacity(members.len());
        for (job, rows) in members {
            let object = job.object;
            let State { ledger, rows: table, next, .. } = &mut *state;
            let ledger = ledger.entry(key(job)).or_default();
            let sequencer = object.sequencer.as_deref();
            outcomes.push(match admit(job.feed.write, &object.etag, sequencer, ledger) {
                Admission::AlreadyCommitted { advance_sequencer } => {
                    if let Some(row) = ledger.iter_mut().find(|it| Some(it.id) == advance_sequencer)
                    {
                        row.sequencer.clone_from(&object.sequencer);
                    }
                    Outcome::AlreadyCommitted
                }
                Admission::Superseded => Outcome::Superseded,
                Admission::Import { replaces } => {
                    changed = true;
                    for row in ledger.iter_mut().filter(|row| replaces.contains(&row.id)) {
                        row.state = RowState::Replaced;
                    }
                    let (etag, sequencer) = (object.etag.clone(), object.sequencer.clone());
                    *next += 1;
                    let (id, state) = (*next, RowState::Committed);
                    let defect = self.defect.filter(|_| id % 7 == 0);
                    if !matches!(defect, Some(Defect::LedgerLost | Defect::AllLost)) {
                        let event_at = object.at;
                        ledger.push(LedgerRow { id, etag, sequencer, state, event_at });
                    }
                    table.retain(|id, _| !replaces.contains(id));
                    if !matches!(defect, Some(Defect::RowsLost | Defect::AllLost)) {
                        table.insert(id, *rows);
                    }
                    Outcome::Committed { rows: *rows, rejected: 0, replaced: replaces.len() }
                }
            });
        }
        state.transactions += u64::from(changed);
        outcomes
    }
}

impl Destination for FakeSink {
    async fn settled(&self, jobs: &[Job<'_>]) -> Result<Vec<Option<Outcome>>, Failure> {
        self.faults.delay().await;
        if self.faults.strike() {
            return Err(self.outage("no connection"));
        }
        let state = self.lock();
        let settled = |job: &Job<'_>| {
            let ledger = state.ledger.get(&key(job)).map(Vec::as_slice).unwrap_or_default();
            let object = job.object;
            match admit(job.feed.write, &object.etag, object.sequencer.as_deref(), ledger) {
                Admission::AlreadyCommitted { advance_sequencer: None } => {
                    Some(Outcome::AlreadyCommitted)
                }
                Admission::Superseded => Some(Outcome::Superseded),
                Admission::AlreadyCommitted { .. } | Admission::Import { .. } => None,
            }
        };
        Ok(jobs.iter().map(settled).collect())
    }

    async fn import(&self, objects: Vec<(Job<'_>, Opened)>) -> Vec<Result<Outcome, Refusal>> {
        let (jobs, opened): (Vec<Job<'_>>, Vec<Opened>) = objects.into_iter().unzip();
        let mut results: Vec<Option<Result<Outcome, Refusal>>> =
            jobs.iter().map(|_| None).collect();
        let mut members = Vec::new();
        for (at, chunks) in self.read(opened).await.into_iter().enumerate() {
            let mut chunks = match chunks {
                Ok(chunks) => chunks,
                Err(refusal) => {
                    results[at] = Some(Err(refusal));
                    continue;
                }
            };
            let mut rows = 0;
            let read = loop {
                match chunks.next().await {
                    Ok(Some(chunk)) => rows += chunk.rows,
                    Ok(None) => break Ok(()),
                    Err(failure) => break Err(failure),
                }
            };
            let locked = self.lock().locks.insert(key(&jobs[at]));
            match (read, locked) {
                (Ok(()), true) => members.push((at, (jobs[at], rows))),
                (Err(failure), _) => {
                    if locked {
                        self.lock().locks.remove(&key(&jobs[at]));
                    }
                    results[at] = Some(Err(Refusal::Own(failure)));
                }
                (Ok(()), false) => {
                    results[at] = Some(Err(Refusal::Own(object_busy(&jobs[at]))));
                }
            }
        }
        let (places, members): (Vec<usize>, Vec<_>) = members.into_iter().unzip();
        self.faults.delay().await;
        let struck = self.faults.strike().then(|| self.faults.kind(2));
        // Its reply may be all that is lost.
        let outcomes = (struck != Some(0)).then(|| self.commit(&members));
        for (job, _) in &members {
            self.lock().locks.remove(&key(job));
        }
        let broken = struck.map(|_| self.outage("the connection broke at the commit"));
        for (n, at) in places.into_iter().enumerate() {
            results[at] = Some(match (&broken, &outcomes) {
                (None, Some(outcomes)) => Ok(outcomes[n]),
                (Some(failure), _) => Err(Refusal::Joint(failure.clone())),
                (None, None) => unreachable!("nothing is left out without a cause"),
            });
        }
        results.into_iter().map(|it| it.expect("every object came to its end")).collect()
    }
}

/// Nobody reads it.
#[derive(Clone)]
pub struct FakeJournal;

impl Journal for FakeJournal {
    async fn report_worker(&self, _report: &WorkerReport) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn record_failure(&self, _failure: &FailureRecord) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn answers(&self) -> bool {
        true
    }
}
