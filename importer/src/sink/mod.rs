//! The database side: one transaction that holds an object's rows and its ledger row.
//!
//! ```text
//! admission   what the ledger says about the object       pure
//!   └─▶ target     the table, made or brought up to date; the plan for its columns
//!         └─▶ statement   rows bound to a prepared statement (SQLite)
//!               └─▶ run        the transaction, the same on every database
//!                     └─▶ postgres, sqlite   its steps, in the words of each
//! ```

pub mod admission;
mod target;

mod statement;

mod postgres;
mod sqlite;

use std::sync::Arc;

use weirgate_avro::container::Header;
use weirgate_common::clock::Timestamp;
use weirgate_common::config::Feed;
use weirgate_common::fault::{self, Fault};
use weirgate_common::ledger::{Ledger, database_fault};

use crate::event::ObjectCreated;
use crate::failure::Failure;
use crate::rows::{Chunks, Opened, REJECTED_MAX, RejectedRow};
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

/// Where rows go.
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

    /// Whether the object is settled already, without reading it: a redelivery must find its
    /// ledger row even when the object is gone. The transaction decides again, under a lock.
    pub async fn is_settled(&self, job: &Job<'_>) -> Result<Option<Outcome>, Failure> {
        let rows = match self {
            Sink::Postgres(sink) => sink.ledger_rows(job).await?,
            Sink::Sqlite(sink) => sink.ledger_rows(job).await?,
        };
        match decide(job, &rows) {
            Admission::AlreadyCommitted { advance_sequencer: None } => {
                Ok(Some(Outcome::AlreadyCommitted))
            }
            Admission::Superseded => Ok(Some(Outcome::Superseded)),
            Admission::AlreadyCommitted { .. } | Admission::Import { .. } => Ok(None),
        }
    }

    /// Imports one opened object: table, rows, ledger row, commit.
    pub async fn import(&self, job: &Job<'_>, opened: Opened) -> Result<Outcome, Failure> {
        match self {
            Sink::Postgres(sink) => sink.import(job, opened).await,
            Sink::Sqlite(sink) => sink.import(job, opened).await,
        }
    }
}

/// What the transaction is to write.
struct Import<'j> {
    job: Job<'j>,
    /// Size of the object.
    bytes: i64,
    /// Absent for an object without any bytes, which has no schema.
    header: Option<Header>,
    target: Option<Arc<Target>>,
}

impl<'j> Import<'j> {
    async fn prepare(
        job: Job<'j>,
        opened: &Opened,
        targets: &Targets,
        ledger: &Ledger,
    ) -> Result<Self, Failure> {
        let header = opened.header().cloned();
        let target = match &header {
            Some(header) => Some(targets.prepare(ledger, &job, header).await?),
            None => None,
        };
        let bytes = i64::try_from(opened.bytes()).unwrap_or(i64::MAX);
        Ok(Import { job, bytes, header, target })
    }
}

/// One open transaction, in the words of its database. Dropped without a commit, it is undone.
trait Transaction: Sized + Send {
    /// What the ledger holds of the job's feed, bucket and key, read under a lock on them.
    fn ledger(
        &mut self,
        job: &Job<'_>,
    ) -> impl Future<Output = Result<Vec<LedgerRow>, Failure>> + Send;

    fn advance_sequencer(
        &mut self,
        job: &Job<'_>,
        row: i64,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Takes an older version's rows out of the table, and marks its ledger row.
    fn replace(
        &mut self,
        job: &Job<'_>,
        row: i64,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The rows, the ledger row, and what belongs to them.
    fn write(
        &mut self,
        import: &Import<'_>,
        chunks: Chunks,
    ) -> impl Future<Output = Result<Written, Failure>> + Send;

    fn commit(self, job: &Job<'_>) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// The import transaction, the same on every database.
async fn run<T: Transaction>(
    mut transaction: T,
    import: &Import<'_>,
    chunks: Chunks,
) -> Result<Outcome, Failure> {
    let job = &import.job;
    let ledger = transaction.ledger(job).await?;
    let outcome = match decide(job, &ledger) {
        Admission::Superseded => return Ok(Outcome::Superseded),
        Admission::AlreadyCommitted { advance_sequencer } => {
            if let Some(row) = advance_sequencer {
                transaction.advance_sequencer(job, row).await?;
            }
            Outcome::AlreadyCommitted
        }
        Admission::Import { replaces } => {
            for row in &replaces {
                transaction.replace(job, *row).await?;
            }
            let written = transaction.write(import, chunks).await?;
            let rejected = written.rejected.len();
            Outcome::Committed { rows: written.rows, rejected, replaced: replaces.len() }
        }
    };
    transaction.commit(job).await?;
    Ok(outcome)
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

const SELECT_LEDGER: &str = "SELECT id, etag, sequencer, state FROM weirgate.object
     WHERE feed = $1 AND bucket = $2 AND key = $3";

const INSERT_LEDGER: &str = "INSERT INTO weirgate.object (id, feed, bucket, key, etag, version_id,
        sequencer, table_name, state, rows, rejected_rows, bytes, schema_fingerprint, event_at,
        received_at, committed_at, worker)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'committed', $9, $16, $10, $11, $12, $13, $14, $15)";

const MARK_REPLACED: &str = "UPDATE weirgate.object SET state = 'replaced' WHERE id = $1";

const ADVANCE_SEQUENCER: &str = "UPDATE weirgate.object SET sequencer = $2 WHERE id = $1";

/// Binds [`INSERT_LEDGER`]; the two databases differ only in type.
macro_rules! bind_ledger {
    ($query:expr, $id:expr, $import:expr, $written:expr, $now:expr) => {{
        let job = &$import.job;
        $query
            .bind($id)
            .bind(job.feed_name)
            .bind(&job.object.bucket)
            .bind(&job.object.key)
            .bind(&job.object.etag)
            .bind(&job.object.version_id)
            .bind(&job.object.sequencer)
            .bind(job.feed.table.to_string())
            .bind($written.rows())
            .bind($import.bytes)
            .bind($import.header.as_ref().map(|header| header.fingerprint))
            .bind(job.object.at)
            .bind(job.received_at)
            .bind($now)
            .bind(job.worker)
            .bind($written.rejected())
    }};
}
use bind_ledger;

fn ledger_row((id, etag, sequencer, state): (i64, String, Option<String>, String)) -> LedgerRow {
    let state = match state.as_str() {
        "committed" => RowState::Committed,
        "replaced" => RowState::Replaced,
        _ => RowState::Retracted,
    };
    LedgerRow { id, etag, sequencer, state }
}

/// A database error in the middle of an import.
fn refused(job: &Job<'_>, doing: &str, error: &sqlx::Error) -> Failure {
    let fault = database_fault(error);
    let (code, remedy) = match (fault, sqlstate(error).as_deref()) {
        (_, Some("42501")) => (
            "no_permission",
            "; grant the importer's role USAGE and CREATE on the schema, INSERT and DELETE on the table",
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

/// Another importer holds the object right now.
fn object_busy(job: &Job<'_>) -> Failure {
    let detail = format!("{} is being imported by another worker", job.object_name);
    Failure::new(Fault::Busy, "object_busy", detail)
}

fn bad_key(job: &Job<'_>, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::permanent("bad_key", format!("{}: {}", job.object_name, fault::chain(error)))
}
