//! Into SQLite, against its C library: a prepared INSERT per row, from values in memory, with the
//! same settings, one transaction per object.

use std::ffi::{CString, c_int};
use std::path::Path;
use std::ptr;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use apache_avro::Codec;
use libsqlite3_sys as ffi;
use sqlx::{Column as _, Row as _, TypeInfo as _, ValueRef as _};
use weirgate_common::ledger::Ledger;
use weirgate_importer_bench::Set;

use crate::system::{System, median};

const ROWS: i64 = 100_000;
const OBJECTS: u64 = 10;

pub async fn run(system: &System, rounds: usize) -> Result<()> {
    let file = "impressions-sqlite.avro";
    let set = Set::impressions(ROWS);
    std::fs::write(system.folder.join(file), set.file(Codec::Snappy, "snappy"))?;
    let (mut ours, mut limit, mut ratios) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        let path = system.folder.join(format!("ours-{round}.db"));
        let url = format!("sqlite://{}", path.display());
        let mut bench = system.bench(&url, "impressions").await?;
        bench.import(file, 1, 1).await?;
        let (create, rows) = rows(&bench.ledger).await?;
        let start = Instant::now();
        bench.import(file, OBJECTS, 1).await?;
        let seconds = start.elapsed().as_secs_f64();
        bench.ledger.close().await;
        std::fs::remove_file(path)?;
        let path = system.folder.join(format!("limit-{round}.db"));
        let peer = insert(&path, &create, &rows)?;
        std::fs::remove_file(path)?;
        let total = ROWS as f64 * OBJECTS as f64;
        ours.push(total / seconds);
        limit.push(total / peer);
        ratios.push(peer / seconds);
    }
    println!("SQLite, snappy, {ROWS} rows per object: weirgate rows/s, C library rows/s, ratio");
    println!("{:.0} {:.0} {:.2}", median(ours), median(limit), median(ratios));
    Ok(())
}

enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
}

/// The table as the importer made it, and the rows of its one object.
async fn rows(ledger: &Ledger) -> Result<(String, Vec<Vec<Value>>)> {
    let Ledger::Sqlite(pool) = ledger else { bail!("this is about SQLite") };
    let create = sqlx::query_scalar("SELECT sql FROM sqlite_master WHERE name = 'impressions'")
        .fetch_one(pool)
        .await?;
    let read = sqlx::query("SELECT * FROM impressions").fetch_all(pool).await?;
    let value = |row: &sqlx::sqlite::SqliteRow, index: usize| -> Result<Value> {
        let kind = row.try_get_raw(index)?.type_info().name().to_owned();
        Ok(match kind.as_str() {
            "NULL" => Value::Null,
            "INTEGER" | "BOOLEAN" => Value::Integer(row.try_get_unchecked(index)?),
            "REAL" => Value::Real(row.try_get_unchecked(index)?),
            "TEXT" => Value::Text(row.try_get_unchecked(index)?),
            other => bail!("column {} is a {other}", row.column(index).name()),
        })
    };
    let rows = read.iter().map(|row| (0..row.len()).map(|index| value(row, index)).collect());
    Ok((create, rows.collect::<Result<_>>()?))
}

/// Seconds for the rows, `OBJECTS` times.
fn insert(path: &Path, create: &str, rows: &[Vec<Value>]) -> Result<f64> {
    let path = CString::new(path.display().to_string())?;
    let mut database = ptr::null_mut();
    // SAFETY: the path ends in NUL, the result is checked before use.
    let opened = unsafe { ffi::sqlite3_open(path.as_ptr(), &mut database) };
    ensure!(opened == ffi::SQLITE_OK, "open: {opened}");
    let run = |sql: &str| -> Result<()> {
        let sql = CString::new(sql)?;
        // SAFETY: the connection is open, the statement ends in NUL, no callback is given.
        let code = unsafe {
            ffi::sqlite3_exec(database, sql.as_ptr(), None, ptr::null_mut(), ptr::null_mut())
        };
        ensure!(code == ffi::SQLITE_OK, "{sql:?}: {code}");
        Ok(())
    };
    for sql in ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", create] {
        run(sql)?;
    }
    let places = vec!["?"; rows[0].len()].join(", ");
    let sql = CString::new(format!("INSERT INTO impressions VALUES ({places})"))?;
    let mut statement = ptr::null_mut();
    // SAFETY: as above; a length of -1 means up to the NUL.
    let code = unsafe {
        ffi::sqlite3_prepare_v2(database, sql.as_ptr(), -1, &mut statement, ptr::null_mut())
    };
    ensure!(code == ffi::SQLITE_OK, "prepare: {code}");
    let start = Instant::now();
    for _ in 0..OBJECTS {
        run("BEGIN IMMEDIATE")?;
        for row in rows {
            for (index, value) in (1..).zip(row) {
                // SAFETY: the statement is live; texts outlive its step.
                unsafe { bind(statement, index, value) };
            }
            // SAFETY: the statement is live.
            let done = unsafe { ffi::sqlite3_step(statement) };
            ensure!(done == ffi::SQLITE_DONE, "step: {done}");
            // SAFETY: the statement is live.
            unsafe { ffi::sqlite3_reset(statement) };
        }
        run("COMMIT")?;
    }
    let seconds = start.elapsed().as_secs_f64();
    // SAFETY: neither is used again.
    unsafe {
        ffi::sqlite3_finalize(statement);
        ffi::sqlite3_close(database);
    }
    Ok(seconds)
}

/// # Safety
/// The statement is live, and `value` until its next step.
unsafe fn bind(statement: *mut ffi::sqlite3_stmt, index: c_int, value: &Value) {
    // SAFETY: the caller's promise; an index out of range is only an error.
    unsafe {
        match value {
            Value::Null => ffi::sqlite3_bind_null(statement, index),
            Value::Integer(value) => ffi::sqlite3_bind_int64(statement, index, *value),
            Value::Real(value) => ffi::sqlite3_bind_double(statement, index, *value),
            Value::Text(text) => ffi::sqlite3_bind_text(
                statement,
                index,
                text.as_ptr().cast(),
                c_int::try_from(text.len()).expect("texts are short"),
                ffi::SQLITE_STATIC(),
            ),
        };
    }
}
