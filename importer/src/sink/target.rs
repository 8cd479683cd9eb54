//! The table a feed writes to: created from the schema when it is missing, brought up to date as
//! far as the feed allows, and compiled with the schema into a plan. Done once per schema and
//! remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use weirgate_avro::container::Header;
use weirgate_avro::evolve;
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::{self, Plan};
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{Column, TableDef, quote};
use weirgate_common::clock;
use weirgate_common::config::WriteMode;
use weirgate_common::fault::{self, Fault};
use weirgate_common::ledger::{AlterError, Ledger, LedgerError};
use weirgate_common::table::{self, Misfit};

use super::merge::Merge;
use super::{Job, refused, unavailable};
use crate::failure::Failure;

/// Everything about the table that imports of one schema need.
#[derive(Debug)]
pub(super) struct Target {
    pub plan: Arc<Plan>,
    /// Quoted, with its schema where it has one.
    pub table: String,
    /// Quoted, in the order of the plan, separated by commas.
    pub columns: String,
    /// Absent where rows do not take the place of others.
    pub merge: Option<Merge>,
}

impl Target {
    /// What the table's columns say against rows made for this target. Nothing else would: PostgreSQL
    /// takes the bytes of a `bigint` for a `timestamptz`.
    pub(super) fn outdated(&self, existing: &[Column]) -> Option<String> {
        self.plan.columns().iter().find_map(|planned| {
            let now = existing.iter().find(|column| column.name == planned.name);
            match now {
                Some(now) if now.sql_type == planned.sql_type => None,
                Some(now) => Some(format!(
                    "column {} is {} now, it was {}",
                    planned.name, now.sql_type, planned.sql_type
                )),
                None => Some(format!("column {} is gone", planned.name)),
            }
        })
    }
}

/// Remembered targets, by feed and schema as it stands in the file: schemas of the same fingerprint
/// may differ in logical types, hence in columns.
#[derive(Default)]
pub(super) struct Targets(Mutex<Known>);

type Known = HashMap<String, HashMap<String, Arc<Target>>>;

/// More schemas per feed than this are a sign of schemas made up per file; the memory is then worth
/// more than the planning time.
const TARGETS_MAX: usize = 1_000;

impl Targets {
    pub(super) async fn prepare(
        &self,
        ledger: &Ledger,
        job: &Job<'_>,
        header: &Header,
    ) -> Result<Arc<Target>, Failure> {
        let writer = &header.writer;
        let known = self.lock().get(job.feed_name).and_then(|feed| feed.get(&writer.json)).cloned();
        if let Some(target) = known {
            return Ok(target);
        }
        let target = Arc::new(build(ledger, job, header, &captures(job)).await?);
        // Once per schema, ahead of the ledger rows that name it, instead of in every transaction.
        let recorded = ledger.record_schema(writer.fingerprint, &writer.json, clock::now()).await;
        recorded.map_err(|error| no_ledger(job, &error))?;
        let mut targets = self.lock();
        let feed = targets.entry(job.feed_name.to_owned()).or_default();
        if feed.len() >= TARGETS_MAX {
            feed.clear();
        }
        feed.insert(writer.json.clone(), target.clone());
        Ok(target)
    }

    /// After a failed import the table may not be what it was when the target was made: plan again
    /// next time. Waiting for others, or for the database, says nothing about the table.
    pub(super) fn reconsider(&self, feed: &str, failure: &Failure) {
        match failure.fault {
            Fault::Transient | Fault::Permanent => {
                self.lock().remove(feed);
            }
            Fault::Busy | Fault::Outage(_) => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // The map is whole after every statement, whoever panicked while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of the key that the feed's pattern names.
pub(super) fn captures(job: &Job<'_>) -> Vec<(String, String)> {
    let pattern = &job.feed.objects;
    let values = pattern.capture_values(&job.object.bucket, &job.object.key).unwrap_or_default();
    pattern.captures().iter().cloned().zip(values.into_iter().map(str::to_owned)).collect()
}

async fn build(
    ledger: &Ledger,
    job: &Job<'_>,
    header: &Header,
    captures: &[(String, String)],
) -> Result<Target, Failure> {
    let (feed, dialect) = (job.feed, ledger.dialect());
    let masks = table::masks(feed);
    let limits = Limits::default();
    let reader = match &feed.schema {
        Some(json) => {
            Some(Schema::parse(json, &limits).map_err(|error| incompatible(job, &error))?)
        }
        None => None,
    };
    let wanted = table::wanted(feed, reader.as_ref().unwrap_or(&header.writer.schema), captures)
        .map_err(|error| incompatible(job, &error))?;
    let ddl = |existing: &[Column]| table::ddl(dialect, feed, existing, &wanted);
    let existing =
        ledger.table_columns(&feed.table).await.map_err(|error| no_catalog(job, &error))?;
    let existing = if ddl(&existing).map_err(|misfit| unfit(job, &misfit))?.is_empty() {
        existing
    } else {
        ledger.alter_table(&feed.table, ddl).await.map_err(|error| unaltered(job, &error))?
    };
    let columns: Vec<Column> = existing
        .iter()
        .map(|column| match evolve::find(&wanted.columns, &column.name) {
            Some(want) => {
                let nullable = column.nullable && !wanted.key.contains(&want.name);
                Column { source: want.source.clone(), nullable, ..column.clone() }
            }
            None => column.clone(),
        })
        .collect();
    let key = key(ledger, job, &wanted, &columns).await?;
    let target = plan::Target { dialect, columns: &columns, masks: &masks, limits: &limits };
    let plan = table::plan(feed, &header.writer.schema, reader.as_ref(), &target)
        .map_err(|error| incompatible(job, &error))?;
    for note in plan.notes() {
        tracing::warn!(feed = job.feed_name, table = %feed.table, "{note}");
    }
    let table = table::quoted(dialect, &feed.table);
    let merge = match feed.write {
        WriteMode::Replace | WriteMode::Append => None,
        WriteMode::Upsert => Some(Merge::new(dialect, &table, None, plan.columns(), &key)),
        WriteMode::Cdc => {
            let key_columns: Vec<Column> =
                columns.iter().filter(|column| key.contains(&column.name)).cloned().collect();
            prepare_deleted(ledger, job, &key_columns).await?;
            let deleted = table::quoted(dialect, &feed.table.of_deleted());
            Some(Merge::new(dialect, &table, Some(deleted), plan.columns(), &key))
        }
    };
    let columns: Vec<String> = plan.columns().iter().map(|column| quote(&column.name)).collect();
    Ok(Target { plan: Arc::new(plan), table, columns: columns.join(", "), merge })
}

/// Makes the table that remembers deleted rows, or brings it up to date.
async fn prepare_deleted(ledger: &Ledger, job: &Job<'_>, key: &[Column]) -> Result<(), Failure> {
    let (feed, name) = (job.feed, job.feed.table.of_deleted());
    let ddl = |existing: &[Column]| table::deleted_ddl(ledger.dialect(), feed, existing, key);
    let existing = ledger.table_columns(&name).await.map_err(|error| no_ledger(job, &error))?;
    if ddl(&existing).map_err(|misfit| unfit(job, &misfit))?.is_empty() {
        return Ok(());
    }
    ledger.alter_table(&name, ddl).await.map(drop).map_err(|error| unaltered(job, &error))
}

/// The key's columns as the table has them; none where rows are not written by key.
async fn key(
    ledger: &Ledger,
    job: &Job<'_>,
    wanted: &TableDef,
    columns: &[Column],
) -> Result<Vec<String>, Failure> {
    if wanted.key.is_empty() {
        return Ok(Vec::new());
    }
    let unique = ledger.unique_keys(&job.feed.table).await;
    let unique = unique.map_err(|error| no_ledger(job, &error))?;
    table::check_key(job.feed, wanted, &unique).map_err(|misfit| unfit(job, &misfit))?;
    let name = |key: &String| evolve::find(columns, key).map(|column| column.name.clone());
    Ok(wanted.key.iter().filter_map(name).collect())
}

fn unaltered(job: &Job<'_>, error: &AlterError) -> Failure {
    match error {
        AlterError::Misfit(misfit) => unfit(job, misfit),
        AlterError::Ledger(error) => no_ledger(job, error),
    }
}

/// The database did not tell what the table is like.
fn no_catalog(job: &Job<'_>, error: &LedgerError) -> Failure {
    match error {
        LedgerError::Statement { what, source } => unavailable(job, what, source),
        _ => no_ledger(job, error),
    }
}

/// The database did not answer, or refused.
fn no_ledger(job: &Job<'_>, error: &LedgerError) -> Failure {
    match error {
        LedgerError::Statement { what, source } => refused(job, what, source),
        LedgerError::Connect { .. } | LedgerError::TooNew { .. } => {
            Failure::new(error.fault(), "database_away", fault::chain(error))
        }
    }
}

fn unfit(job: &Job<'_>, misfit: &Misfit) -> Failure {
    let code = match misfit {
        Misfit::NoLineage | Misfit::NoKey { .. } => "incompatible_table",
        Misfit::Incompatible { .. } | Misfit::Narrow { .. } | Misfit::Fixed { .. } => {
            "incompatible_schema"
        }
    };
    Failure { code, ..incompatible(job, misfit) }
}

fn incompatible(job: &Job<'_>, error: &(dyn std::error::Error + 'static)) -> Failure {
    let detail = format!(
        "{} does not fit table {}: {}",
        job.object_name,
        job.feed.table,
        fault::chain(error)
    );
    Failure::permanent("incompatible_schema", detail)
}
