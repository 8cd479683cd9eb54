//! Everything goes wrong for a while. `weirgate-programs chaos` does it for longer.

#![allow(clippy::print_stdout, reason = "the figures, for --nocapture")]

use std::time::Duration;

use anyhow::Result;
use weirgate_tests::{chaos, run};

#[test]
fn every_row_is_there_once_whatever_goes_wrong() -> Result<()> {
    let programs = env!("CARGO_BIN_EXE_weirgate-programs");
    let counts = run(chaos::run(programs, "test-chaos", Duration::from_secs(90), 1))?;
    println!("{counts}");
    Ok(())
}
