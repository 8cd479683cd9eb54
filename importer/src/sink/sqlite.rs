//! The import transaction on SQLite: the one writer's lock, ledger, a prepared statement per row,
//! commit. SQLite works on its caller's thread, so rows are bound where tokio lets us block.

use std::sync::Arc;

use sqlx::{SqliteConnection, SqlitePool};
use weirgate_avro::fault::Fault;
use weirgate_avro::rows::Stopped;
use weirgate_avro::table::quote;
use weirgate_common::clock;
use weirgate_common::config::OnBadRow;
use weirgate_common::ledger::{Ledger, sqlite_fault};

use super::admission::LedgerRow;
use super::statement::Statement;
use super::target::{Target, Targets, captures};
use super::{
    ADVANCE_SEQUENCER, INSERT_LEDGER, INSERT_REJECTED, Import, Job, MARK_REPLACED, Outcome,
    SELECT_LEDGER, Transaction, Written, bad_key, bind_ledger, ledger_row, refused, run,
};
use crate::failure::Failure;
use crate::rows::{Chunks, Format, Opened, bad_row, rejected};

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

    pub async fn ledger_rows(&self, job: &Job<'_>) -> Result<Vec<LedgerRow>, Failure> {
        let mut connection = self.acquire(job).await?;
        select_ledger(&mut connection, job).await
    }

    pub async fn import(&self, job: &Job<'_>, opened: Opened) -> Result<Outcome, Failure> {
        let import = Import::prepare(*job, &opened, &self.targets, &self.ledger).await?;
        let chunks = opened.start(Format::Blocks).await?;
        let imported = run(Open(self.begin(job).await?), &import, chunks).await;
        imported.inspect_err(|failure| self.targets.reconsider(job.feed_name, failure))
    }

    /// IMMEDIATE: the ledger is read under the write lock, so nobody commits in between.
    async fn begin(
        &self,
        job: &Job<'_>,
    ) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, Failure> {
        let begun = self.pool.begin_with("BEGIN IMMEDIATE").await;
        begun.map_err(|error| refused(job, "begin", &error))
    }

    async fn acquire(
        &self,
        job: &Job<'_>,
    ) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>, Failure> {
        self.pool.acquire().await.map_err(|error| refused(job, "connecting", &error))
    }
}

/// An open transaction.
struct Open(sqlx::Transaction<'static, sqlx::Sqlite>);

impl Transaction for Open {
    async fn ledger(&mut self, job: &Job<'_>) -> Result<Vec<LedgerRow>, Failure> {
        select_ledger(&mut self.0, job).await
    }

    async fn advance_sequencer(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let statement = prefixed(ADVANCE_SEQUENCER);
        let update = sqlx::query(&statement).bind(row).bind(&job.object.sequencer);
        let done = update.execute(&mut *self.0).await;
        done.map(drop).map_err(|error| refused(job, "advancing the sequencer", &error))
    }

    async fn replace(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| refused(job, "replacing the older version", &error);
        let table = quote(&job.feed.table.in_sqlite());
        let delete = format!("DELETE FROM {table} WHERE _object = $1");
        sqlx::query(&delete).bind(row).execute(&mut *self.0).await.map_err(failed)?;
        let mark = prefixed(MARK_REPLACED);
        sqlx::query(&mark).bind(row).execute(&mut *self.0).await.map_err(failed)?;
        Ok(())
    }

    async fn write(&mut self, import: &Import<'_>, mut chunks: Chunks) -> Result<Written, Failure> {
        let job = &import.job;
        let failed = |error: sqlx::Error| refused(job, "writing the ledger row", &error);
        let connection = &mut *self.0;
        let now = clock::now();
        // The ledger row comes first, since it hands out the id that the others carry.
        let insert = prefixed(INSERT_LEDGER);
        let insert = sqlx::query(&insert);
        let id = bind_ledger!(insert, None::<i64>, import, Written::default(), now)
            .execute(&mut *connection)
            .await
            .map_err(failed)?
            .last_insert_rowid();
        let written = match &import.target {
            Some(target) => insert_rows(connection, job, target, id, &mut chunks).await?,
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

    async fn commit(self, job: &Job<'_>) -> Result<(), Failure> {
        self.0.commit().await.map_err(|error| refused(job, "commit", &error))
    }
}

async fn select_ledger(
    connection: &mut SqliteConnection,
    job: &Job<'_>,
) -> Result<Vec<LedgerRow>, Failure> {
    let rows = sqlx::query_as(&prefixed(SELECT_LEDGER))
        .bind(job.feed_name)
        .bind(&job.object.bucket)
        .bind(&job.object.key)
        .fetch_all(connection)
        .await
        .map_err(|error| refused(job, "reading the ledger", &error))?;
    Ok(rows.into_iter().map(ledger_row).collect())
}

async fn insert_rows(
    connection: &mut SqliteConnection,
    job: &Job<'_>,
    target: &Target,
    id: i64,
    chunks: &mut Chunks,
) -> Result<Written, Failure> {
    let places = vec!["?"; target.plan.columns().len()].join(", ");
    let insert = format!("INSERT INTO {} ({}) VALUES ({places})", target.table, target.columns);
    let constants =
        target.plan.constants(id, &captures(job)).map_err(|error| bad_key(job, &error))?;
    let mut written = Written::default();
    while let Some(chunk) = chunks.next().await? {
        let mut handle = connection
            .lock_handle()
            .await
            .map_err(|error| refused(job, "locking the connection", &error))?;
        let rejected = tokio::task::block_in_place(|| {
            let mut statement = Statement::prepare(&mut handle, &insert)?;
            let mut rows = target.plan.rows(&chunk.bytes, chunk.rows);
            let mut bad = Vec::new();
            loop {
                match rows.visit(&constants, &mut statement) {
                    Ok(()) => return Ok(bad),
                    Err(Stopped::Fault(Fault::Row(row)))
                        if job.feed.on_bad_row == OnBadRow::Quarantine =>
                    {
                        bad.push(rejected(chunk.first_row, &row, rows.refused_json()));
                    }
                    Err(stopped) => return Err(stopped),
                }
            }
        });
        match rejected {
            Ok(rejected) => {
                written.rows += chunk.rows - rejected.len() as u64;
                written.reject(job, rejected)?;
            }
            Err(Stopped::Fault(fault)) => {
                return Err(bad_row(job.object_name, chunk.first_row, fault));
            }
            Err(Stopped::Sink(error)) => {
                let detail = format!("{} into {}: {error}", job.object_name, job.feed.table);
                let fault = sqlite_fault(error.code.unsigned_abs());
                return Err(Failure::new(fault, "database_refused", detail));
            }
        }
    }
    Ok(written)
}

/// The ledger's tables as SQLite names them.
fn prefixed(statement: &str) -> String {
    statement.replace("weirgate.", "weirgate_")
}
