//! The database side: one transaction that holds the rows and the ledger rows of its objects.
//!
//! ```text
//! admission   what the ledger says about the object       pure
//!   └─▶ version    which of two objects is newer          pure
//!         └─▶ merge      rows that take others' place by key    pure: the statements
//!               └─▶ target     the table, made or brought up to date; the plan for its columns
//!                     └─▶ statement   rows bound to a prepared statement (SQLite)
//!                     └─▶ literal     values in the text of statements (PostgreSQL)
//!                           └─▶ import     the transaction, the same on every database
//!                                 └─▶ postgres, sqlite   its steps, in the words of each
//! ```

pub mod admission;
mod version;

mod merge;
mod target;

mod literal;
mod statement;

mod postgres;
mod sqlite;

use std::sync::Arc;

use weirgate_avro::container::Header;
use weirgate_common::clock::Timestamp;
use weirgate_common::config::Feed;
use weirgate_common::fault::{self, Dependency, Fault};
use weirgate_common::ledger::{Ledger, database_fault};

use crate::event::ObjectCreated;
use crate::failure::Failure;
use crate::rows::{self, Chunks, Format, Opened, REJECTED_MAX, RejectedRow};
use admission::{Admission, LedgerRow, RowState, admit};
use postgres::Postgres;
use sqlite::Sqlite;
use target::{Target, Targets};

/// What an import is about.
#[derive(Clone, Copy)]
pub struct Job<'j> {
    pub feed_name: &'j str,
    pub feed: &'j Feed,
    pub object: &'j ObjectCreated,
    /// `s3://bucket/key`, for people.
    pub object_name: &'j str,
    pub received_at: Timestamp,
    pub worker: &'j str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed {
        rows: u64,
        rejected: usize,
        /// Versions of the key whose rows went away in the same transaction.
        replaced: usize,
    },
    AlreadyCommitted,
    Superseded,
}

/// Why an object was not imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// For a cause of its own.
    Own(Failure),
    /// The transaction failed; nobody knows which of its objects is the cause, if it is one.
    Joint(Failure),
    /// It must be imported alone: there is no room for it beside the others, or another of its key
    /// is among them.
    Apart,
}

/// Where rows go. `Sink` is the real one; tests have another.
pub trait Destination: Clone + Send + Sync + 'static {
    /// Which objects are settled already, as the ledger says without a lock: of an object that cannot
    /// be imported any more a redelivery must still find the ledger row.
    fn settled(
        &self,
        jobs: &[Job<'_>],
    ) -> impl Future<Output = Result<Vec<Option<Outcome>>, Failure>> + Send;

    /// Imports opened objects of one feed in one transaction: table, rows, ledger rows, commit.
    /// Several must have been read whole; no two may be of the same key.
    fn import(
        &self,
        objects: Vec<(Job<'_>, Opened)>,
    ) -> impl Future<Output = Vec<Result<Outcome, Refusal>>> + Send;
}

/// The databases.
#[derive(Clone)]
pub enum Sink {
    Postgres(Postgres),
    Sqlite(Sqlite),
}

impl Sink {
    pub fn new(ledger: &Ledger) -> Self {
        match ledger {
            Ledger::Postgres(pool) => Sink::Postgres(Postgres::new(pool.clone())),
            Ledger::Sqlite(pool) => Sink::Sqlite(Sqlite::new(pool.clone())),
        }
    }
}

impl Destination for Sink {
    async fn settled(&self, jobs: &[Job<'_>]) -> Result<Vec<Option<Outcome>>, Failure> {
        let ledger = match self {
            Sink::Postgres(sink) => sink.ledger_rows(jobs).await?,
            Sink::Sqlite(sink) => sink.ledger_rows(jobs).await?,
        };
        let settled = |(job, rows): (&Job<'_>, Vec<LedgerRow>)| match decide(job, &rows) {
            Admission::AlreadyCommitted { advance_sequencer: None } => {
                Some(Outcome::AlreadyCommitted)
            }
            Admission::Superseded => Some(Outcome::Superseded),
            Admission::AlreadyCommitted { .. } | Admission::Import { .. } => None,
        };
        Ok(jobs.iter().zip(ledger).map(settled).collect())
    }

    async fn import(&self, objects: Vec<(Job<'_>, Opened)>) -> Vec<Result<Outcome, Refusal>> {
        match self {
            Sink::Postgres(sink) => import(sink, objects).await,
            Sink::Sqlite(sink) => import(sink, objects).await,
        }
    }
}

/// A database, as far as imports differ on it.
trait Database: Sync {
    type Open: Transaction;

    fn targets(&self) -> &Targets;

    fn ledger(&self) -> &Ledger;

    /// As many ids for objects, if the database does not hand them out with the ledger row.
    fn ids(
        &self,
        job: &Job<'_>,
        count: usize,
    ) -> impl Future<Output = Result<Vec<i64>, Failure>> + Send;

    /// What is to become of the object's bytes before the transaction.
    fn format(&self, import: &Import<'_>) -> Result<Format, Failure>;

    /// Opens a transaction and locks what the ledger says, and will say, of each of `jobs`. Fails if
    /// the feed's table is not what it was when any of `targets` was made.
    fn begin(
        &self,
        all: &Job<'_>,
        jobs: &[Job<'_>],
        targets: &[Arc<Target>],
    ) -> impl Future<Output = Result<Self::Open, Failure>> + Send;
}

/// One object in a transaction.
struct Import<'j> {
    job: Job<'j>,
    id: i64,
    /// Size of the object.
    bytes: i64,
    /// Absent for an object without any bytes, which has no schema.
    header: Option<Header>,
    target: Option<Arc<Target>>,
}

/// One open transaction, in the words of its database. Dropped without a commit, it is undone.
trait Transaction: Sized + Send {
    /// What the ledger holds of each job's feed, bucket and key; `None` where somebody else has the
    /// lock on it. The jobs are those that the transaction began with.
    fn ledger(
        &mut self,
        jobs: &[Job<'_>],
    ) -> impl Future<Output = Result<Vec<Option<Vec<LedgerRow>>>, Failure>> + Send;

    fn advance_sequencer(
        &mut self,
        job: &Job<'_>,
        row: i64,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Takes an older version's rows out of the table, and marks its ledger row. Rows written by
    /// key stay where they are: those that come have the same keys.
    fn replace(
        &mut self,
        job: &Job<'_>,
        row: i64,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The rows, the ledger rows, and what belongs to them.
    fn write(
        &mut self,
        imports: Vec<(Import<'_>, Chunks)>,
    ) -> impl Future<Output = Result<Vec<Written>, Broken>> + Send;

    fn commit(self, job: &Job<'_>) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Ends a transaction that has changed nothing.
    fn leave(self) -> impl Future<Output = ()> + Send;
}

/// Why a transaction failed, and because of which of its objects, where that is known.
struct Broken {
    failure: Failure,
    guilty: Option<usize>,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Broken { failure, guilty: None }
    }
}

/// Prepares each object and runs the transaction. What concerns one object keeps it out; what
/// breaks the transaction concerns all that are in it.
async fn import<D: Database>(
    database: &D,
    objects: Vec<(Job<'_>, Opened)>,
) -> Vec<Result<Outcome, Refusal>> {
    let Some((first, _)) = objects.first() else { return Vec::new() };
    let feed_name = first.feed_name;
    let label = match objects.len() {
        1 => first.object_name.to_owned(),
        count => format!("{} and {} others", first.object_name, count - 1),
    };
    let all = Job { object_name: &label, ..*first };
    let mut results: Vec<Option<Result<Outcome, Refusal>>> = objects.iter().map(|_| None).collect();
    let ids = match database.ids(&all, objects.len()).await {
        Ok(ids) => ids,
        Err(failure) => {
            return objects.iter().map(|_| Err(Refusal::Joint(failure.clone()))).collect();
        }
    };
    let (mut prepared, mut sources) = (Vec::new(), Vec::new());
    for (at, ((job, opened), id)) in objects.into_iter().zip(ids).enumerate() {
        match prepare(database, job, &opened, id).await {
            Ok((import, format)) => {
                prepared.push((at, import));
                sources.push((opened, format));
            }
            Err(failure) => results[at] = Some(Err(Refusal::Own(failure))),
        }
    }
    let mut ready = Vec::with_capacity(prepared.len());
    let mut places = Vec::with_capacity(prepared.len());
    for ((at, import), chunks) in prepared.into_iter().zip(read(sources).await) {
        match chunks {
            Ok(chunks) => {
                places.push(at);
                ready.push((import, chunks));
            }
            Err(refusal) => results[at] = Some(Err(refusal)),
        }
    }
    if !ready.is_empty() {
        let jobs: Vec<Job<'_>> = ready.iter().map(|(import, _)| import.job).collect();
        let count = ready.len();
        let targets = ready.iter().filter_map(|(import, _)| import.target.clone());
        let targets: Vec<Arc<Target>> = targets.collect();
        let ran = match database.begin(&all, &jobs, &targets).await {
            Ok(open) => run(open, &all, &jobs, ready).await,
            Err(failure) => Err(failure.into()),
        };
        let outcomes = ran.unwrap_or_else(|Broken { failure, guilty }| {
            database.targets().reconsider(feed_name, &failure);
            let refusal = |at| match guilty == Some(at) {
                true => Err(Refusal::Own(failure.clone())),
                false => Err(Refusal::Joint(failure.clone())),
            };
            (0..count).map(refusal).collect()
        });
        places.into_iter().zip(outcomes).for_each(|(at, outcome)| results[at] = Some(outcome));
    }
    results.into_iter().map(|result| result.expect("every object came to its end")).collect()
}

async fn prepare<'j, D: Database>(
    database: &D,
    job: Job<'j>,
    opened: &Opened,
    id: i64,
) -> Result<(Import<'j>, Format), Failure> {
    let header = opened.header().cloned();
    let target = match &header {
        Some(header) => Some(database.targets().prepare(database.ledger(), &job, header).await?),
        None => None,
    };
    let bytes = i64::try_from(opened.bytes()).unwrap_or(i64::MAX);
    let import = Import { job, id, bytes, header, target };
    let format = database.format(&import)?;
    Ok((import, format))
}

/// One object streams; several are transcoded to their ends.
async fn read(mut sources: Vec<(Opened, Format)>) -> Vec<Result<Chunks, Refusal>> {
    if sources.len() == 1 {
        let Some((opened, format)) = sources.pop() else { return Vec::new() };
        return vec![opened.start(format).await.map_err(Refusal::Own)];
    }
    let outsized = |chunks: Option<Chunks>| chunks.ok_or(Refusal::Apart);
    let gathered = rows::gather(sources).await;
    gathered.into_iter().map(|read| read.map_err(Refusal::Own).and_then(outsized)).collect()
}

/// The import transaction, the same on every database.
async fn run<T: Transaction>(
    mut transaction: T,
    all: &Job<'_>,
    jobs: &[Job<'_>],
    objects: Vec<(Import<'_>, Chunks)>,
) -> Result<Vec<Result<Outcome, Refusal>>, Broken> {
    let ledger = transaction.ledger(jobs).await?;
    let (mut outcomes, mut writes) = (Vec::with_capacity(jobs.len()), Vec::new());
    let mut places = Vec::new();
    let mut changed = false;
    for (at, ((import, chunks), rows)) in objects.into_iter().zip(ledger).enumerate() {
        let job = import.job;
        let Some(rows) = rows else {
            outcomes.push(Err(Refusal::Own(object_busy(&job))));
            continue;
        };
        outcomes.push(Ok(match decide(&job, &rows) {
            Admission::Superseded => Outcome::Superseded,
            Admission::AlreadyCommitted { advance_sequencer } => {
                if let Some(row) = advance_sequencer {
                    changed = true;
                    transaction.advance_sequencer(&job, row).await?;
                }
                Outcome::AlreadyCommitted
            }
            Admission::Import { replaces } => {
                changed = true;
                for row in &replaces {
                    transaction.replace(&job, *row).await?;
                }
                writes.push((import, chunks));
                places.push(at);
                Outcome::Committed { rows: 0, rejected: 0, replaced: replaces.len() }
            }
        }));
    }
    if !writes.is_empty() {
        let written = transaction.write(writes).await.map_err(|broken| Broken {
            guilty: broken.guilty.map(|at| places[at]),
            failure: broken.failure,
        })?;
        for (at, written) in places.into_iter().zip(written) {
            if let Ok(Outcome::Committed { rows, rejected, .. }) = &mut outcomes[at] {
                *rows = written.rows;
                *rejected = written.rejected.len();
            }
        }
    }
    match changed {
        true => transaction.commit(all).await?,
        false => transaction.leave().await,
    }
    Ok(outcomes)
}

fn decide(job: &Job<'_>, ledger: &[LedgerRow]) -> Admission {
    admit(job.feed.write, &job.object.etag, job.object.sequencer.as_deref(), ledger)
}

/// What an import put into the database.
#[derive(Default)]
struct Written {
    rows: u64,
    rejected: Vec<RejectedRow>,
}

impl Written {
    fn rows(&self) -> i64 {
        i64::try_from(self.rows).unwrap_or(i64::MAX)
    }

    fn rejected(&self) -> i64 {
        i64::try_from(self.rejected.len()).unwrap_or(i64::MAX)
    }

    fn reject(&mut self, job: &Job<'_>, rows: Vec<RejectedRow>) -> Result<(), Failure> {
        self.rejected.extend(rows);
        match self.rejected.last() {
            Some(last) if self.rejected.len() > REJECTED_MAX => {
                let detail = format!(
                    "{}: more than {REJECTED_MAX} bad rows; the last was row {}: {}",
                    job.object_name, last.ordinal, last.reason
                );
                Err(Failure::permanent("too_many_bad_rows", detail))
            }
            _ => Ok(()),
        }
    }
}

const INSERT_REJECTED: &str =
    "INSERT INTO weirgate.rejected_row (object, ordinal, reason, record) VALUES ($1, $2, $3, $4)";

const MARK_REPLACED: &str = "UPDATE weirgate.object SET state = 'replaced' WHERE id = $1";

const ADVANCE_SEQUENCER: &str = "UPDATE weirgate.object SET sequencer = $2 WHERE id = $1";

type LedgerColumns = (i64, String, Option<String>, String, Option<Timestamp>);

fn ledger_row((id, etag, sequencer, state, event_at): LedgerColumns) -> LedgerRow {
    let state = match state.as_str() {
        "committed" => RowState::Committed,
        "replaced" => RowState::Replaced,
        _ => RowState::Retracted,
    };
    LedgerRow { id, etag, sequencer, state, event_at }
}

/// A database error before the first word about the object: whatever it says, a database that is
/// being restored or renamed for instance, is no reason to give the object up.
fn unavailable(job: &Job<'_>, doing: &str, error: &sqlx::Error) -> Failure {
    let failure = refused(job, doing, error);
    match failure.code {
        "database_refused" => {
            let fault = Fault::Outage(Dependency::Database);
            Failure { fault, code: "database_away", ..failure }
        }
        _ => failure,
    }
}

/// A database error in the middle of an import.
fn refused(job: &Job<'_>, doing: &str, error: &sqlx::Error) -> Failure {
    let fault = database_fault(error);
    let (code, remedy) = match (fault, sqlstate(error).as_deref()) {
        (_, Some("42501")) => (
            "no_permission",
            "; grant the importer's role USAGE and CREATE on the schema, SELECT, INSERT, UPDATE and DELETE on the table, and TEMPORARY on the database if rows are written by key",
        ),
        (Fault::Outage(_), _) => ("database_away", ""),
        (Fault::Busy, _) => ("database_busy", ""),
        (Fault::Transient, _) => ("database_retry", ""),
        (Fault::Permanent, _) => ("database_refused", ""),
    };
    let (object, table) = (job.object_name, &job.feed.table);
    let text = fault::chain(error);
    Failure::new(fault, code, format!("{object} into {table}: {doing}: {text}{remedy}"))
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(|code| code.into_owned())
}

/// Another import is about the same key right now.
pub fn object_busy(job: &Job<'_>) -> Failure {
    let detail = format!("{} is being imported already", job.object_name);
    Failure::new(Fault::Busy, "object_busy", detail)
}

fn bad_key(job: &Job<'_>, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::permanent("bad_key", format!("{}: {}", job.object_name, fault::chain(error)))
}
