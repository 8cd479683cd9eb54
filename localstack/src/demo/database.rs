//! What the database says, asked from outside in plain SQL.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, PgConnection, SqliteConnection};

/// A short look at the ledger, for the live view.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Progress {
    pub(super) objects: u64,
    pub(super) rows: u64,
    /// Of the objects committed so far: from their event to their commit.
    pub(super) freshness_median_ms: Option<f64>,
    pub(super) freshness_max_ms: Option<f64>,
}

/// Everything the proof needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) rows: u64,
    pub(super) distinct_rows: u64,
    pub(super) checksum: i64,
    /// Key to what the ledger and the table say of its latest version.
    pub(super) objects: BTreeMap<String, CommittedObject>,
    /// Keys with more than one committed version at once.
    pub(super) twice: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommittedObject {
    pub(super) etag: String,
    pub(super) rows_in_ledger: u64,
    pub(super) rows_in_table: u64,
}

enum Connection {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

/// The ledger's table, and the milliseconds between two of its times.
struct Dialect {
    object: &'static str,
    freshness: &'static str,
}

const POSTGRES: Dialect = Dialect {
    object: "weirgate.object",
    freshness: "CAST(extract(epoch FROM committed_at - event_at) * 1000 AS double precision)",
};
const SQLITE: Dialect = Dialect {
    object: "weirgate_object",
    freshness: "(julianday(committed_at) - julianday(event_at)) * 86400000.0",
};

async fn connect(url: &str) -> Result<Connection> {
    let connection = match url.strip_prefix("sqlite://") {
        Some(path) => {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .read_only(true)
                .busy_timeout(Duration::from_secs(10));
            Connection::Sqlite(options.connect().await?)
        }
        None => Connection::Postgres(url.parse::<PgConnectOptions>()?.connect().await?),
    };
    Ok(connection)
}

/// `None`: no importer has made the ledger yet, or the database is away.
pub(super) async fn progress(url: &str) -> Option<Progress> {
    let look = async {
        let mut connection = connect(url).await.ok()?;
        let dialect = connection.dialect();
        let object = dialect.object;
        let totals = format!(
            "SELECT count(*), CAST(coalesce(sum(rows), 0) AS bigint) FROM {object} \
             WHERE state = 'committed'"
        );
        let spans = format!(
            "SELECT {} FROM {object} WHERE event_at IS NOT NULL ORDER BY 1",
            dialect.freshness
        );
        let (objects, rows) = connection.pair(&totals).await.ok()?;
        let spans = connection.numbers(&spans).await.ok()?;
        Some(Progress {
            objects,
            rows,
            freshness_median_ms: spans.get(spans.len() / 2).copied(),
            freshness_max_ms: spans.last().copied(),
        })
    };
    tokio::time::timeout(Duration::from_secs(5), look).await.ok().flatten()
}

pub(super) async fn content(url: &str, table: &str) -> Result<Content> {
    let mut connection = connect(url).await.context("connect to the database")?;
    let object = connection.dialect().object;
    let rows = format!("SELECT count(*), count(DISTINCT auction_id) FROM {table}");
    let checksum = format!("SELECT CAST(coalesce(sum(creative_id), 0) AS bigint), 0 FROM {table}");
    let objects = format!(
        "SELECT o.key, o.etag, o.rows, count(t.auction_id) FROM {object} o \
         LEFT JOIN {table} t ON t._object = o.id \
         WHERE o.state = 'committed' GROUP BY o.id, o.key, o.etag, o.rows"
    );
    let (rows, distinct_rows) = connection.pair(&rows).await.context("count the rows")?;
    let (checksum, _) = connection.signed_pair(&checksum).await.context("sum up the rows")?;
    let mut content = Content { rows, distinct_rows, checksum, ..Content::default() };
    let found = connection.objects(&objects).await.context("compare the ledger with the table")?;
    for (key, etag, in_ledger, in_table) in found {
        let committed = CommittedObject {
            etag,
            rows_in_ledger: count(in_ledger),
            rows_in_table: count(in_table),
        };
        if content.objects.insert(key.clone(), committed).is_some() {
            content.twice.push(key);
        }
    }
    Ok(content)
}

type ObjectRow = (String, String, i64, i64);

impl Connection {
    fn dialect(&self) -> &'static Dialect {
        match self {
            Connection::Postgres(_) => &POSTGRES,
            Connection::Sqlite(_) => &SQLITE,
        }
    }

    async fn pair(&mut self, sql: &str) -> Result<(u64, u64), sqlx::Error> {
        let (first, second) = self.signed_pair(sql).await?;
        Ok((count(first), count(second)))
    }

    async fn signed_pair(&mut self, sql: &str) -> Result<(i64, i64), sqlx::Error> {
        match self {
            // PostgreSQL counts in bigint but types the literal 0 as integer.
            Connection::Postgres(connection) => {
                let sql = format!("SELECT p.a::bigint, p.b::bigint FROM ({sql}) p (a, b)");
                sqlx::query_as(&sql).fetch_one(connection).await
            }
            Connection::Sqlite(connection) => sqlx::query_as(sql).fetch_one(connection).await,
        }
    }

    async fn numbers(&mut self, sql: &str) -> Result<Vec<f64>, sqlx::Error> {
        match self {
            Connection::Postgres(connection) => sqlx::query_scalar(sql).fetch_all(connection).await,
            Connection::Sqlite(connection) => sqlx::query_scalar(sql).fetch_all(connection).await,
        }
    }

    async fn objects(&mut self, sql: &str) -> Result<Vec<ObjectRow>, sqlx::Error> {
        match self {
            Connection::Postgres(connection) => sqlx::query_as(sql).fetch_all(connection).await,
            Connection::Sqlite(connection) => sqlx::query_as(sql).fetch_all(connection).await,
        }
    }
}

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
