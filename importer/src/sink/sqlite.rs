//! The import transaction on SQLite: the one writer's lock, ledger, a prepared statement per row,
//! commit. SQLite works on its caller's thread, so rows are bound where tokio lets us block.

use std::sync::Arc;

use sqlx::{Executor, SqliteConnection, SqlitePool};
use weirgate_avro::fault::Fault;
use weirgate_avro::rows::Stopped;
use weirgate_avro::table::quote;
use weirgate_common::clock;
use weirgate_common::config::OnBadRow;
use weirgate_common::ledger::{Ledger, sqlite_columns, sqlite_fault};

use super::admission::LedgerRow;
use super::statement::{Statement, StatementError};
use super::target::{Target, Targets, captures};
use super::version::{Bent, bent, version};
use super::{
    ADVANCE_SEQUENCER, Broken, Database, INSERT_REJECTED, Import, Job, MARK_REPLACED, Transaction,
    Written, bad_key, ledger_row, refused,
};
use crate::failure::Failure;
use crate::rows::{Chunks, Format, bad_row, rejected};

#[derive(Clone)]
pub struct Sqlite {
    pool: SqlitePool,
    ledger: Ledger,
    targets: Arc<Targets>,
}

impl Sqlite {
    pub fn new(pool: SqlitePool) -> Self {
        let ledger = Ledger::Sqlite(pool.clone());
        Sqlite { pool, ledger, targets: Arc::default() }
    }

    pub async fn ledger_rows(&self, jobs: &[Job<'_>]) -> Result<Vec<Vec<LedgerRow>>, Failure> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let mut connection = self.acquire(first).await?;
        select_ledger(&mut connection, jobs).await
    }

    async fn acquire(
        &self,
        job: &Job<'_>,
    ) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>, Failure> {
        self.pool.acquire().await.map_err(|error| refused(job, "connecting", &error))
    }
}

impl Database for Sqlite {
    type Open = Open;

    fn targets(&self) -> &Targets {
        &self.targets
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The ledger row's insert hands it out.
    async fn ids(&self, _job: &Job<'_>, count: usize) -> Result<Vec<i64>, Failure> {
        Ok(vec![0; count])
    }

    fn format(&self, _import: &Import<'_>) -> Result<Format, Failure> {
        Ok(Format::Blocks)
    }

    /// IMMEDIATE: the ledger is read under the write lock, so nobody commits in between.
    async fn begin(
        &self,
        all: &Job<'_>,
        _jobs: &[Job<'_>],
        _targets: &[Arc<Target>],
    ) -> Result<Open, Failure> {
        let begun = self.pool.begin_with("BEGIN IMMEDIATE").await;
        let transaction = begun.map_err(|error| refused(all, "begin", &error))?;
        Ok(Open { transaction, bent: Vec::new() })
    }
}

/// An open transaction.
pub(super) struct Open {
    transaction: sqlx::Transaction<'static, sqlx::Sqlite>,
    bent: Vec<Bent>,
}

impl Transaction for Open {
    async fn ledger(&mut self, jobs: &[Job<'_>]) -> Result<Vec<Option<Vec<LedgerRow>>>, Failure> {
        let rows = select_ledger(&mut self.transaction, jobs).await?;
        self.bent = bent(jobs, &rows);
        Ok(rows.into_iter().map(Some).collect())
    }

    async fn advance_sequencer(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let statement = prefixed(ADVANCE_SEQUENCER);
        let update = sqlx::query(&statement).bind(row).bind(&job.object.sequencer);
        let done = update.execute(&mut *self.transaction).await;
        done.map(drop).map_err(|error| refused(job, "advancing the sequencer", &error))
    }

    async fn replace(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| refused(job, "replacing the older version", &error);
        if !job.feed.write.is_keyed() {
            let table = quote(&job.feed.table.in_sqlite());
            let delete = format!("DELETE FROM {table} WHERE _object = $1");
            sqlx::query(&delete).bind(row).execute(&mut *self.transaction).await.map_err(failed)?;
        }
        let mark = prefixed(MARK_REPLACED);
        sqlx::query(&mark).bind(row).execute(&mut *self.transaction).await.map_err(failed)?;
        Ok(())
    }

    async fn write(&mut self, imports: Vec<(Import<'_>, Chunks)>) -> Result<Vec<Written>, Broken> {
        let mut written = Vec::with_capacity(imports.len());
        for (at, (import, chunks)) in imports.into_iter().enumerate() {
            let wrote = write_one(&mut self.transaction, &import, &self.bent, chunks).await;
            written.push(wrote.map_err(|failure| Broken { failure, guilty: Some(at) })?);
        }
        Ok(written)
    }

    async fn commit(self, job: &Job<'_>) -> Result<(), Failure> {
        self.transaction.commit().await.map_err(|error| refused(job, "commit", &error))
    }

    async fn leave(self) {}
}

const SELECT_LEDGER: &str = "SELECT id, etag, sequencer, state, event_at FROM weirgate.object
     WHERE feed = $1 AND bucket = $2 AND key = $3";

const INSERT_LEDGER: &str = "INSERT INTO weirgate.object (feed, bucket, key, etag, version_id,
        sequencer, table_name, state, rows, rejected_rows, bytes, schema_fingerprint, event_at,
        received_at, committed_at, worker)
     VALUES ($1, $2, $3, $4, $5, $6, $7, 'committed', 0, 0, $8, $9, $10, $11, $12, $13)";

async fn select_ledger(
    connection: &mut SqliteConnection,
    jobs: &[Job<'_>],
) -> Result<Vec<Vec<LedgerRow>>, Failure> {
    let statement = prefixed(SELECT_LEDGER);
    let mut found = Vec::with_capacity(jobs.len());
    for job in jobs {
        let rows = sqlx::query_as(&statement)
            .bind(job.feed_name)
            .bind(&job.object.bucket)
            .bind(&job.object.key)
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| refused(job, "reading the ledger", &error))?;
        found.push(rows.into_iter().map(ledger_row).collect());
    }
    Ok(found)
}

/// The ledger row comes first, since it hands out the id that the rows carry.
async fn write_one(
    connection: &mut SqliteConnection,
    import: &Import<'_>,
    bent: &[Bent],
    mut chunks: Chunks,
) -> Result<Written, Failure> {
    let job = &import.job;
    let failed = |error: sqlx::Error| refused(job, "writing the ledger row", &error);
    let id = sqlx::query(&prefixed(INSERT_LEDGER))
        .bind(job.feed_name)
        .bind(&job.object.bucket)
        .bind(&job.object.key)
        .bind(&job.object.etag)
        .bind(&job.object.version_id)
        .bind(&job.object.sequencer)
        .bind(job.feed.table.to_string())
        .bind(import.bytes)
        .bind(import.header.as_ref().map(|header| header.writer.fingerprint))
        .bind(job.object.at)
        .bind(job.received_at)
        .bind(clock::now())
        .bind(job.worker)
        .execute(&mut *connection)
        .await
        .map_err(failed)?
        .last_insert_rowid();
    let written = match &import.target {
        Some(target) => write_rows(connection, job, target, bent, id, &mut chunks).await?,
        None => Written::default(),
    };
    sqlx::query("UPDATE weirgate_object SET rows = $2, rejected_rows = $3 WHERE id = $1")
        .bind(id)
        .bind(written.rows())
        .bind(written.rejected())
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    for row in &written.rejected {
        sqlx::query(&prefixed(INSERT_REJECTED))
            .bind(id)
            .bind(i64::try_from(row.ordinal).unwrap_or(i64::MAX))
            .bind(&row.reason)
            .bind(&row.record)
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
    }
    Ok(written)
}

/// Inserts all chunks, or stages and merges them.
async fn write_rows(
    connection: &mut SqliteConnection,
    job: &Job<'_>,
    target: &Target,
    bent: &[Bent],
    id: i64,
    chunks: &mut Chunks,
) -> Result<Written, Failure> {
    let Some(merge) = &target.merge else {
        let places = vec!["?"; target.plan.columns().len()].join(", ");
        let insert = format!("INSERT INTO {} ({}) VALUES ({places})", target.table, target.columns);
        return insert_rows(connection, job, target, &insert, id, chunks).await;
    };
    let failed = |error: sqlx::Error| refused(job, "merging rows", &error);
    connection.execute(merge.begin().as_str()).await.map_err(failed)?;
    let (stage, columns, places) = (merge.stage(), merge.staged(), merge.places());
    let insert = format!("INSERT INTO {stage} ({columns}) VALUES ({places})");
    let written = insert_rows(connection, job, target, &insert, id, chunks).await?;
    // Other importers may have added columns since the table was looked at.
    let existing = sqlite_columns(connection, &job.feed.table).await.map_err(failed)?;
    let bend = merge.bend();
    for Bent { from, to } in bent {
        let bend = sqlx::query(&bend).persistent(false).bind(from).bind(to);
        bend.execute(&mut *connection).await.map_err(failed)?;
    }
    if merge.is_of_changes() {
        connection.execute(merge.newest_changes().as_str()).await.map_err(failed)?;
        let truncates: i64 = sqlx::query_scalar(&merge.truncates())
            .persistent(false)
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        if truncates > 0 {
            connection.execute(merge.truncate().as_str()).await.map_err(failed)?;
        }
        connection.execute(merge.apply(&existing).as_str()).await.map_err(failed)?;
    } else {
        connection.execute(merge.upsert(&existing).as_str()).await.map_err(failed)?;
    }
    connection.execute(merge.end().as_str()).await.map_err(failed)?;
    Ok(written)
}

async fn insert_rows(
    connection: &mut SqliteConnection,
    job: &Job<'_>,
    target: &Target,
    insert: &str,
    id: i64,
    chunks: &mut Chunks,
) -> Result<Written, Failure> {
    let constants = target
        .plan
        .constants_in_order(id, &captures(job), &version(job, &[]))
        .map_err(|error| bad_key(job, &error))?;
    let mut written = Written::default();
    loop {
        // As many as there are: to leave the async threads costs as much as some rows.
        let ready = chunks.next_ready().await?;
        if ready.is_empty() {
            break;
        }
        let mut handle = connection
            .lock_handle()
            .await
            .map_err(|error| refused(job, "locking the connection", &error))?;
        let rejected = tokio::task::block_in_place(|| {
            let failed = |error: &StatementError| {
                let detail = format!("{} into {}: {error}", job.object_name, job.feed.table);
                let fault = sqlite_fault(error.code.unsigned_abs());
                Failure::new(fault, "database_refused", detail)
            };
            let mut bad = Vec::new();
            let mut statement =
                Statement::prepare(&mut handle, insert).map_err(|it| failed(&it))?;
            for chunk in &ready {
                let mut rows = target.plan.rows(&chunk.bytes, chunk.rows);
                loop {
                    match rows.visit(&constants, &mut statement) {
                        Ok(()) => break,
                        Err(Stopped::Fault(Fault::Row(row)))
                            if job.feed.on_bad_row == OnBadRow::Quarantine =>
                        {
                            bad.push(rejected(chunk.first_row, &row, rows.refused_json()));
                        }
                        Err(Stopped::Fault(fault)) => {
                            return Err(bad_row(job.object_name, chunk.first_row, fault));
                        }
                        Err(Stopped::Sink(error)) => return Err(failed(&error)),
                    }
                }
            }
            Ok(bad)
        })?;
        let rows: u64 = ready.iter().map(|chunk| chunk.rows).sum();
        written.rows += rows - rejected.len() as u64;
        written.reject(job, rejected)?;
    }
    Ok(written)
}

/// The ledger's tables as SQLite names them.
fn prefixed(statement: &str) -> String {
    statement.replace("weirgate.", "weirgate_")
}
