//! The ledger: what was imported, by whom, and what went wrong, in the database of the tables
//! themselves, so that rows and ledger rows commit together.
//!
//! Statements are written once, in PostgreSQL's words with the schema `weirgate.`; SQLite has no
//! schemas and keeps the same tables under the prefix `weirgate_`.

mod control;
mod errors;
mod failures;
mod migrate;
mod objects;
mod schemas;
mod tables;
mod workers;

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{
    PgConnectOptions, PgHasArrayType, PgPool, PgPoolOptions, PgTypeInfo, PgValueRef,
};
use sqlx::sqlite::{
    SqliteArgumentValue, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous, SqliteTypeInfo, SqliteValueRef,
};
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres, Sqlite};
use time::OffsetDateTime;

use crate::clock::Timestamp;
use crate::config::Database;

pub use control::PlanRecord;
pub use errors::{LedgerError, database_fault, sqlite_fault};
pub use failures::{Failure, Resolution};
pub use objects::FeedSummary;
pub use tables::{AlterError, postgres_column, sqlite_columns};
pub use workers::{WorkerReport, WorkerState};

/// A pool of connections to the database with the ledger in it.
#[derive(Clone, Debug)]
pub enum Ledger {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// How long a statement may wait for a connection. The pool goes on trying to connect meanwhile;
/// longer would hide an outage from those who must stop taking work.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// A connection used this recently is not asked first whether it still works: for small objects
/// the question would cost as much as the answer to a real one.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// How long SQLite may wait for its one writer before it says that it is busy.
const WRITER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Runs the same statement on either kind of pool.
macro_rules! on_pool {
    ($ledger:expr, $pool:ident => $body:expr) => {
        match $ledger {
            $crate::ledger::Ledger::Postgres($pool) => $body,
            $crate::ledger::Ledger::Sqlite($pool) => $body,
        }
    };
}
use on_pool;

impl Ledger {
    /// Connects and brings the ledger's tables up to date, under a lock.
    pub async fn open(database: &Database, connections_max: u32) -> Result<Self, LedgerError> {
        let ledger = Self::connect(database, connections_max).await?;
        ledger.migrate().await?;
        Ok(ledger)
    }

    /// Connects only, for those who must not change anything.
    pub async fn connect(database: &Database, connections_max: u32) -> Result<Self, LedgerError> {
        let unreachable = |source| LedgerError::Connect { database: database.to_string(), source };
        match database {
            Database::Postgres { url } => {
                let options = PgConnectOptions::from_str(url)
                    .map_err(unreachable)?
                    .application_name("weirgate")
                    .disable_statement_logging();
                // The pool goes on trying and then only says that time ran out; a connection of its
                // own says what is wrong.
                let first = PgConnection::connect_with(&options);
                let first = tokio::time::timeout(CONNECT_MAX, first).await;
                first.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(unreachable)?;
                let pool = PgPoolOptions::new()
                    .max_connections(connections_max)
                    .acquire_timeout(CONNECT_MAX)
                    .test_before_acquire(false)
                    .before_acquire(|connection, meta| {
                        Box::pin(async move {
                            if meta.idle_for > TRUSTED_FOR {
                                connection.ping().await?;
                            }
                            Ok(true)
                        })
                    })
                    .connect_lazy_with(options);
                Ok(Ledger::Postgres(pool))
            }
            Database::Sqlite { path } => {
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    // With a write-ahead log a crash of the machine may undo the last commits
                    // under NORMAL. Acknowledged messages cannot come back, so pay for FULL.
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(WRITER_WAIT_MAX)
                    .disable_statement_logging();
                let pool = SqlitePoolOptions::new()
                    .max_connections(connections_max)
                    .acquire_timeout(CONNECT_MAX)
                    .connect_with(options)
                    .await
                    .map_err(unreachable)?;
                Ok(Ledger::Sqlite(pool))
            }
        }
    }

    pub async fn close(&self) {
        on_pool!(self, pool => pool.close().await);
    }

    /// A statement in the dialect of this database.
    pub fn sql<'s>(&self, statement: &'s str) -> Cow<'s, str> {
        match self {
            Ledger::Postgres(_) => Cow::Borrowed(statement),
            Ledger::Sqlite(_) => Cow::Owned(statement.replace("weirgate.", "weirgate_")),
        }
    }

    /// The cheapest question that proves the database answers.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        on_pool!(self, pool => sqlx::query("SELECT 1").execute(pool).await.map(drop))
            .map_err(|source| LedgerError::Statement { what: "ping", source })
    }
}

impl sqlx::Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        <OffsetDateTime as sqlx::Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        OffsetDateTime::array_type_info()
    }
}

impl sqlx::Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(
        &self,
        buffer: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<IsNull, BoxDynError> {
        sqlx::Encode::<Postgres>::encode(OffsetDateTime::from(*self), buffer)
    }
}

impl sqlx::Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        <OffsetDateTime as sqlx::Decode<Postgres>>::decode(value).map(Timestamp::from)
    }
}

impl sqlx::Type<Sqlite> for Timestamp {
    fn type_info() -> SqliteTypeInfo {
        <String as sqlx::Type<Sqlite>>::type_info()
    }
}

impl<'q> sqlx::Encode<'q, Sqlite> for Timestamp {
    fn encode_by_ref(
        &self,
        buffer: &mut Vec<SqliteArgumentValue<'q>>,
    ) -> Result<IsNull, BoxDynError> {
        sqlx::Encode::<Sqlite>::encode(self.to_string(), buffer)
    }
}

impl sqlx::Decode<'_, Sqlite> for Timestamp {
    fn decode(value: SqliteValueRef<'_>) -> Result<Self, BoxDynError> {
        let text = <String as sqlx::Decode<Sqlite>>::decode(value)?;
        Timestamp::parse(&text).ok_or_else(|| format!("`{text}` is not a time").into())
    }
}
