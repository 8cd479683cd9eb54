//! A table's way into a real PostgreSQL and out again.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use weirgate_avro::copy::{COPY_HEADER, COPY_TRAILER};
use weirgate_avro::table::{Column, quote};
use weirgate_local::fleet::Tuning;
use weirgate_tests::{DatabaseKind, System, run};

/// One connection for all cases: connecting costs more than a case.
static CONNECTION: Mutex<Option<PgConnection>> = Mutex::new(None);

/// Copies the tuples into a temporary table and returns what the server sends back for them.
pub(crate) fn round_trip(create: &str, columns: &[Column], tuples: &[u8]) -> Vec<u8> {
    // A case that failed has rolled back, or left a connection that is replaced.
    let mut held = CONNECTION.lock().unwrap_or_else(PoisonError::into_inner);
    let returned = run(async {
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => connect().await?,
        };
        let returned = through(&mut connection, create, columns, tuples).await?;
        *held = Some(connection);
        Ok(returned)
    });
    returned.unwrap_or_else(|error| panic!("{create}: {error:#}"))
}

async fn connect() -> Result<PgConnection> {
    let programs = env!("CARGO_BIN_EXE_weirgate-programs");
    let (database, tuning) = (DatabaseKind::Postgres, Tuning::default());
    let system = System::start(programs, "test-avro-rows", "rows", database, tuning).await?;
    Ok(PgConnection::connect(&system.fleet.database).await?)
}

async fn through(
    connection: &mut PgConnection,
    create: &str,
    columns: &[Column],
    tuples: &[u8],
) -> Result<Vec<u8>> {
    let names: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
    let names = names.join(", ");
    let create = create.replace("create table if not exists", "create temporary table");
    let mut transaction = connection.begin().await?;
    transaction.execute(create.as_str()).await?;
    let copy_in = format!("COPY held ({names}) FROM STDIN (FORMAT binary)");
    let mut sink = transaction.copy_in_raw(&copy_in).await?;
    for part in [COPY_HEADER.as_slice(), tuples, COPY_TRAILER.as_slice()] {
        sink.send(part).await?;
    }
    sink.finish().await?;
    let copy_out = format!("COPY held ({names}) TO STDOUT (FORMAT binary)");
    let mut returned = Vec::new();
    {
        let mut parts = transaction.copy_out_raw(&copy_out).await?;
        while let Some(part) = std::future::poll_fn(|cx| parts.as_mut().poll_next(cx)).await {
            returned.extend_from_slice(&part?);
        }
    }
    transaction.rollback().await?;
    let body = returned.strip_prefix(COPY_HEADER.as_slice()).context("no COPY header")?;
    Ok(body.strip_suffix(COPY_TRAILER.as_slice()).context("no COPY trailer")?.to_owned())
}
