//! The table a feed writes to: what a schema wants it to be, and the DDL from what it is.

use std::collections::BTreeSet;

use weirgate_avro::envelope::{self, NoEnvelope};
use weirgate_avro::evolve::{self, Change};
use weirgate_avro::plan::{self, Plan, PlanError};
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{
    Column, Dialect, Mask, Masks, OBJECT_COLUMN, Source, SqlType, TableDef, TableError,
    VERSION_COLUMN, quote,
};

use crate::config::{self, Evolve, Feed, TableName, WriteMode};

/// Why no DDL that the feed allows makes a schema's rows fit into the table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Misfit {
    #[error(
        "it has no column {OBJECT_COLUMN}, which write = \"replace\" needs to find the rows of an overwritten object; add `{OBJECT_COLUMN} bigint`, or set write = \"append\""
    )]
    NoLineage,
    #[error("field {field} is {new}, but the column is {old}")]
    Incompatible { field: String, old: SqlType, new: SqlType },
    #[error(
        "column {column} is {from} and would have to become {to}; alter it or set evolve = \"widen\", then replay"
    )]
    Narrow { column: String, from: SqlType, to: SqlType },
    #[error(
        "the table has no column {column} and evolve = \"fixed\"; add it as {sql_type}, then replay"
    )]
    Fixed { column: String, sql_type: SqlType },
    #[error(
        "nothing keeps the values of its key apart; run CREATE UNIQUE INDEX ON {table} ({key}), or let Weirgate make a table of another name"
    )]
    NoKey { table: String, key: String },
}

/// Why a schema makes no table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unwanted {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Envelope(#[from] NoEnvelope),
}

/// What the rows of a schema want the feed's table to be. `captures` have a value each, which
/// decides between `date` and `text`.
pub fn wanted(
    feed: &Feed,
    schema: &Schema,
    captures: &[(String, String)],
) -> Result<TableDef, Unwanted> {
    let masks = masks(feed);
    match feed.write {
        WriteMode::Replace | WriteMode::Append => {
            Ok(TableDef::new(schema, captures, true, &masks)?)
        }
        WriteMode::Upsert => Ok(TableDef::new(schema, captures, true, &masks)?.keyed(&feed.key)?),
        WriteMode::Cdc => {
            let row = envelope::image(schema)?;
            Ok(TableDef::new(&row, captures, true, &masks)?.keyed(&feed.key)?)
        }
    }
}

/// The way from a writer's files to the feed's table.
pub fn plan(
    feed: &Feed,
    writer: &Schema,
    reader: Option<&Schema>,
    target: &plan::Target<'_>,
) -> Result<Plan, PlanError> {
    match feed.write {
        WriteMode::Replace | WriteMode::Append | WriteMode::Upsert => {
            Plan::compile(writer, reader, target)
        }
        WriteMode::Cdc => Plan::compile_changes(writer, &feed.key, target),
    }
}

/// What to run so that the table that remembers deleted rows, which has the columns `existing`,
/// holds the keys of the feed's table. A row without a key stands for a truncate.
pub fn deleted_ddl(
    dialect: Dialect,
    feed: &Feed,
    existing: &[Column],
    key: &[Column],
) -> Result<Vec<String>, Misfit> {
    let mut columns: Vec<Column> =
        key.iter().map(|column| Column { nullable: true, ..column.clone() }).collect();
    columns.push(Column {
        name: VERSION_COLUMN.to_owned(),
        source: Source::Version,
        sql_type: SqlType::Text,
        nullable: true,
    });
    let wanted = TableDef { columns, key: key.iter().map(|column| column.name.clone()).collect() };
    let name = feed.table.of_deleted();
    if existing.is_empty() {
        return Ok(create(dialect, &name, &wanted));
    }
    let table = quoted(dialect, &name);
    let mut statements = Vec::new();
    // Its types follow those of the feed's table, whatever let that one change.
    for change in evolve::diff(dialect, existing, &wanted.columns) {
        if allowed(&change, Evolve::Widen)? {
            statements.extend(evolve::change_sql(dialect, &table, &change));
        }
    }
    Ok(statements)
}

/// The key's columns as they will be once [`ddl`] has run.
pub fn key_columns(dialect: Dialect, existing: &[Column], wanted: &TableDef) -> Vec<Column> {
    let key = wanted.columns.iter().filter(|column| wanted.key.contains(&column.name));
    key.map(|want| match evolve::find(existing, &want.name) {
        None => want.clone(),
        Some(have) => match evolve::diff(dialect, existing, std::slice::from_ref(want)).pop() {
            Some(Change::Widen { to, .. }) => Column { sql_type: to, ..have.clone() },
            _ => have.clone(),
        },
    })
    .collect()
}

/// Fails unless one of the table's unique keys is that of the feed.
pub fn check_key(feed: &Feed, wanted: &TableDef, unique: &[Vec<String>]) -> Result<(), Misfit> {
    let folded = |names: &[String]| -> BTreeSet<String> {
        names.iter().map(|name| name.to_lowercase()).collect()
    };
    let key = folded(&wanted.key);
    if key.is_empty() || unique.iter().any(|unique| folded(unique) == key) {
        return Ok(());
    }
    let key: Vec<String> = wanted.key.iter().map(|name| quote(name)).collect();
    Err(Misfit::NoKey { table: feed.table.to_string(), key: key.join(", ") })
}

/// The feed's masks as the rows need them.
pub fn masks(feed: &Feed) -> Masks {
    let mask = |mask: &config::Mask| match mask {
        config::Mask::Sha256 { salt } => Mask::Sha256 { salt: salt.0.clone() },
        config::Mask::Null => Mask::Null,
        config::Mask::Last4 => Mask::Last4,
    };
    feed.masks.iter().map(|(field, config)| (field.clone(), mask(config))).collect()
}

/// The table's name as the database wants it in statements.
pub fn quoted(dialect: Dialect, table: &TableName) -> String {
    match dialect {
        Dialect::Postgres => table.in_postgres(),
        Dialect::Sqlite => quote(&table.in_sqlite()),
    }
}

/// The columns of `wanted` that a table with the columns `existing` is to have: a table that its
/// user made without lineage gets none.
pub fn wanted_in<'w>(
    existing: &[Column],
    wanted: &'w TableDef,
) -> impl Iterator<Item = &'w Column> + use<'w> {
    let lineage = existing.is_empty() || evolve::find(existing, OBJECT_COLUMN).is_some();
    wanted.columns.iter().filter(move |column| lineage || column.source != Source::Object)
}

/// What to run so that rows of `wanted` fit into the feed's table, which has the columns
/// `existing`, or is not there when there are none. Nothing: they fit.
pub fn ddl(
    dialect: Dialect,
    feed: &Feed,
    existing: &[Column],
    wanted: &TableDef,
) -> Result<Vec<String>, Misfit> {
    if existing.is_empty() {
        return Ok(create(dialect, &feed.table, wanted));
    }
    let wanted: Vec<Column> = wanted_in(existing, wanted).cloned().collect();
    let lineage = wanted.iter().any(|column| column.source == Source::Object);
    if !lineage && feed.write == WriteMode::Replace {
        return Err(Misfit::NoLineage);
    }
    let table = quoted(dialect, &feed.table);
    let mut statements = Vec::new();
    for change in evolve::diff(dialect, existing, &wanted) {
        if allowed(&change, feed.evolve)? {
            statements.extend(evolve::change_sql(dialect, &table, &change));
        }
    }
    Ok(statements)
}

/// Whether the change is to be made; that it may not be is an error.
fn allowed(change: &Change, evolve: Evolve) -> Result<bool, Misfit> {
    match (change.clone(), evolve) {
        (Change::Incompatible { field, old, new }, _) => {
            Err(Misfit::Incompatible { field, old, new })
        }
        (Change::Widen { column, from, to }, Evolve::Fixed | Evolve::AddColumns) => {
            Err(Misfit::Narrow { column, from, to })
        }
        (Change::Add(column), Evolve::Fixed) => {
            Err(Misfit::Fixed { column: column.name, sql_type: column.sql_type })
        }
        // Under a fixed table a null is a bad row, if one ever comes.
        (Change::Relax { .. }, Evolve::Fixed) => Ok(false),
        (Change::Add(_) | Change::Relax { .. }, Evolve::AddColumns | Evolve::Widen)
        | (Change::Widen { .. }, Evolve::Widen) => Ok(true),
    }
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
    // Rows written by key get scattered, and an index on what every update changes would keep
    // PostgreSQL from updating them in place.
    if dialect == Dialect::Postgres && wanted.key.is_empty() {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weirgate_avro::limits::Limits;
    use weirgate_avro::schema::Schema;

    use super::*;
    use crate::config::Config;

    fn feed(settings: &str) -> Feed {
        let text = format!(
            r#"
            database = "sqlite://w.db"
            [fleet.ads]
            queue = "https://sqs.eu-west-1.amazonaws.com/1/ads"
            [feed.a]
            fleet = "ads"
            objects = "s3://b/**"
            table = "ads.a"
            {settings}
            "#
        );
        Config::parse(&text, &BTreeMap::new()).unwrap().feeds.remove("a").unwrap()
    }

    fn table(fields: &str) -> TableDef {
        let json = format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
        let schema = Schema::parse(&json, &Limits::default()).unwrap();
        TableDef::new(&schema, &[], true, &Masks::new()).unwrap()
    }

    const ID: &str = r#"{"name":"id","type":"int"}"#;
    const WIDER: &str = r#"{"name":"id","type":"long"},{"name":"note","type":"string"}"#;

    #[test]
    fn a_missing_table_is_made_and_then_fits() {
        let wanted = table(ID);
        let statements = ddl(Dialect::Postgres, &feed(""), &[], &wanted).unwrap();
        assert_eq!(statements.len(), 3);
        assert!(statements[1].starts_with("create table if not exists \"ads\".\"a\""));
        assert_eq!(ddl(Dialect::Postgres, &feed(""), &wanted.columns, &wanted), Ok(vec![]));
    }

    #[test]
    fn the_feed_says_how_far_a_table_may_change() {
        let (existing, wanted) = (table(ID).columns, table(WIDER));
        let under = |evolve: &str| {
            let feed = feed(&format!("evolve = \"{evolve}\""));
            ddl(Dialect::Postgres, &feed, &existing, &wanted)
        };
        assert_eq!(
            under("widen"),
            Ok(vec![
                "alter table \"ads\".\"a\" alter column \"id\" type bigint".to_owned(),
                "alter table \"ads\".\"a\" add column if not exists \"note\" text".to_owned(),
            ])
        );
        let narrow =
            Misfit::Narrow { column: "id".to_owned(), from: SqlType::Integer, to: SqlType::Bigint };
        assert_eq!(under("add_columns"), Err(narrow));
        let only_new = table(&format!(r#"{ID},{{"name":"note","type":"string"}}"#));
        assert!(matches!(
            ddl(Dialect::Postgres, &feed("evolve = \"fixed\""), &existing, &only_new),
            Err(Misfit::Fixed { .. })
        ));
    }

    #[test]
    fn a_key_needs_an_index_of_its_own() {
        let feed = feed("write = \"upsert\"\nkey = [\"ID\", \"note\"]");
        let schema = Schema::parse(
            &format!(r#"{{"type":"record","name":"R","fields":[{WIDER}]}}"#),
            &Limits::default(),
        );
        let wanted = wanted(&feed, &schema.unwrap(), &[]).unwrap();
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(check_key(&feed, &wanted, &[names(&["id"]), names(&["note", "id"])]), Ok(()));
        let error = check_key(&feed, &wanted, &[names(&["id"])]).unwrap_err().to_string();
        assert!(error.contains("CREATE UNIQUE INDEX ON ads.a (\"id\", \"note\")"), "{error}");
        // A table made for other modes learns versions, as any new column.
        let existing = table(WIDER).columns;
        assert_eq!(
            ddl(Dialect::Sqlite, &feed, &existing, &wanted),
            Ok(vec!["alter table \"ads_a\" add column \"_version\" text".to_owned()])
        );
    }

    #[test]
    fn deleted_rows_are_remembered_by_key() {
        let feed = feed("write = \"cdc\"\nkey = [\"id\"]");
        let key = |fields: &str| table(fields).columns[..1].to_vec();
        let statements = deleted_ddl(Dialect::Postgres, &feed, &[], &key(ID)).unwrap();
        let expected = "create table if not exists \"ads\".\"a__deleted\" (\n    \"id\" integer,\n    \
                        \"_version\" text,\n    unique (\"id\")\n)";
        assert_eq!(statements[1..], [expected]);
        let mut existing = key(ID);
        existing
            .push(Column { name: VERSION_COLUMN.to_owned(), ..table(WIDER).columns[1].clone() });
        existing.iter_mut().for_each(|column| column.nullable = true);
        assert_eq!(
            deleted_ddl(Dialect::Postgres, &feed, &existing, &key(WIDER)),
            Ok(vec![
                "alter table \"ads\".\"a__deleted\" alter column \"id\" type bigint".to_owned()
            ])
        );
    }

    #[test]
    fn a_users_own_table_needs_lineage_only_to_replace() {
        let wanted = table(ID);
        let own = &wanted.columns[..1];
        assert_eq!(ddl(Dialect::Sqlite, &feed(""), own, &wanted), Err(Misfit::NoLineage));
        let append = feed("write = \"append\"");
        assert_eq!(ddl(Dialect::Sqlite, &append, own, &wanted), Ok(vec![]));
    }
}
