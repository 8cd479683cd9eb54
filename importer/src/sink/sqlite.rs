//! The import transaction on SQLite: the one writer's lock, ledger, a prepared statement per row,
//! commit. SQLite works on its caller's thread, so rows are bound where tokio lets us block.

use std::sync::Arc;

use sqlx::{Connection, Executor, Row, SqliteConnection, SqlitePool};
use weirgate_common::clock;
use weirgate_common::config::OnBadRow;
use weirgate_common::ledger::sqlite_fault;

use super::admission::{Admission, LedgerRow, admit};
use super::statement::Statement;
use super::target::{Catalog, Target, Targets, captures};
use super::{
    ADVANCE_SEQUENCER, INSERT_LEDGER, INSERT_REJECTED, INSERT_SCHEMA, Job, MARK_REPLACED, NewRow,
    Outcome, SELECT_LEDGER, Written, bad_key, bind_ledger, ledger_row, refused, target_of,
};
use crate::avro::fault::Fault;
use crate::avro::rows::Stopped;
use crate::avro::table::{Column, Dialect, Source, SqlType, quote};
use crate::failure::Failure;
use crate::rows::{Chunks, Format, Opened, bad_row, rejected};

#[derive(Clone)]
pub struct Sqlite {
    pool: SqlitePool,
    targets: Arc<Targets>,
}

impl Sqlite {
    pub fn new(pool: SqlitePool) -> Self {
        Sqlite { pool, targets: Arc::default() }
    }

    pub async fn ledger_rows(&self, job: &Job<'_>) -> Result<Vec<LedgerRow>, Failure> {
        let mut connection = self.acquire(job).await?;
        select_ledger(&mut connection, job).await
    }

    pub async fn import(&self, job: &Job<'_>, opened: Opened) -> Result<Outcome, Failure> {
        let new_row = NewRow::new(*job, &opened);
        let schema_json = opened.header().map(|header| header.schema_json.clone());
        let target = target_of(&self.targets, self, job, opened.header()).await?;
        let chunks = opened.start(Format::Blocks).await?;
        let imported =
            self.transaction(&new_row, target.as_deref(), chunks, schema_json.as_deref()).await;
        if imported.is_err() {
            self.targets.forget(job.feed_name);
        }
        imported
    }

    async fn transaction(
        &self,
        new_row: &NewRow<'_>,
        target: Option<&Target>,
        mut chunks: Chunks,
        schema_json: Option<&str>,
    ) -> Result<Outcome, Failure> {
        let job = &new_row.job;
        let failed = |doing: &'static str| move |error: sqlx::Error| refused(job, doing, &error);
        let mut connection = self.acquire(job).await?;
        // IMMEDIATE: the ledger is read under the write lock, so nobody commits in between.
        let mut transaction =
            connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed("begin"))?;
        let ledger = select_ledger(&mut transaction, job).await?;
        let object = job.object;
        let outcome =
            match admit(job.feed.write, &object.etag, object.sequencer.as_deref(), &ledger) {
                Admission::Superseded => return Ok(Outcome::Superseded),
                Admission::AlreadyCommitted { advance_sequencer } => {
                    if let Some(row) = advance_sequencer {
                        sqlx::query(&prefixed(ADVANCE_SEQUENCER))
                            .bind(row)
                            .bind(&object.sequencer)
                            .execute(&mut *transaction)
                            .await
                            .map_err(failed("advancing the sequencer"))?;
                    }
                    Outcome::AlreadyCommitted
                }
                Admission::Import { replaces } => {
                    for row in &replaces {
                        replace(&mut transaction, job, *row).await?;
                    }
                    let now = clock::now();
                    // The row comes first, since it hands out the id that the others carry.
                    let insert = prefixed(INSERT_LEDGER);
                    let insert = sqlx::query(&insert);
                    let id = bind_ledger!(insert, None::<i64>, new_row, Written::default(), now)
                        .execute(&mut *transaction)
                        .await
                        .map_err(failed("writing the ledger row"))?
                        .last_insert_rowid();
                    let written = match target {
                        Some(target) => {
                            insert_rows(&mut transaction, job, target, id, &mut chunks).await?
                        }
                        None => Written::default(),
                    };
                    sqlx::query(
                        "UPDATE weirgate_object SET rows = $2, rejected_rows = $3 WHERE id = $1",
                    )
                    .bind(id)
                    .bind(written.rows())
                    .bind(written.rejected())
                    .execute(&mut *transaction)
                    .await
                    .map_err(failed("writing the ledger row"))?;
                    for row in &written.rejected {
                        sqlx::query(&prefixed(INSERT_REJECTED))
                            .bind(id)
                            .bind(i64::try_from(row.ordinal).unwrap_or(i64::MAX))
                            .bind(&row.reason)
                            .bind(&row.record)
                            .execute(&mut *transaction)
                            .await
                            .map_err(failed("recording a rejected row"))?;
                    }
                    if let (Some(fingerprint), Some(json)) = (new_row.fingerprint, schema_json) {
                        sqlx::query(&prefixed(INSERT_SCHEMA))
                            .bind(fingerprint)
                            .bind(json)
                            .bind(now)
                            .execute(&mut *transaction)
                            .await
                            .map_err(failed("recording the schema"))?;
                    }
                    let rejected = written.rejected.len();
                    Outcome::Committed { rows: written.rows, rejected, replaced: replaces.len() }
                }
            };
        transaction.commit().await.map_err(failed("commit"))?;
        Ok(outcome)
    }

    async fn acquire(
        &self,
        job: &Job<'_>,
    ) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>, Failure> {
        self.pool.acquire().await.map_err(|error| refused(job, "connecting", &error))
    }
}

impl Catalog for Sqlite {
    const DIALECT: Dialect = Dialect::Sqlite;

    async fn columns(&self, job: &Job<'_>) -> Result<Vec<Column>, Failure> {
        let failed = |error: sqlx::Error| refused(job, "reading the table's columns", &error);
        let rows = sqlx::query("SELECT name, type, \"notnull\" FROM pragma_table_info($1)")
            .bind(job.feed.table.in_sqlite())
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        rows.into_iter()
            .map(|row| {
                let (name, declared): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                Ok(Column {
                    source: Source::Field(name.clone()),
                    name,
                    sql_type: SqlType::from_sqlite(&declared),
                    nullable: !row.try_get::<bool, _>(2)?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn apply(&self, job: &Job<'_>, statements: &[String]) -> Result<(), Failure> {
        let failed = |error: sqlx::Error| refused(job, "preparing the table", &error);
        let mut connection = self.acquire(job).await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        for statement in statements {
            tracing::info!(feed = job.feed_name, "{statement}");
            match transaction.execute(statement.as_str()).await {
                Ok(_) => {}
                // SQLite has no ADD COLUMN IF NOT EXISTS; another importer was first.
                Err(error) if error.to_string().contains("duplicate column name") => {}
                Err(error) => return Err(failed(error)),
            }
        }
        transaction.commit().await.map_err(failed)
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

/// Takes an older version's rows out of the table.
async fn replace(
    connection: &mut SqliteConnection,
    job: &Job<'_>,
    row: i64,
) -> Result<(), Failure> {
    let failed = |error: sqlx::Error| refused(job, "replacing the older version", &error);
    let delete = format!("DELETE FROM {} WHERE _object = $1", quote(&job.feed.table.in_sqlite()));
    sqlx::query(&delete).bind(row).execute(&mut *connection).await.map_err(failed)?;
    sqlx::query(&prefixed(MARK_REPLACED)).bind(row).execute(connection).await.map_err(failed)?;
    Ok(())
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
