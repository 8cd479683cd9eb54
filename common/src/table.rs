//! The table a feed writes to: what a schema wants it to be, and the DDL from what it is.

use weirgate_avro::evolve::{self, Change};
use weirgate_avro::table::{
    Column, Dialect, Mask, Masks, OBJECT_COLUMN, Source, SqlType, TableDef, quote,
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
    fn a_users_own_table_needs_lineage_only_to_replace() {
        let wanted = table(ID);
        let own = &wanted.columns[..1];
        assert_eq!(ddl(Dialect::Sqlite, &feed(""), own, &wanted), Err(Misfit::NoLineage));
        let append = feed("write = \"append\"");
        assert_eq!(ddl(Dialect::Sqlite, &append, own, &wanted), Ok(vec![]));
    }
}
