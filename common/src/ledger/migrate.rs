//! Embedded migrations, run under a lock at start. Each version is one file per dialect and is
//! never edited after a release.

use sqlx::{Connection, Executor};

use super::{Ledger, LedgerError};

/// `(version, PostgreSQL, SQLite)`, in order.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, include_str!("migrations/0001_postgres.sql"), include_str!("migrations/0001_sqlite.sql")),
    (2, include_str!("migrations/0002_postgres.sql"), include_str!("migrations/0002_sqlite.sql")),
];

/// The advisory lock that serialises migrations: "weirgate" in ASCII.
const LOCK: i64 = 0x7765_6972_6761_7465;

impl Ledger {
    /// The newest version this program knows.
    pub fn version_known() -> i64 {
        MIGRATIONS.last().map_or(0, |(version, _, _)| *version)
    }

    /// The version of the database's ledger; zero when there is none.
    pub async fn version(&self) -> Result<i64, LedgerError> {
        let failed = |source| LedgerError::Statement { what: "reading the schema version", source };
        let exists: bool =
            match self {
                Ledger::Postgres(pool) => {
                    sqlx::query_scalar("SELECT to_regclass('weirgate.migration') IS NOT NULL")
                        .fetch_one(pool)
                        .await
                }
                Ledger::Sqlite(pool) => sqlx::query_scalar(
                    "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'weirgate_migration')",
                )
                .fetch_one(pool)
                .await,
            }
            .map_err(failed)?;
        if !exists {
            return Ok(0);
        }
        let statement = self.sql("SELECT coalesce(max(version), 0) FROM weirgate.migration");
        super::on_pool!(self, pool => sqlx::query_scalar(&statement).fetch_one(pool).await)
            .map_err(failed)
    }

    pub(super) async fn migrate(&self) -> Result<(), LedgerError> {
        let found = self.version().await?;
        if found > Self::version_known() {
            return Err(LedgerError::TooNew { found, known: Self::version_known() });
        }
        if found == Self::version_known() {
            return Ok(());
        }
        let failed = |source| LedgerError::Statement { what: "migration", source };
        match self {
            Ledger::Postgres(pool) => {
                let mut transaction = pool.begin().await.map_err(failed)?;
                transaction
                    .execute(sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK))
                    .await
                    .map_err(failed)?;
                transaction
                    .execute(
                        "CREATE SCHEMA IF NOT EXISTS weirgate;
                         CREATE TABLE IF NOT EXISTS weirgate.migration (version bigint PRIMARY KEY);",
                    )
                    .await
                    .map_err(failed)?;
                let found: i64 =
                    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM weirgate.migration")
                        .fetch_one(&mut *transaction)
                        .await
                        .map_err(failed)?;
                for (version, postgres, _) in MIGRATIONS.iter().filter(|m| m.0 > found) {
                    transaction.execute(*postgres).await.map_err(failed)?;
                    sqlx::query("INSERT INTO weirgate.migration VALUES ($1)")
                        .bind(version)
                        .execute(&mut *transaction)
                        .await
                        .map_err(failed)?;
                }
                transaction.commit().await.map_err(failed)
            }
            Ledger::Sqlite(pool) => {
                let mut connection = pool.acquire().await.map_err(failed)?;
                // IMMEDIATE takes the write lock before reading the version again.
                let mut transaction =
                    connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
                transaction
                    .execute(
                        "CREATE TABLE IF NOT EXISTS weirgate_migration (version INTEGER PRIMARY KEY)",
                    )
                    .await
                    .map_err(failed)?;
                let found: i64 =
                    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM weirgate_migration")
                        .fetch_one(&mut *transaction)
                        .await
                        .map_err(failed)?;
                for (version, _, sqlite) in MIGRATIONS.iter().filter(|m| m.0 > found) {
                    transaction.execute(*sqlite).await.map_err(failed)?;
                    sqlx::query("INSERT INTO weirgate_migration VALUES ($1)")
                        .bind(version)
                        .execute(&mut *transaction)
                        .await
                        .map_err(failed)?;
                }
                transaction.commit().await.map_err(failed)
            }
        }
    }
}
