//! The import transaction on PostgreSQL: advisory lock, ledger, binary COPY, commit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use weirgate_avro::copy::{COPY_HEADER, COPY_TRAILER};
use weirgate_common::clock;
use weirgate_common::ledger::Ledger;

use super::admission::LedgerRow;
use super::target::{Target, Targets, captures};
use super::{
    ADVANCE_SEQUENCER, INSERT_LEDGER, INSERT_REJECTED, Import, Job, MARK_REPLACED, Outcome,
    SELECT_LEDGER, Transaction, Written, bad_key, bind_ledger, ledger_row, object_busy, refused,
    run,
};
use crate::failure::Failure;
use crate::rows::{Chunks, Format, Opened};

#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
    ledger: Ledger,
    targets: Arc<Targets>,
    ids: Arc<Mutex<VecDeque<i64>>>,
}

/// Object ids fetched at once. They stand in every row, so they are needed before the
/// transaction; ids that are never used leave harmless gaps.
const IDS_AT_ONCE: i64 = 64;

impl Postgres {
    pub fn new(pool: PgPool) -> Self {
        let ledger = Ledger::Postgres(pool.clone());
        Postgres { pool, ledger, targets: Arc::default(), ids: Arc::default() }
    }

    pub async fn ledger_rows(&self, job: &Job<'_>) -> Result<Vec<LedgerRow>, Failure> {
        let mut connection = self.acquire(job).await?;
        select_ledger(&mut connection, job).await
    }

    pub async fn import(&self, job: &Job<'_>, opened: Opened) -> Result<Outcome, Failure> {
        let import = Import::prepare(*job, &opened, &self.targets, &self.ledger).await?;
        let id = self.next_id(job).await?;
        let format = match &import.target {
            Some(target) => {
                let constants = target
                    .plan
                    .constants(id, &captures(job))
                    .map_err(|error| bad_key(job, &error))?;
                let on_bad_row = job.feed.on_bad_row;
                Format::Copy { plan: target.plan.clone(), constants, on_bad_row }
            }
            None => Format::Blocks,
        };
        let chunks = opened.start(format).await?;
        let open = self.pool.begin().await.map_err(|error| refused(job, "begin", &error))?;
        let imported = run(Open { transaction: open, id }, &import, chunks).await;
        imported.inspect_err(|failure| self.targets.reconsider(job.feed_name, failure))
    }

    async fn next_id(&self, job: &Job<'_>) -> Result<i64, Failure> {
        let pop = || self.ids.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if let Some(id) = pop() {
            return Ok(id);
        }
        let fetched: Vec<(i64,)> =
            sqlx::query_as("SELECT nextval('weirgate.object_id') FROM generate_series(1, $1)")
                .bind(IDS_AT_ONCE)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| refused(job, "taking object ids", &error))?;
        let mut fetched = fetched.into_iter().map(|(id,)| id);
        let id = fetched.next().expect("the series has at least one element");
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).extend(fetched);
        Ok(id)
    }

    async fn acquire(
        &self,
        job: &Job<'_>,
    ) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, Failure> {
        self.pool.acquire().await.map_err(|error| refused(job, "connecting", &error))
    }
}

/// An open transaction, and the id of the object it is about to import.
struct Open {
    transaction: sqlx::Transaction<'static, sqlx::Postgres>,
    id: i64,
}

impl Transaction for Open {
    async fn ledger(&mut self, job: &Job<'_>) -> Result<Vec<LedgerRow>, Failure> {
        let (locked,): (bool,) = sqlx::query_as("SELECT pg_try_advisory_xact_lock($1)")
            .bind(lock_key(&[job.feed_name, &job.object.bucket, &job.object.key]))
            .fetch_one(&mut *self.transaction)
            .await
            .map_err(|error| refused(job, "locking the object", &error))?;
        if !locked {
            return Err(object_busy(job));
        }
        // A statement of its own: its snapshot must be younger than the lock.
        select_ledger(&mut self.transaction, job).await
    }

    async fn advance_sequencer(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let update = sqlx::query(ADVANCE_SEQUENCER).bind(row).bind(&job.object.sequencer);
        let done = update.execute(&mut *self.transaction).await;
        done.map(drop).map_err(|error| refused(job, "advancing the sequencer", &error))
    }

    async fn replace(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| refused(job, "replacing the older version", &error);
        let connection = &mut *self.transaction;
        let delete = format!("DELETE FROM {} WHERE _object = $1", job.feed.table.in_postgres());
        sqlx::query(&delete).bind(row).execute(&mut *connection).await.map_err(failed)?;
        sqlx::query(MARK_REPLACED).bind(row).execute(connection).await.map_err(failed)?;
        Ok(())
    }

    async fn write(&mut self, import: &Import<'_>, mut chunks: Chunks) -> Result<Written, Failure> {
        let job = &import.job;
        let failed = |error: sqlx::Error| refused(job, "writing the ledger row", &error);
        let connection = &mut *self.transaction;
        let written = match &import.target {
            Some(target) => copy(connection, job, target, &mut chunks).await?,
            None => Written::default(),
        };
        let now = clock::now();
        let insert = sqlx::query(INSERT_LEDGER);
        bind_ledger!(insert, self.id, import, written, now)
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        for row in &written.rejected {
            sqlx::query(INSERT_REJECTED)
                .bind(self.id)
                .bind(i64::try_from(row.ordinal).unwrap_or(i64::MAX))
                .bind(row.reason.replace('\0', "\u{fffd}"))
                .bind(&row.record)
                .execute(&mut *connection)
                .await
                .map_err(failed)?;
        }
        Ok(written)
    }

    async fn commit(self, job: &Job<'_>) -> Result<(), Failure> {
        self.transaction.commit().await.map_err(|error| refused(job, "commit", &error))
    }
}

async fn select_ledger(
    connection: &mut PgConnection,
    job: &Job<'_>,
) -> Result<Vec<LedgerRow>, Failure> {
    let rows = sqlx::query_as(SELECT_LEDGER)
        .bind(job.feed_name)
        .bind(&job.object.bucket)
        .bind(&job.object.key)
        .fetch_all(connection)
        .await
        .map_err(|error| refused(job, "reading the ledger", &error))?;
    Ok(rows.into_iter().map(ledger_row).collect())
}

/// Copies all chunks.
async fn copy(
    connection: &mut PgConnection,
    job: &Job<'_>,
    target: &Target,
    chunks: &mut Chunks,
) -> Result<Written, Failure> {
    let failed = |error: sqlx::Error| refused(job, "copying rows", &error);
    let statement =
        format!("COPY {} ({}) FROM STDIN WITH (FORMAT binary)", target.table, target.columns);
    let mut copy = connection.copy_in_raw(&statement).await.map_err(failed)?;
    copy.send(&COPY_HEADER[..]).await.map_err(failed)?;
    let mut written = Written::default();
    loop {
        let chunk = match chunks.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(failure) => {
                // Best effort: the transaction is rolled back in any case.
                let _ = copy.abort("the object could not be read to its end").await;
                return Err(failure);
            }
        };
        written.rows += chunk.rows;
        copy.send(chunk.bytes).await.map_err(failed)?;
        if let Err(failure) = written.reject(job, chunk.rejected) {
            let _ = copy.abort("too many bad rows").await;
            return Err(failure);
        }
    }
    copy.send(&COPY_TRAILER[..]).await.map_err(failed)?;
    let counted = copy.finish().await.map_err(failed)?;
    if counted != written.rows {
        let detail = format!(
            "{} into {}: the table took {counted} of {} rows; a trigger or a rule keeps rows out",
            job.object_name, job.feed.table, written.rows
        );
        return Err(Failure::permanent("rows_dropped", detail));
    }
    Ok(written)
}

/// Advisory locks are 64 bits wide. Two identities that share a key wait for each other, no more.
fn lock_key(parts: &[&str]) -> i64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    i64::from_be_bytes(digest[..8].try_into().expect("SHA-256 has 32 bytes"))
}
