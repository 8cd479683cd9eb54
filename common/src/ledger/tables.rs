//! The users' tables as the database describes them, and DDL on them.

use std::collections::BTreeMap;

use sqlx::{Executor, PgConnection, Row, SqliteConnection};
use weirgate_avro::table::{Column, Dialect, Source, SqlType};

use super::{Ledger, LedgerError};
use crate::config::TableName;
use crate::table::Misfit;

/// Why a table could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum AlterError {
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Ledger {
    pub fn dialect(&self) -> Dialect {
        match self {
            Ledger::Postgres(_) => Dialect::Postgres,
            Ledger::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// The columns of the table in its order; empty when there is no such table.
    pub async fn table_columns(&self, table: &TableName) -> Result<Vec<Column>, LedgerError> {
        let columns = async {
            match self {
                Ledger::Postgres(pool) => {
                    postgres_columns(&mut *pool.acquire().await?, table).await
                }
                Ledger::Sqlite(pool) => sqlite_columns(&mut *pool.acquire().await?, table).await,
            }
        };
        columns.await.map_err(|source| statement("reading the table's columns", source))
    }

    /// The columns of each unique index of the table that holds for all its rows.
    pub async fn unique_keys(&self, table: &TableName) -> Result<Vec<Vec<String>>, LedgerError> {
        let failed = |source| statement("reading the table's keys", source);
        let rows: Vec<(String, String)> = match self {
            Ledger::Postgres(pool) => sqlx::query_as(
                "SELECT i.indexrelid::text, a.attname::text
                 FROM pg_index i
                      CROSS JOIN LATERAL unnest(i.indkey[0:i.indnkeyatts - 1]) AS k (attnum)
                      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                 WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indimmediate
                       AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL",
            )
            .bind(table.in_postgres())
            .fetch_all(pool)
            .await
            .map_err(failed)?,
            // An integer primary key is the row's number and has no index.
            Ledger::Sqlite(pool) => sqlx::query_as(
                "SELECT i.name, k.name
                 FROM pragma_index_list($1) AS i, pragma_index_info(i.name) AS k
                 WHERE i.\"unique\" AND NOT i.partial AND NOT EXISTS
                       (SELECT 1 FROM pragma_index_info(i.name) AS e WHERE e.name IS NULL)
                 UNION ALL
                 SELECT '', name FROM pragma_table_info($1) WHERE pk > 0",
            )
            .bind(table.in_sqlite())
            .fetch_all(pool)
            .await
            .map_err(failed)?,
        };
        let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (index, column) in rows {
            keys.entry(index).or_default().push(column);
        }
        Ok(keys.into_values().collect())
    }

    /// Runs the DDL that `decide` wants for the table as it is, alone among all importers, and
    /// gives the columns that it has then. What one importer sees, no other is about to change: two
    /// versions of a schema at the same time end with a table that holds both.
    pub async fn alter_table(
        &self,
        table: &TableName,
        decide: impl Fn(&[Column]) -> Result<Vec<String>, Misfit> + Send,
    ) -> Result<Vec<Column>, AlterError> {
        let failed = |source| statement("preparing the table", source);
        // The two arms differ in the lock and in the types of connection only.
        match self {
            Ledger::Postgres(pool) => {
                let mut transaction = pool.begin().await.map_err(failed)?;
                sqlx::query(
                    "SELECT pg_advisory_xact_lock(hashtextextended('weirgate ddl ' || $1, 0))",
                )
                .bind(table.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
                let existing = postgres_columns(&mut transaction, table).await.map_err(failed)?;
                for statement in decide(&existing)? {
                    tracing::info!(%table, "{statement}");
                    transaction.execute(statement.as_str()).await.map_err(failed)?;
                }
                let columns = postgres_columns(&mut transaction, table).await.map_err(failed)?;
                transaction.commit().await.map_err(failed)?;
                Ok(columns)
            }
            Ledger::Sqlite(pool) => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
                let existing = sqlite_columns(&mut transaction, table).await.map_err(failed)?;
                for statement in decide(&existing)? {
                    tracing::info!(%table, "{statement}");
                    transaction.execute(statement.as_str()).await.map_err(failed)?;
                }
                let columns = sqlite_columns(&mut transaction, table).await.map_err(failed)?;
                transaction.commit().await.map_err(failed)?;
                Ok(columns)
            }
        }
    }
}

fn statement(what: &'static str, source: sqlx::Error) -> LedgerError {
    LedgerError::Statement { what, source }
}

async fn postgres_columns(
    connection: &mut PgConnection,
    table: &TableName,
) -> Result<Vec<Column>, sqlx::Error> {
    let rows: Vec<(String, String, bool)> = sqlx::query_as(
        "SELECT attname::text, format_type(atttypid, atttypmod), NOT attnotnull
         FROM pg_attribute
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
         ORDER BY attnum",
    )
    .bind(table.in_postgres())
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(postgres_column).collect())
}

/// A column by its name, its type as `format_type` tells it, and whether it may be null.
pub fn postgres_column((name, sql_type, nullable): (String, String, bool)) -> Column {
    Column {
        source: Source::Field(name.clone()),
        name,
        sql_type: SqlType::from_postgres(&sql_type),
        nullable,
    }
}

/// The columns of a table as a transaction sees them.
pub async fn sqlite_columns(
    connection: &mut SqliteConnection,
    table: &TableName,
) -> Result<Vec<Column>, sqlx::Error> {
    let rows = sqlx::query("SELECT name, type, \"notnull\" FROM pragma_table_info($1)")
        .bind(table.in_sqlite())
        .fetch_all(connection)
        .await?;
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
        .collect()
}
