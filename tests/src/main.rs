//! `weirgate-programs run importer|scaler|weirgate …` is a program of the fleet, for the tests;
//! `weirgate-programs chaos` is the chaos test for as long as wanted.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the answer goes to a person")]

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use weirgate_tests::{chaos, run};

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
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == weirgate_local::programs::RUN) {
        let program: Vec<OsString> = arguments.collect();
        return weirgate_local::programs::dispatch(program);
    }
    let Command::Chaos { minutes, seed } = Command::parse();
    let own = std::env::current_exe().unwrap_or_default();
    let span = Duration::from_secs(60 * minutes);
    match run(chaos::run(&own.to_string_lossy(), "chaos", span, seed)) {
        Ok(counts) => {
            println!("{counts}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
