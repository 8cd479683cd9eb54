//! The table a feed writes to: created from the schema when it is missing, brought up to date as
//! far as the feed allows, and compiled with the schema into a plan. Done once per schema and
//! remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use weirgate_common::config::{self, Evolve, Feed, TableName, WriteMode};
use weirgate_common::fault::{self, Fault};

use super::Job;
use crate::failure::Failure;
use weirgate_avro::container::Header;
use weirgate_avro::evolve::{self, Change};
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::{self, Plan};
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{Column, Dialect, Mask, Masks, OBJECT_COLUMN, Source, TableDef, quote};

/// Everything about the table that imports of one schema need.
#[derive(Debug)]
pub(super) struct Target {
    pub plan: Arc<Plan>,
    /// Quoted, with its schema where it has one.
    pub table: String,
    /// Quoted, in the order of the plan, separated by commas.
    pub columns: String,
}

/// What preparing a target asks of a database.
pub(super) trait Catalog {
    const DIALECT: Dialect;

    /// The columns of the table in its order; empty when there is no such table.
    fn columns(&self, job: &Job<'_>) -> impl Future<Output = Result<Vec<Column>, Failure>> + Send;

    /// Runs DDL in one transaction, alone among all importers. What is done already is no error.
    fn apply(
        &self,
        job: &Job<'_>,
        statements: &[String],
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Keeps the schema in the ledger under its fingerprint. What is there already stays.
    fn record_schema(
        &self,
        job: &Job<'_>,
        header: &Header,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Remembered targets, by feed and schema fingerprint.
#[derive(Default)]
pub(super) struct Targets(Mutex<HashMap<Key, Arc<Target>>>);

type Key = (String, i64);

/// More schemas per importer than this are a sign of schemas made up per file; the memory is
/// then worth more than the planning time.
const TARGETS_MAX: usize = 1_000;

impl Targets {
    pub(super) async fn prepare<C: Catalog>(
        &self,
        catalog: &C,
        job: &Job<'_>,
        header: &Header,
    ) -> Result<Arc<Target>, Failure> {
        let captures = captures(job);
        let key = (job.feed_name.to_owned(), header.fingerprint);
        if let Some(target) = self.lock().get(&key) {
            return Ok(target.clone());
        }
        let target = Arc::new(build(catalog, job, header, &captures).await?);
        // Once per schema, ahead of the ledger rows that name it, instead of in every transaction.
        catalog.record_schema(job, header).await?;
        let mut targets = self.lock();
        if targets.len() >= TARGETS_MAX {
            targets.clear();
        }
        targets.insert(key, target.clone());
        Ok(target)
    }

    /// After a failed import the table may not be what it was when the target was made: plan again
    /// next time. Waiting for others, or for the database, says nothing about the table.
    pub(super) fn reconsider(&self, feed: &str, failure: &Failure) {
        match failure.fault {
            Fault::Transient | Fault::Permanent => self.lock().retain(|(name, _), _| name != feed),
            Fault::Busy | Fault::Outage(_) => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Target>>> {
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

/// The table's name as the database wants it in statements.
fn quoted(dialect: Dialect, table: &TableName) -> String {
    match dialect {
        Dialect::Postgres => table.in_postgres(),
        Dialect::Sqlite => quote(&table.in_sqlite()),
    }
}

async fn build<C: Catalog>(
    catalog: &C,
    job: &Job<'_>,
    header: &Header,
    captures: &[(String, String)],
) -> Result<Target, Failure> {
    let table = quoted(C::DIALECT, &job.feed.table);
    let masks = masks(job.feed);
    let limits = Limits::default();
    let reader = match &job.feed.schema {
        Some(json) => {
            Some(Schema::parse(json, &limits).map_err(|error| incompatible(job, &error))?)
        }
        None => None,
    };
    let wanted = TableDef::new(reader.as_ref().unwrap_or(&header.schema), captures, true, &masks)
        .map_err(|error| incompatible(job, &error))?;
    let mut existing = catalog.columns(job).await?;
    if existing.is_empty() {
        let statements = create(C::DIALECT, &job.feed.table, &wanted);
        catalog.apply(job, &statements).await?;
        existing = catalog.columns(job).await?;
    }
    let lineage = evolve::find(&existing, OBJECT_COLUMN).is_some();
    if !lineage && job.feed.write == WriteMode::Replace {
        let detail = format!(
            "table {} has no column {OBJECT_COLUMN}, which write = \"replace\" needs to find the rows of an overwritten object; add `{OBJECT_COLUMN} bigint`, or set write = \"append\"",
            job.feed.table
        );
        return Err(Failure::permanent("incompatible_table", detail));
    }
    let wanted: Vec<Column> =
        wanted.columns.into_iter().filter(|c| lineage || c.source != Source::Object).collect();
    let changes = evolve::diff(C::DIALECT, &existing, &wanted);
    let statements = allowed(C::DIALECT, job, &table, &changes)?;
    if !statements.is_empty() {
        catalog.apply(job, &statements).await?;
        existing = catalog.columns(job).await?;
    }
    let columns: Vec<Column> = existing
        .into_iter()
        .map(|column| match evolve::find(&wanted, &column.name) {
            Some(want) => Column { source: want.source.clone(), ..column },
            None => column,
        })
        .collect();
    let target =
        plan::Target { dialect: C::DIALECT, columns: &columns, masks: &masks, limits: &limits };
    let plan = Plan::compile(&header.schema, reader.as_ref(), &target)
        .map_err(|error| incompatible(job, &error))?;
    for note in plan.notes() {
        tracing::warn!(feed = job.feed_name, table = %job.feed.table, "{note}");
    }
    let columns: Vec<String> = plan.columns().iter().map(|column| quote(&column.name)).collect();
    Ok(Target { plan: Arc::new(plan), table, columns: columns.join(", ") })
}

fn masks(feed: &Feed) -> Masks {
    let mask = |mask: &config::Mask| match mask {
        config::Mask::Sha256 { salt } => Mask::Sha256 { salt: salt.0.clone() },
        config::Mask::Null => Mask::Null,
        config::Mask::Last4 => Mask::Last4,
    };
    feed.masks.iter().map(|(field, config)| (field.clone(), mask(config))).collect()
}

fn create(dialect: Dialect, name: &TableName, wanted: &TableDef) -> Vec<String> {
    let table = quoted(dialect, name);
    let mut statements = Vec::new();
    if let (Dialect::Postgres, Some(schema)) = (dialect, &name.schema) {
        // IF NOT EXISTS asks for CREATE on the database even when the schema exists.
        let literal = schema.replace('\'', "''");
        statements.push(format!(
            "DO $weirgate$ BEGIN IF to_regnamespace(quote_ident('{literal}')) IS NULL THEN CREATE SCHEMA {}; END IF; END $weirgate$",
            quote(schema)
        ));
    }
    statements.push(wanted.create_table_sql(dialect, &table));
    if dialect == Dialect::Postgres {
        // The rows of one object lie together, so block ranges find them at next to no cost.
        let index: String = format!("{}__object", name.name).chars().take(60).collect();
        statements.push(format!(
            "CREATE INDEX IF NOT EXISTS {} ON {table} USING brin ({})",
            quote(&index),
            quote(OBJECT_COLUMN)
        ));
    }
    statements
}

/// The DDL the feed's policy lets us run, or why it does not.
fn allowed(
    dialect: Dialect,
    job: &Job<'_>,
    table: &str,
    changes: &[Change],
) -> Result<Vec<String>, Failure> {
    let mut statements = Vec::new();
    for change in changes {
        let reason = match (change, job.feed.evolve) {
            (Change::Incompatible { field, old, new }, _) => {
                format!("field {field} is {new}, but the column is {old}")
            }
            (Change::Widen { column, from, to }, Evolve::Fixed | Evolve::AddColumns) => {
                format!(
                    "column {column} is {from} and would have to become {to}; alter it or set evolve = \"widen\", then replay"
                )
            }
            (Change::Add(column), Evolve::Fixed) => {
                format!(
                    "the table has no column {} and evolve = \"fixed\"; add it, then replay",
                    column.name
                )
            }
            // Under a fixed table a null is a bad row, if one ever comes.
            (Change::Relax { .. }, Evolve::Fixed) => continue,
            (Change::Add(_) | Change::Relax { .. }, Evolve::AddColumns | Evolve::Widen)
            | (Change::Widen { .. }, Evolve::Widen) => {
                statements.extend(evolve::change_sql(dialect, table, change));
                continue;
            }
        };
        let detail = format!("{} does not fit table {}: {reason}", job.object_name, job.feed.table);
        return Err(Failure::permanent("incompatible_schema", detail));
    }
    Ok(statements)
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
