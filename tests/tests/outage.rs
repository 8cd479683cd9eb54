//! PostgreSQL goes away under load. A binary of its own, since the other tests need theirs.
//! `weirgate-programs outage` keeps it away for longer.

#![allow(clippy::print_stdout, reason = "the figures, for --nocapture")]

use std::time::Duration;

use anyhow::Result;
use weirgate_tests::{outage, run};

#[test]
fn an_outage_of_the_database_loses_and_buries_nothing() -> Result<()> {
    let programs = env!("CARGO_BIN_EXE_weirgate-programs");
    let report = run(outage::run(programs, "test-outage", Duration::from_secs(6), 600))?;
    println!("{report}");
    Ok(())
}
