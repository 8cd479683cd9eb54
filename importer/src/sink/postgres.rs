//! The import transaction on PostgreSQL: advisory locks, ledger, binary COPY, commit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use sqlx::{Executor, PgConnection, PgPool};
use weirgate_avro::copy::{COPY_HEADER, COPY_TRAILER};
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::ledger::{Ledger, postgres_columns};

use super::admission::LedgerRow;
use super::merge::Merge;
use super::target::{Target, Targets, captures};
use super::version::{Bent, bent, version};
use super::{
    ADVANCE_SEQUENCER, Broken, Database, INSERT_REJECTED, Import, Job, MARK_REPLACED, Transaction,
    Written, bad_key, ledger_row, refused, unavailable,
};
use crate::failure::Failure;
use crate::rows::{Chunks, Format};

#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
    ledger: Ledger,
    targets: Arc<Targets>,
    ids: Arc<Mutex<VecDeque<i64>>>,
}

/// Object ids fetched at once. They stand in every row, so they are needed before the
/// transaction; ids that are never used leave harmless gaps.
const IDS_AT_ONCE: i64 = 256;

impl Postgres {
    pub fn new(pool: PgPool) -> Self {
        let ledger = Ledger::Postgres(pool.clone());
        Postgres { pool, ledger, targets: Arc::default(), ids: Arc::default() }
    }

    pub async fn ledger_rows(&self, jobs: &[Job<'_>]) -> Result<Vec<Vec<LedgerRow>>, Failure> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let mut connection = self.acquire(first).await?;
        Ok(select_ledger(&mut connection, first, jobs).await?.0)
    }

    async fn acquire(
        &self,
        job: &Job<'_>,
    ) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, Failure> {
        self.pool.acquire().await.map_err(|error| unavailable(job, "connecting", &error))
    }
}

impl Database for Postgres {
    type Open = Open;

    fn targets(&self) -> &Targets {
        &self.targets
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    async fn ids(&self, job: &Job<'_>, count: usize) -> Result<Vec<i64>, Failure> {
        let known = || self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut known = known();
            if known.len() >= count {
                return Ok(known.drain(..count).collect());
            }
        }
        let wanted = i64::try_from(count).unwrap_or(i64::MAX).max(IDS_AT_ONCE);
        let fetched: Vec<(i64,)> =
            sqlx::query_as("SELECT nextval('weirgate.object_id') FROM generate_series(1, $1)")
                .bind(wanted)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| unavailable(job, "taking object ids", &error))?;
        let mut fetched = fetched.into_iter().map(|(id,)| id);
        let ids = fetched.by_ref().take(count).collect();
        known().extend(fetched);
        Ok(ids)
    }

    fn format(&self, import: &Import<'_>) -> Result<Format, Failure> {
        let Some(target) = &import.target else { return Ok(Format::Blocks) };
        let job = &import.job;
        let constants = target
            .plan
            .constants_in_order(import.id, &captures(job), &version(job, &[]))
            .map_err(|error| bad_key(job, &error))?;
        let on_bad_row = job.feed.on_bad_row;
        Ok(Format::Copy { plan: target.plan.clone(), constants, on_bad_row })
    }

    async fn begin(&self, all: &Job<'_>, jobs: &[Job<'_>]) -> Result<Open, Failure> {
        let locks = each(jobs, |job| {
            let key = lock_key(&[job.feed_name, &job.object.bucket, &job.object.key]);
            format!("pg_try_advisory_xact_lock('{key}'::bigint)")
        });
        // Everything in one round trip. sqlx drops what it answers, so which locks were free stays in
        // a setting until the next statement, whose snapshot must be younger than the locks, also
        // where transactions are serializable by default. And whatever the parameters of the
        // statements to come, their plans are the same.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; \
             SET LOCAL plan_cache_mode = force_generic_plan; \
             SELECT set_config('{LOCKED}', array_to_string(ARRAY[{}], ''), true)",
            locks.join(", ")
        );
        let open = self.pool.begin_with(begin).await;
        let open = open.map_err(|error| unavailable(all, "begin", &error))?;
        Ok(Open { transaction: open, bent: Vec::new() })
    }
}

/// Which of its locks a transaction got: `t` or `f` for each.
const LOCKED: &str = "weirgate.locked";

/// An open transaction.
pub(super) struct Open {
    transaction: sqlx::Transaction<'static, sqlx::Postgres>,
    bent: Vec<Bent>,
}

impl Transaction for Open {
    async fn ledger(&mut self, jobs: &[Job<'_>]) -> Result<Vec<Option<Vec<LedgerRow>>>, Failure> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let (rows, locked) = select_ledger(&mut self.transaction, first, jobs).await?;
        self.bent = bent(jobs, &rows);
        Ok(rows.into_iter().zip(locked).map(|(rows, locked)| locked.then_some(rows)).collect())
    }

    async fn advance_sequencer(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let update = sqlx::query(ADVANCE_SEQUENCER).bind(row).bind(&job.object.sequencer);
        let done = update.execute(&mut *self.transaction).await;
        done.map(drop).map_err(|error| refused(job, "advancing the sequencer", &error))
    }

    async fn replace(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| refused(job, "replacing the older version", &error);
        let connection = &mut *self.transaction;
        if !job.feed.write.is_keyed() {
            let delete = format!("DELETE FROM {} WHERE _object = $1", job.feed.table.in_postgres());
            sqlx::query(&delete).bind(row).execute(&mut *connection).await.map_err(failed)?;
        }
        sqlx::query(MARK_REPLACED).bind(row).execute(connection).await.map_err(failed)?;
        Ok(())
    }

    async fn write(
        &mut self,
        mut imports: Vec<(Import<'_>, Chunks)>,
    ) -> Result<Vec<Written>, Broken> {
        let mut written: Vec<Written> = imports.iter().map(|_| Written::default()).collect();
        // One COPY for all objects of a schema, in the order in which they came.
        let mut copies: BTreeMap<(String, String), (Arc<Target>, Vec<usize>)> = BTreeMap::new();
        for (at, (import, _)) in imports.iter().enumerate() {
            if let Some(target) = &import.target {
                let columns = (target.table.clone(), target.columns.clone());
                copies.entry(columns).or_insert_with(|| (target.clone(), Vec::new())).1.push(at);
            }
        }
        for (target, members) in copies.into_values() {
            let into = &mut self.transaction;
            match &target.merge {
                None => {
                    let (table, columns) = (&target.table, &target.columns);
                    let counted =
                        copy(into, table, columns, &members, &mut imports, &mut written).await?;
                    nothing_dropped(&members, &imports, &written, counted)?;
                }
                Some(merge) => {
                    merge_rows(into, merge, &self.bent, &members, &mut imports, &mut written)
                        .await?;
                }
            }
        }
        insert_ledger(&mut self.transaction, &imports, &written).await?;
        for ((import, _), written) in imports.iter().zip(&written) {
            let job = &import.job;
            for row in &written.rejected {
                sqlx::query(INSERT_REJECTED)
                    .bind(import.id)
                    .bind(i64::try_from(row.ordinal).unwrap_or(i64::MAX))
                    .bind(row.reason.replace('\0', "\u{fffd}"))
                    .bind(&row.record)
                    .execute(&mut *self.transaction)
                    .await
                    .map_err(|error| refused(job, "writing rejected rows", &error))?;
            }
        }
        Ok(written)
    }

    async fn commit(self, job: &Job<'_>) -> Result<(), Failure> {
        self.transaction.commit().await.map_err(|error| refused(job, "commit", &error))
    }
}

/// The rows of each job, and whether this transaction has the lock on them. The inner query goes by
/// the index for each of them, whatever the planner believes of a ledger that grew since it last
/// looked.
async fn select_ledger(
    connection: &mut PgConnection,
    first: &Job<'_>,
    jobs: &[Job<'_>],
) -> Result<(Vec<Vec<LedgerRow>>, Vec<bool>), Failure> {
    type Found =
        (i64, bool, Option<i64>, Option<String>, Option<String>, Option<String>, Option<Timestamp>);
    let found: Vec<Found> = sqlx::query_as(&format!(
        "SELECT m.n, coalesce(substr(current_setting('{LOCKED}', true), m.n::integer, 1) = 't', false),
             o.*
         FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS m(bucket, key, n)
         LEFT JOIN LATERAL (
             SELECT id, etag, sequencer, state, event_at FROM weirgate.object
             WHERE feed = $1 AND bucket = m.bucket AND key = m.key OFFSET 0) AS o ON true",
    ))
    .bind(first.feed_name)
    .bind(each(jobs, |job| job.object.bucket.as_str()))
    .bind(each(jobs, |job| job.object.key.as_str()))
    .fetch_all(connection)
    .await
    .map_err(|error| refused(first, "reading the ledger", &error))?;
    let mut rows: Vec<Vec<LedgerRow>> = jobs.iter().map(|_| Vec::new()).collect();
    let mut ours = vec![false; jobs.len()];
    for (n, locked, id, etag, sequencer, state, event_at) in found {
        let at = n as usize - 1;
        ours[at] = locked;
        if let (Some(id), Some(etag), Some(state)) = (id, etag, state) {
            rows[at].push(ledger_row((id, etag, sequencer, state, event_at)));
        }
    }
    Ok((rows, ours))
}

fn each<'a, T, U>(items: &'a [T], of: impl FnMut(&'a T) -> U) -> Vec<U> {
    items.iter().map(of).collect()
}

const INSERT_LEDGER: &str = "INSERT INTO weirgate.object (feed, table_name, worker, committed_at,
        state, id, bucket, key, etag, version_id, sequencer, rows, rejected_rows, bytes,
        schema_fingerprint, event_at, received_at)
     SELECT $1, $2, $3, $4, 'committed', m.* FROM unnest($5::bigint[], $6::text[], $7::text[],
        $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::bigint[],
        $14::bigint[], $15::timestamptz[], $16::timestamptz[]) AS m";

async fn insert_ledger(
    connection: &mut PgConnection,
    imports: &[(Import<'_>, Chunks)],
    written: &[Written],
) -> Result<(), Failure> {
    let Some((Import { job, .. }, _)) = imports.first() else { return Ok(()) };
    let objects = each(imports, |(import, _)| import.job.object);
    sqlx::query(INSERT_LEDGER)
        .bind(job.feed_name)
        .bind(job.feed.table.to_string())
        .bind(job.worker)
        .bind(clock::now())
        .bind(each(imports, |(import, _)| import.id))
        .bind(each(&objects, |object| object.bucket.as_str()))
        .bind(each(&objects, |object| object.key.as_str()))
        .bind(each(&objects, |object| object.etag.as_str()))
        .bind(each(&objects, |object| object.version_id.as_deref()))
        .bind(each(&objects, |object| object.sequencer.as_deref()))
        .bind(each(written, Written::rows))
        .bind(each(written, Written::rejected))
        .bind(each(imports, |(import, _)| import.bytes))
        .bind(each(imports, |(import, _)| import.header.as_ref().map(|it| it.writer.fingerprint)))
        .bind(each(&objects, |object| object.at))
        .bind(each(imports, |(import, _)| import.job.received_at))
        .execute(connection)
        .await
        .map(drop)
        .map_err(|error| refused(job, "writing the ledger rows", &error))
}

/// Messages to the server are made at least this large.
const MESSAGE_BYTES: usize = 32 << 10;

/// Stages all chunks of some of the imports, and merges them into the table.
async fn merge_rows(
    connection: &mut PgConnection,
    merge: &Merge,
    bent: &[Bent],
    members: &[usize],
    imports: &mut [(Import<'_>, Chunks)],
    written: &mut [Written],
) -> Result<(), Broken> {
    let Some(job) = members.first().map(|at| imports[*at].0.job) else { return Ok(()) };
    let failed = |error: sqlx::Error| refused(&job, "merging rows", &error);
    connection.execute(merge.begin().as_str()).await.map_err(failed)?;
    copy(connection, merge.stage(), &merge.staged(), members, imports, written).await?;
    // Other importers may have added columns since the table was looked at. They cannot add more:
    // staging has locked it against them.
    let existing = postgres_columns(connection, &job.feed.table).await.map_err(failed)?;
    // No statement outlives its staging table, which is gone after the transaction.
    let bend = merge.bend();
    for Bent { from, to } in bent {
        let bend = sqlx::query(&bend).persistent(false).bind(from).bind(to);
        bend.execute(&mut *connection).await.map_err(failed)?;
    }
    if merge.is_of_changes() {
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('weirgate merge ' || $1, 0))")
            .bind(job.feed.table.to_string())
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
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
    Ok(())
}

/// Copies all chunks of some of the imports. How many rows the table says it took.
async fn copy(
    connection: &mut PgConnection,
    table: &str,
    columns: &str,
    members: &[usize],
    imports: &mut [(Import<'_>, Chunks)],
    written: &mut [Written],
) -> Result<u64, Broken> {
    let Some(first) = members.first().map(|at| imports[*at].0.job) else { return Ok(0) };
    let failed = |error: sqlx::Error| refused(&first, "copying rows", &error);
    let statement = format!("COPY {table} ({columns}) FROM STDIN WITH (FORMAT binary)");
    let mut copy = connection.copy_in_raw(&statement).await.map_err(failed)?;
    let mut message = COPY_HEADER.to_vec();
    for at in members {
        let (import, chunks) = &mut imports[*at];
        let guilty = |failure| Broken { failure, guilty: Some(*at) };
        loop {
            let chunk = match chunks.next().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(failure) => {
                    // Best effort: the transaction is rolled back in any case.
                    let _ = copy.abort("the object could not be read to its end").await;
                    return Err(guilty(failure));
                }
            };
            written[*at].rows += chunk.rows;
            if chunk.bytes.len() >= MESSAGE_BYTES {
                if !message.is_empty() {
                    copy.send(std::mem::take(&mut message)).await.map_err(failed)?;
                }
                copy.send(chunk.bytes).await.map_err(failed)?;
            } else {
                message.extend_from_slice(&chunk.bytes);
                if message.len() >= MESSAGE_BYTES {
                    copy.send(std::mem::take(&mut message)).await.map_err(failed)?;
                }
            }
            if let Err(failure) = written[*at].reject(&import.job, chunk.rejected) {
                let _ = copy.abort("too many bad rows").await;
                return Err(guilty(failure));
            }
        }
    }
    message.extend_from_slice(COPY_TRAILER);
    copy.send(message).await.map_err(failed)?;
    Ok(copy.finish().await.map_err(failed)?)
}

fn nothing_dropped(
    members: &[usize],
    imports: &[(Import<'_>, Chunks)],
    written: &[Written],
    counted: u64,
) -> Result<(), Failure> {
    let rows: u64 = members.iter().map(|at| written[*at].rows).sum();
    let Some(first) = members.first().map(|at| imports[*at].0.job) else { return Ok(()) };
    if counted == rows {
        return Ok(());
    }
    let detail = format!(
        "{} into {}: the table took {counted} of {rows} rows; a trigger or a rule keeps rows out",
        first.object_name, first.feed.table
    );
    Err(Failure::permanent("rows_dropped", detail))
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
