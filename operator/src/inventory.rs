//! What lies in S3, what the ledger says about it, and what the tables hold.

use anyhow::{Context, Result, anyhow};
use aws_sdk_s3::Client;
use sqlx::Row;
use weirgate_common::aws;
use weirgate_common::clock::Timestamp;
use weirgate_common::config::{TableName, is_leftover};
use weirgate_common::ledger::Ledger;

use crate::address::Address;
use crate::standing::{Books, Entry, EntryState, Listed, Refusal};

/// Every object under the address, apart from what Spark and Hadoop leave behind.
pub(crate) async fn list(client: &Client, address: &Address) -> Result<Vec<Listed>> {
    let mut pages = client
        .list_objects_v2()
        .bucket(&address.bucket)
        .prefix(&address.key)
        .into_paginator()
        .send();
    let mut listed = Vec::new();
    while let Some(page) = pages.next().await {
        let page =
            page.map_err(|error| anyhow!("cannot list {address}: {}", aws::describe(&error)))?;
        for object in page.contents.unwrap_or_default() {
            let size = u64::try_from(object.size.unwrap_or(0)).unwrap_or(0);
            let (Some(key), Some(etag)) = (object.key, object.e_tag) else { continue };
            if is_leftover(&key, size) {
                continue;
            }
            let modified_ms = object.last_modified.and_then(|at| at.to_millis().ok()).unwrap_or(0);
            listed.push(Listed {
                key,
                etag: etag.trim_matches('"').to_owned(),
                modified_at: Timestamp::from_unix_ms(modified_ms),
            });
        }
    }
    Ok(listed)
}

/// What the ledger says about a feed's objects whose keys begin with the prefix.
pub(crate) async fn books(
    ledger: &Ledger,
    feed: &str,
    bucket: &str,
    prefix: &str,
) -> Result<Books> {
    let entries = ledger.sql(
        "SELECT key, etag, state FROM weirgate.object
         WHERE feed = $1 AND bucket = $2 AND substr(key, 1, length($3)) = $3",
    );
    let refusals = ledger.sql(
        "SELECT object, last_seen, resolution FROM weirgate.failure
         WHERE feed = $1 AND resolution IN ('dead_lettered', 'discarded') AND object <> ''",
    );
    let mut books = Books::default();
    // The two pools differ in type only.
    macro_rules! read {
        ($pool:expr) => {{
            let rows = sqlx::query_as::<_, (String, String, String)>(&entries)
                .bind(feed)
                .bind(bucket)
                .bind(prefix)
                .fetch_all($pool)
                .await;
            for (key, etag, state) in rows.context("reading the ledger failed")? {
                let state = match state.as_str() {
                    "committed" => EntryState::Committed,
                    "replaced" => EntryState::Replaced,
                    _ => EntryState::Retracted,
                };
                let entry = Entry { key, etag, state };
                books.entries.entry(entry.key.clone()).or_default().push(entry);
            }
            let rows = sqlx::query_as::<_, (String, Timestamp, String)>(&refusals)
                .bind(feed)
                .fetch_all($pool)
                .await;
            for (object, last_seen, resolution) in rows.context("reading failures failed")? {
                let refusal = Refusal { last_seen, discarded: resolution == "discarded" };
                let known = books.refusals.entry(object).or_insert(refusal);
                *known = refusal.max(*known);
            }
        }};
    }
    match ledger {
        Ledger::Postgres(pool) => read!(pool),
        Ledger::Sqlite(pool) => read!(pool),
    }
    Ok(books)
}

/// An object whose rows in the table are not the rows in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Mismatch {
    /// The table's `_object`, the ledger's id.
    pub(crate) id: i64,
    /// `None`: the ledger knows of no such committed object, the rows belong to nobody.
    pub(crate) object: Option<String>,
    pub(crate) rows_expected: u64,
    pub(crate) rows_found: u64,
}

/// More mismatches than this are one cause, not many: enough to see the pattern.
pub(crate) const MISMATCHES_MAX: i64 = 1_000;

/// What a table holds, and where that differs from the ledger.
#[derive(Debug, Default)]
pub(crate) struct TableBooks {
    pub(crate) objects: u64,
    pub(crate) rows: u64,
    pub(crate) mismatches: Vec<Mismatch>,
}

/// How far a table can be compared with the ledger.
#[derive(Debug)]
pub(crate) enum TableReading {
    /// Nothing was ever committed to it.
    Absent,
    /// It has no `_object`: its rows do not tell which object they came from.
    WithoutLineage,
    Read(TableBooks),
}

/// `by_key`: rows take the place of others, so an object may have fewer left than it brought.
pub(crate) async fn table_books(
    ledger: &Ledger,
    table: &TableName,
    by_key: bool,
) -> Result<TableReading> {
    let columns = columns(ledger, table).await?;
    if !columns.is_empty() && !columns.iter().any(|column| column == "_object") {
        return Ok(TableReading::WithoutLineage);
    }
    let counted = match columns.is_empty() {
        // Committed objects without rows make no table; rows in none are a mismatch like others.
        true => "SELECT CAST(NULL AS bigint) AS object, CAST(0 AS bigint) AS n WHERE false".into(),
        false => format!(
            "SELECT _object AS object, count(*) AS n FROM {} WHERE _object IS NOT NULL GROUP BY 1",
            name_in_sql(ledger, table)
        ),
    };
    let failed = || format!("comparing table {table} with the ledger failed");
    let differs = if by_key { ">" } else { "<>" };
    // One statement sees one moment, whatever importers commit meanwhile.
    let compared = format!(
        "SELECT coalesce(l.id, t.object), l.bucket, l.key, coalesce(l.rows, 0), coalesce(t.n, 0)
         FROM (SELECT id, bucket, key, rows FROM weirgate.object
               WHERE table_name = $1 AND state = 'committed') AS l
              FULL JOIN ({counted}) AS t ON t.object = l.id
         WHERE l.id IS NULL OR coalesce(t.n, 0) {differs} l.rows
         ORDER BY 1 LIMIT {MISMATCHES_MAX}"
    );
    let compared = ledger.sql(&compared);
    let totals = ledger.sql(
        "SELECT count(*), CAST(coalesce(sum(rows), 0) AS bigint) FROM weirgate.object
         WHERE table_name = $1 AND state = 'committed'",
    );
    let mut books = TableBooks::default();
    macro_rules! read {
        ($pool:expr) => {{
            let name = table.to_string();
            let row = sqlx::query(&totals).bind(&name).fetch_one($pool).await;
            let row = row.with_context(failed)?;
            books.objects = unsigned(row.try_get(0)?);
            books.rows = unsigned(row.try_get(1)?);
            let rows = sqlx::query(&compared).bind(&name).fetch_all($pool).await;
            for row in rows.with_context(failed)? {
                let bucket: Option<String> = row.try_get(1)?;
                let key: Option<String> = row.try_get(2)?;
                books.mismatches.push(Mismatch {
                    id: row.try_get(0)?,
                    object: bucket.zip(key).map(|(bucket, key)| format!("s3://{bucket}/{key}")),
                    rows_expected: unsigned(row.try_get(3)?),
                    rows_found: unsigned(row.try_get(4)?),
                });
            }
        }};
    }
    match ledger {
        Ledger::Postgres(pool) => read!(pool),
        Ledger::Sqlite(pool) => read!(pool),
    }
    match columns.is_empty() && books.objects == 0 {
        true => Ok(TableReading::Absent),
        false => Ok(TableReading::Read(books)),
    }
}

/// The table's columns; none when there is no such table.
pub(crate) async fn columns(ledger: &Ledger, table: &TableName) -> Result<Vec<String>> {
    let columns = match ledger {
        Ledger::Postgres(pool) => {
            sqlx::query_scalar(
                "SELECT attname::text FROM pg_attribute
                 WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
            )
            .bind(table.in_postgres())
            .fetch_all(pool)
            .await
        }
        Ledger::Sqlite(pool) => {
            sqlx::query_scalar("SELECT name FROM pragma_table_info($1)")
                .bind(table.in_sqlite())
                .fetch_all(pool)
                .await
        }
    };
    columns.with_context(|| format!("reading the columns of table {table} failed"))
}

fn name_in_sql(ledger: &Ledger, table: &TableName) -> String {
    match ledger {
        Ledger::Postgres(_) => table.in_postgres(),
        Ledger::Sqlite(_) => format!("\"{}\"", table.in_sqlite()),
    }
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use weirgate_common::config::Database;

    use super::*;

    async fn ledger(folder: &tempfile::TempDir) -> Ledger {
        let path = folder.path().join("w.db");
        Ledger::open(&Database::Sqlite { path }, 1).await.unwrap()
    }

    async fn run(ledger: &Ledger, statement: &str) {
        let Ledger::Sqlite(pool) = ledger else { panic!("opened as SQLite") };
        sqlx::raw_sql(statement).execute(pool).await.unwrap();
    }

    fn committed(id: i64, key: &str, state: &str, rows: u64) -> String {
        format!(
            "INSERT INTO weirgate_object (id, feed, bucket, key, etag, table_name, state, rows,
                rejected_rows, bytes, received_at, committed_at, worker)
             VALUES ({id}, 'imp', 'b', '{key}', 'e{id}', 'ads.imp', '{state}', {rows}, 0, 1,
                '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z', 'w');"
        )
    }

    #[tokio::test]
    async fn the_table_is_compared_row_by_row_with_the_ledger() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(&folder).await;
        let table = TableName::parse("ads.imp").unwrap();
        assert!(matches!(table_books(&ledger, &table, false).await.unwrap(), TableReading::Absent));

        run(&ledger, &committed(1, "a", "committed", 2)).await;
        match table_books(&ledger, &table, false).await.unwrap() {
            TableReading::Read(books) => assert_eq!(books.mismatches.len(), 1, "{books:?}"),
            other => panic!("{other:?}"),
        }

        run(&ledger, "CREATE TABLE \"ads_imp\" (x integer, _object integer)").await;
        run(&ledger, &committed(2, "b", "committed", 1)).await;
        run(&ledger, &committed(3, "c", "replaced", 1)).await;
        run(&ledger, &committed(4, "d", "committed", 0)).await;
        run(&ledger, "INSERT INTO ads_imp VALUES (1, 1), (2, 1), (3, NULL)").await;
        run(&ledger, "INSERT INTO ads_imp VALUES (1, 2), (2, 2), (1, 3), (9, 99)").await;
        let TableReading::Read(books) = table_books(&ledger, &table, false).await.unwrap() else {
            panic!("the table has lineage")
        };
        assert_eq!((books.objects, books.rows), (3, 3));
        let found: Vec<_> = books
            .mismatches
            .iter()
            .map(|m| (m.id, m.object.as_deref(), m.rows_expected, m.rows_found))
            .collect();
        assert_eq!(found, [(2, Some("s3://b/b"), 1, 2), (3, None, 0, 1), (99, None, 0, 1)]);

        // By key, a row fewer is no mismatch; one more, or a stranger's, is.
        run(&ledger, "DELETE FROM ads_imp WHERE x = 2 AND _object = 1").await;
        let TableReading::Read(books) = table_books(&ledger, &table, true).await.unwrap() else {
            panic!("the table has lineage")
        };
        let found: Vec<_> = books.mismatches.iter().map(|m| (m.id, m.rows_found)).collect();
        assert_eq!(found, [(2, 2), (3, 1), (99, 1)]);

        run(&ledger, "CREATE TABLE plain (x integer)").await;
        let plain = TableName::parse("plain").unwrap();
        let reading = table_books(&ledger, &plain, false).await.unwrap();
        assert!(matches!(reading, TableReading::WithoutLineage));
    }

    #[tokio::test]
    async fn books_hold_what_lies_under_the_prefix() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(&folder).await;
        run(&ledger, &committed(1, "x_y/a", "committed", 2)).await;
        run(&ledger, &committed(2, "xzy/a", "committed", 2)).await;
        let books = books(&ledger, "imp", "b", "x_").await.unwrap();
        assert_eq!(books.entries.keys().collect::<Vec<_>>(), ["x_y/a"]);
        assert!(books.refusals.is_empty());
    }
}
