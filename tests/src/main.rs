//! `weirgate-programs run importer|scaler|weirgate …` is a program of the fleet, for the tests;
//! `weirgate-programs chaos` and `outage` are the tests of those names for as long as wanted.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the answer goes to a person")]

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use weirgate_tests::{chaos, outage, run};

#[derive(Parser)]
enum Command {
    /// Break everything for a while, then prove that every row is there once.
    ///
    /// Three importers against LocalStack and PostgreSQL; kills, suspensions, crashes, a broken
    /// network, overwritten objects, repeated notifications, poison. Exit code 0: nothing lost,
    /// nothing duplicated.
    Chaos {
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Decides what goes wrong, in which order.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Take the database away under a full queue, and bring it back.
    ///
    /// Exit code 0: nothing was dead-lettered, no waiting message was received, every row is
    /// there once.
    Outage {
        #[arg(long, default_value_t = 5)]
        minutes: u64,
        #[arg(long, default_value_t = 1_000)]
        objects: u64,
    },
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == weirgate_local::programs::RUN) {
        let program: Vec<OsString> = arguments.collect();
        return weirgate_local::programs::dispatch(program);
    }
    let own = std::env::current_exe().unwrap_or_default();
    let own = own.to_string_lossy();
    let minutes = |minutes| Duration::from_secs(60 * minutes);
    let told = match Command::parse() {
        Command::Chaos { minutes: span, seed } => {
            run(chaos::run(&own, "chaos", minutes(span), seed)).map(|counts| counts.to_string())
        }
        Command::Outage { minutes: away, objects } => {
            run(outage::run(&own, "outage", minutes(away), objects))
                .map(|report| report.to_string())
        }
    };
    match told {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
