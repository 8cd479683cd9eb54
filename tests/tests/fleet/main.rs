//! Importers as instances that come and go: what they hear of their end, and the scaler that
//! brings it about.

mod instance;
mod scaling;

use std::time::Duration;

use anyhow::Result;
use apache_avro::Codec;
use sqlx::{Connection as _, PgConnection};
use weirgate_local::fleet::Tuning;
use weirgate_tests::avro::file;
use weirgate_tests::{DatabaseKind, System};

/// Rows of each object.
const ROWS: u64 = 50;

async fn start(name: &str, tuning: Tuning) -> Result<System> {
    let programs = env!("CARGO_BIN_EXE_weirgate-programs");
    System::start(programs, "test-fleet", name, DatabaseKind::Postgres, tuning).await
}

async fn put(system: &System, name: &str) -> Result<()> {
    let key = format!("impressions/dt=2026-03-01/{name}.avro");
    system.put(&key, file(name, ROWS, Codec::Snappy)).await
}

async fn rows_are(system: &System, objects: u64) -> Result<()> {
    let rows = i64::try_from(objects * ROWS)?;
    let what = format!("{objects} objects are there");
    system.until(&what, async || Ok(system.rows().await? == rows)).await
}

/// Holds every import up until it is dropped or closed.
async fn hold_up(system: &System) -> Result<PgConnection> {
    let mut connection = PgConnection::connect(&system.fleet.database).await?;
    for statement in ["BEGIN", "LOCK TABLE impressions IN EXCLUSIVE MODE"] {
        sqlx::query(statement).execute(&mut connection).await?;
    }
    Ok(connection)
}

async fn in_flight(system: &System, count: u64) -> Result<()> {
    let what = format!("{count} messages are in flight");
    system.until(&what, async || Ok(system.depth().await?.in_flight >= count)).await
}

async fn moments(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
