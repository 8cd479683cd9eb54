//! The import transaction on PostgreSQL: advisory locks, ledger, binary COPY, commit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgRow;
use sqlx::{Executor, FromRow as _, PgConnection, PgPool};
use weirgate_avro::copy::{COPY_HEADER, COPY_TRAILER};
use weirgate_avro::table::Column;
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::fault::Fault;
use weirgate_common::ledger::{Ledger, postgres_column};

use super::admission::LedgerRow;
use super::literal;
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
        let failed = |error: sqlx::Error| refused(first, "reading the ledger", &error);
        let no_locks = literal::array::<i64>([]);
        let question = admission(jobs, no_locks, None)?;
        let answer = connection.fetch_all(question.as_str()).await.map_err(failed)?;
        Ok(Admitted::from(jobs, &answer).map_err(failed)?.rows)
    }

    async fn acquire(&self, job: &Job<'_>) -> Result<PoolConnection<sqlx::Postgres>, Failure> {
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

    async fn begin(
        &self,
        all: &Job<'_>,
        jobs: &[Job<'_>],
        targets: &[Arc<Target>],
    ) -> Result<Open, Failure> {
        let failed = |error: sqlx::Error| unavailable(all, "begin", &error);
        let locks = jobs
            .iter()
            .map(|job| Some(lock_key(&[job.feed_name, &job.object.bucket, &job.object.key])));
        let table = targets.first().map(|target| target.table.as_str());
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; {}",
            admission(jobs, literal::array(locks), table)?
        );
        let mut open = Open::on(self.acquire(all).await?);
        let answer = open.connection.fetch_all(begin.as_str()).await.map_err(failed)?;
        let admitted = Admitted::from(jobs, &answer).map_err(failed)?;
        if let Some(why) = targets.iter().find_map(|target| target.outdated(&admitted.columns)) {
            let detail = format!("{} was altered: {why}; planning again", all.feed.table);
            return Err(Failure::new(Fault::Transient, "table_altered", detail));
        }
        open.admitted = admitted;
        Ok(open)
    }
}

/// Asks what `weirgate.admission` answers.
fn admission(jobs: &[Job<'_>], locks: String, table: Option<&str>) -> Result<String, Failure> {
    let names = jobs.iter().flat_map(|job| {
        let object = job.object;
        let optional = [&object.version_id, &object.sequencer].into_iter().flatten();
        [&object.bucket, &object.key, &object.etag].into_iter().chain(optional)
    });
    if let Some(name) = names.into_iter().find(|name| name.contains('\0')) {
        let detail = format!("{name:?} contains NUL, which PostgreSQL cannot hold");
        return Err(Failure::permanent("bad_key", detail));
    }
    Ok(format!(
        "SELECT * FROM weirgate.admission({}, {locks}, {}, {}, {})",
        literal::text(jobs.first().map_or("", |job| job.feed_name)),
        literal::array(jobs.iter().map(|job| Some(&job.object.bucket))),
        literal::array(jobs.iter().map(|job| Some(&job.object.key))),
        table.map_or_else(|| "NULL".to_owned(), literal::text),
    ))
}

/// What `weirgate.admission` said.
#[derive(Default)]
struct Admitted {
    /// The ledger rows of each job.
    rows: Vec<Vec<LedgerRow>>,
    /// Whether this transaction has the lock on them.
    locked: Vec<bool>,
    /// Of the table that was asked for, which nobody alters until the transaction ends.
    columns: Vec<Column>,
}

impl Admitted {
    fn from(jobs: &[Job<'_>], answer: &[PgRow]) -> Result<Self, sqlx::Error> {
        type Row = (
            i64,
            bool,
            Option<i64>,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<i64>,
            Option<String>,
        );
        let mut admitted = Admitted {
            rows: jobs.iter().map(|_| Vec::new()).collect(),
            locked: vec![false; jobs.len()],
            columns: Vec::new(),
        };
        for row in answer {
            let (n, locked, id, etag, sequencer, state, event_at_ms, columns) = Row::from_row(row)?;
            let at = n as usize - 1;
            admitted.locked[at] = locked;
            if let Some(columns) = columns {
                let columns: Vec<_> = serde_json::from_str(&columns)
                    .map_err(|error| sqlx::Error::Decode(error.into()))?;
                admitted.columns = columns.into_iter().map(postgres_column).collect();
            }
            if let (Some(id), Some(etag), Some(state)) = (id, etag, state) {
                let event_at = event_at_ms.map(Timestamp::from_unix_ms);
                admitted.rows[at].push(ledger_row((id, etag, sequencer, state, event_at)));
            }
        }
        Ok(admitted)
    }
}

/// An open transaction. Dropped before its end, it takes its connection with it.
pub(super) struct Open {
    connection: PoolConnection<sqlx::Postgres>,
    ended: bool,
    admitted: Admitted,
    bent: Vec<Bent>,
    /// The last statement before COMMIT.
    insert_ledger: String,
}

impl Open {
    fn on(connection: PoolConnection<sqlx::Postgres>) -> Self {
        Open {
            connection,
            ended: false,
            admitted: Admitted::default(),
            bent: Vec::new(),
            insert_ledger: String::new(),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

impl Transaction for Open {
    async fn ledger(&mut self, jobs: &[Job<'_>]) -> Result<Vec<Option<Vec<LedgerRow>>>, Failure> {
        let rows = std::mem::take(&mut self.admitted.rows);
        self.bent = bent(jobs, &rows);
        let found = rows.into_iter().zip(&self.admitted.locked);
        Ok(found.map(|(rows, locked)| locked.then_some(rows)).collect())
    }

    async fn advance_sequencer(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let update = sqlx::query(ADVANCE_SEQUENCER).bind(row).bind(&job.object.sequencer);
        let done = update.execute(&mut *self.connection).await;
        done.map(drop).map_err(|error| refused(job, "advancing the sequencer", &error))
    }

    async fn replace(&mut self, job: &Job<'_>, row: i64) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| refused(job, "replacing the older version", &error);
        let connection = &mut *self.connection;
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
            match &target.merge {
                None => {
                    let (into, table, columns) =
                        (&mut self.connection, &target.table, &target.columns);
                    let counted =
                        copy(into, table, columns, &members, &mut imports, &mut written).await?;
                    nothing_dropped(&members, &imports, &written, counted)?;
                }
                Some(merge) => {
                    self.merge(merge, &members, &mut imports, &mut written).await?;
                }
            }
        }
        for ((import, _), written) in imports.iter().zip(&written) {
            let job = &import.job;
            for row in &written.rejected {
                sqlx::query(INSERT_REJECTED)
                    .bind(import.id)
                    .bind(i64::try_from(row.ordinal).unwrap_or(i64::MAX))
                    .bind(row.reason.replace('\0', "\u{fffd}"))
                    .bind(&row.record)
                    .execute(&mut *self.connection)
                    .await
                    .map_err(|error| refused(job, "writing rejected rows", &error))?;
            }
        }
        self.insert_ledger = insert_ledger(&imports, &written);
        Ok(written)
    }

    async fn commit(mut self, job: &Job<'_>) -> Result<(), Failure> {
        let statements = format!("{}COMMIT", self.insert_ledger);
        let done = self.connection.execute(statements.as_str()).await;
        done.map_err(|error| refused(job, "commit", &error))?;
        self.ended = true;
        Ok(())
    }

    async fn leave(mut self) {
        self.ended = self.connection.execute("ROLLBACK").await.is_ok();
    }
}

/// The statement that writes the ledger rows, with a semicolon; nothing for no imports.
fn insert_ledger(imports: &[(Import<'_>, Chunks)], written: &[Written]) -> String {
    let Some((Import { job, .. }, _)) = imports.first() else { return String::new() };
    let imports = || imports.iter().map(|(import, _)| import);
    let objects = || imports().map(|import| import.job.object);
    let fingerprint = |import: &Import<'_>| Some(import.header.as_ref()?.writer.fingerprint);
    format!(
        "INSERT INTO weirgate.object (feed, table_name, worker, committed_at, state, id, bucket, key,
             etag, version_id, sequencer, rows, rejected_rows, bytes, schema_fingerprint, event_at,
             received_at)
         SELECT {}, {}, {}, {}::timestamptz, 'committed', m.* FROM unnest({}::bigint[], {}::text[],
             {}::text[], {}::text[], {}::text[], {}::text[], {}::bigint[], {}::bigint[],
             {}::bigint[], {}::bigint[], {}::timestamptz[], {}::timestamptz[]) AS m; ",
        literal::text(job.feed_name),
        literal::text(&job.feed.table.to_string()),
        literal::text(job.worker),
        literal::text(&clock::now().to_string()),
        literal::array(imports().map(|import| Some(import.id))),
        literal::array(objects().map(|object| Some(&object.bucket))),
        literal::array(objects().map(|object| Some(&object.key))),
        literal::array(objects().map(|object| Some(&object.etag))),
        literal::array(objects().map(|object| object.version_id.as_ref())),
        literal::array(objects().map(|object| object.sequencer.as_ref())),
        literal::array(written.iter().map(|it| Some(it.rows()))),
        literal::array(written.iter().map(|it| Some(it.rejected()))),
        literal::array(imports().map(|import| Some(import.bytes))),
        literal::array(imports().map(fingerprint)),
        literal::array(objects().map(|object| object.at)),
        literal::array(imports().map(|import| Some(import.job.received_at))),
    )
}

/// Messages to the server are made at least this large.
const MESSAGE_BYTES: usize = 32 << 10;

impl Open {
    /// Stages all chunks of some of the imports, and merges them into the table.
    async fn merge(
        &mut self,
        merge: &Merge,
        members: &[usize],
        imports: &mut [(Import<'_>, Chunks)],
        written: &mut [Written],
    ) -> Result<(), Broken> {
        let Some(job) = members.first().map(|at| imports[*at].0.job) else { return Ok(()) };
        let failed = |error: sqlx::Error| refused(&job, "merging rows", &error);
        let (connection, existing) = (&mut *self.connection, &self.admitted.columns);
        connection.execute(merge.begin().as_str()).await.map_err(failed)?;
        copy(connection, merge.stage(), &merge.staged(), members, imports, written).await?;
        // No statement outlives its staging table, which is gone after the transaction.
        let bend = merge.bend();
        for Bent { from, to } in &self.bent {
            let bend = sqlx::query(&bend).persistent(false).bind(from).bind(to);
            bend.execute(&mut *connection).await.map_err(failed)?;
        }
        if merge.is_of_changes() {
            sqlx::query(
                "SELECT pg_advisory_xact_lock(hashtextextended('weirgate merge ' || $1, 0))",
            )
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
            connection.execute(merge.apply(existing).as_str()).await.map_err(failed)?;
        } else {
            connection.execute(merge.upsert(existing).as_str()).await.map_err(failed)?;
        }
        connection.execute(merge.end().as_str()).await.map_err(failed)?;
        Ok(())
    }
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
