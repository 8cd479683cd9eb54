//! The import transaction on PostgreSQL: advisory lock, ledger, binary COPY, commit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use sqlx::{Executor, PgConnection, PgPool};
use weirgate_common::clock;

use super::admission::{Admission, LedgerRow, admit};
use super::target::{Catalog, Target, Targets, captures};
use super::{
    ADVANCE_SEQUENCER, INSERT_LEDGER, INSERT_REJECTED, INSERT_SCHEMA, Job, MARK_REPLACED, NewRow,
    Outcome, SELECT_LEDGER, Written, bad_key, bind_ledger, ledger_row, object_busy, refused,
    target_of,
};
use crate::avro::copy::{COPY_HEADER, COPY_TRAILER};
use crate::avro::table::{Column, Dialect, Source, SqlType};
use crate::failure::Failure;
use crate::rows::{Chunks, Format, Opened};

#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
    targets: Arc<Targets>,
    ids: Arc<Mutex<VecDeque<i64>>>,
}

/// Object ids fetched at once. They stand in every row, so they are needed before the
/// transaction; ids that are never used leave harmless gaps.
const IDS_AT_ONCE: i64 = 64;

impl Postgres {
    pub fn new(pool: PgPool) -> Self {
        Postgres { pool, targets: Arc::default(), ids: Arc::default() }
    }

    pub async fn ledger_rows(&self, job: &Job<'_>) -> Result<Vec<LedgerRow>, Failure> {
        let mut connection = self.acquire(job).await?;
        select_ledger(&mut connection, job).await
    }

    pub async fn import(&self, job: &Job<'_>, opened: Opened) -> Result<Outcome, Failure> {
        let new_row = NewRow::new(*job, &opened);
        let schema_json = opened.header().map(|header| header.schema_json.clone());
        let target = target_of(&self.targets, self, job, opened.header()).await?;
        let id = self.next_id(job).await?;
        let format = match &target {
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
        let imported =
            self.transaction(&new_row, id, target.as_deref(), chunks, schema_json.as_deref()).await;
        if imported.is_err() {
            self.targets.forget(job.feed_name);
        }
        imported
    }

    async fn transaction(
        &self,
        new_row: &NewRow<'_>,
        id: i64,
        target: Option<&Target>,
        mut chunks: Chunks,
        schema_json: Option<&str>,
    ) -> Result<Outcome, Failure> {
        let job = &new_row.job;
        let failed = |doing: &'static str| move |error: sqlx::Error| refused(job, doing, &error);
        let mut transaction = self.pool.begin().await.map_err(failed("begin"))?;
        let connection = &mut *transaction;
        let (locked,): (bool,) = sqlx::query_as("SELECT pg_try_advisory_xact_lock($1)")
            .bind(lock_key(&[job.feed_name, &job.object.bucket, &job.object.key]))
            .fetch_one(&mut *connection)
            .await
            .map_err(failed("locking the object"))?;
        if !locked {
            return Err(object_busy(job));
        }
        // A statement of its own: its snapshot must be younger than the lock.
        let ledger = select_ledger(connection, job).await?;
        let object = job.object;
        let outcome =
            match admit(job.feed.write, &object.etag, object.sequencer.as_deref(), &ledger) {
                Admission::Superseded => return Ok(Outcome::Superseded),
                Admission::AlreadyCommitted { advance_sequencer } => {
                    if let Some(row) = advance_sequencer {
                        sqlx::query(ADVANCE_SEQUENCER)
                            .bind(row)
                            .bind(&object.sequencer)
                            .execute(&mut *connection)
                            .await
                            .map_err(failed("advancing the sequencer"))?;
                    }
                    Outcome::AlreadyCommitted
                }
                Admission::Import { replaces } => {
                    for row in &replaces {
                        replace(connection, job, *row).await?;
                    }
                    let written = match target {
                        Some(target) => copy(connection, job, target, &mut chunks).await?,
                        None => Written::default(),
                    };
                    let now = clock::now();
                    let insert = sqlx::query(INSERT_LEDGER);
                    bind_ledger!(insert, id, new_row, written, now)
                        .execute(&mut *connection)
                        .await
                        .map_err(failed("writing the ledger row"))?;
                    if let (Some(fingerprint), Some(json)) = (new_row.fingerprint, schema_json) {
                        sqlx::query(INSERT_SCHEMA)
                            .bind(fingerprint)
                            .bind(json)
                            .bind(now)
                            .execute(&mut *connection)
                            .await
                            .map_err(failed("recording the schema"))?;
                    }
                    for row in &written.rejected {
                        sqlx::query(INSERT_REJECTED)
                            .bind(id)
                            .bind(i64::try_from(row.ordinal).unwrap_or(i64::MAX))
                            .bind(row.reason.replace('\0', "\u{fffd}"))
                            .bind(&row.record)
                            .execute(&mut *connection)
                            .await
                            .map_err(failed("recording a rejected row"))?;
                    }
                    let rejected = written.rejected.len();
                    Outcome::Committed { rows: written.rows, rejected, replaced: replaces.len() }
                }
            };
        transaction.commit().await.map_err(failed("commit"))?;
        Ok(outcome)
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

impl Catalog for Postgres {
    const DIALECT: Dialect = Dialect::Postgres;

    async fn columns(&self, job: &Job<'_>) -> Result<Vec<Column>, Failure> {
        let rows: Vec<(String, String, bool)> = sqlx::query_as(
            "SELECT attname::text, format_type(atttypid, atttypmod), NOT attnotnull
             FROM pg_attribute
             WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
             ORDER BY attnum",
        )
        .bind(job.feed.table.in_postgres())
        .fetch_all(&self.pool)
        .await
        .map_err(|error| refused(job, "reading the table's columns", &error))?;
        let column = |(name, sql_type, nullable): (String, String, bool)| Column {
            source: Source::Field(name.clone()),
            name,
            sql_type: SqlType::from_postgres(&sql_type),
            nullable,
        };
        Ok(rows.into_iter().map(column).collect())
    }

    async fn apply(&self, job: &Job<'_>, statements: &[String]) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| refused(job, "preparing the table", &error);
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(lock_key(&["ddl", &job.feed.table.to_string()]))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        for statement in statements {
            tracing::info!(feed = job.feed_name, "{statement}");
            transaction.execute(statement.as_str()).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
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

/// Takes an older version's rows out of the table.
async fn replace(connection: &mut PgConnection, job: &Job<'_>, row: i64) -> Result<(), Failure> {
    let failed = |error: sqlx::Error| refused(job, "replacing the older version", &error);
    let delete = format!("DELETE FROM {} WHERE _object = $1", job.feed.table.in_postgres());
    sqlx::query(&delete).bind(row).execute(&mut *connection).await.map_err(failed)?;
    sqlx::query(MARK_REPLACED).bind(row).execute(connection).await.map_err(failed)?;
    Ok(())
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
    assert_eq!(counted, written.rows, "the server counts the rows that were sent");
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
