//! Whole imports against what the database can take in, in the same run:
//! `cargo run --release --bin import [postgres] [sqlite] [memory] [small] [ledger] [python] [ROUNDS]`,
//! all but the last two by default. `ledger` fills a ledger of ten million objects first. `python`
//! needs PYTHON to name an interpreter with the packages that `peers.py` imports.
//!
//! Objects come from a stub of S3 in a process of its own, rows go to a real PostgreSQL over TCP with
//! fsync on, or to a SQLite file. Rounds are interleaved, ratios are medians over rounds.

mod memory;
mod postgres;
mod python;
mod small;
mod sqlite;
mod stub;
mod system;

use std::process::ExitCode;

use system::System;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("run") => {
            return weirgate_local::programs::dispatch(std::env::args_os().skip(2).collect());
        }
        Some("stub") => stub::serve(arguments[1].as_ref()),
        _ => {}
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let all = !["postgres", "sqlite", "memory", "small", "ledger", "python"].into_iter().any(named);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let ran: anyhow::Result<()> = runtime.block_on(async {
        let system = System::start().await?;
        if all || named("postgres") {
            postgres::run(&system, rounds).await?;
        }
        if all || named("sqlite") {
            sqlite::run(&system, rounds).await?;
        }
        if all || named("small") {
            small::run(&system, rounds).await?;
        }
        if named("ledger") {
            small::ledger(&system, rounds).await?;
        }
        if named("python") {
            python::run(&system, rounds).await?;
        }
        if all || named("memory") {
            memory::run(&system).await?;
        }
        system.stop().await;
        Ok(())
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}
