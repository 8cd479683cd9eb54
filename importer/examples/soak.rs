//! Runs the simulation of the delivery protocol for as many seeds as asked:
//!
//! ```sh
//! cargo run --release -p weirgate-importer --example soak -- --seeds 1000000
//! cargo run --release -p weirgate-importer --example soak -- --seed 42       # one, with its trace
//! ```

#![expect(clippy::print_stdout, reason = "this program talks to people")]

#[path = "../tests/simulation/mod.rs"]
mod simulation;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use clap::Parser;
use simulation::{Defect, run};
use weirgate_common::clock;

/// Simulates schedules of faults and checks what the delivery protocol promises.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many schedules to run.
    #[arg(long, default_value_t = 1_000_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this one only, and print what happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Plant a defect, to see how it shows.
    #[arg(long, value_parser = defect)]
    defect: Option<Defect>,
    /// Cores to use.
    #[arg(long, default_value_t = thread::available_parallelism().map_or(1, |cores| cores.get()))]
    threads: usize,
}

fn defect(name: &str) -> Result<Defect, String> {
    let named = |defect: &Defect| format!("{defect:?}") == name;
    let known = || Defect::ALL.map(|defect| format!("{defect:?}")).join(", ");
    Defect::ALL.into_iter().find(named).ok_or_else(|| format!("one of {}", known()))
}

fn main() -> ExitCode {
    let args = Arguments::parse();
    match args.seed {
        Some(seed) => show(seed, args.defect),
        None => soak(&args),
    }
}

fn show(seed: u64, defect: Option<Defect>) -> ExitCode {
    let shown = run(seed, defect, true);
    println!("{}", shown.trace.join("\n"));
    match shown.violation {
        Some(rule) => {
            println!("seed {seed} breaks a rule: {rule}");
            ExitCode::FAILURE
        }
        None => {
            println!("seed {seed} is clean: {} steps", shown.steps);
            ExitCode::SUCCESS
        }
    }
}

fn soak(args: &Arguments) -> ExitCode {
    let end = args.from.saturating_add(args.seeds);
    let (next, steps) = (AtomicU64::new(args.from), AtomicU64::new(0));
    let (failed, failed_seed) = (AtomicBool::new(false), AtomicU64::new(u64::MAX));
    let started = clock::monotonic();
    thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let done = run(seed, args.defect, false);
                    steps.fetch_add(done.steps, Ordering::Relaxed);
                    if done.violation.is_some() {
                        failed_seed.fetch_min(seed, Ordering::Relaxed);
                        failed.store(true, Ordering::Relaxed);
                    }
                    if seed % 100_000 == 99_999 {
                        println!("seed {seed}");
                    }
                }
            });
        }
    });
    if failed.into_inner() {
        return show(failed_seed.into_inner(), args.defect);
    }
    let seconds = clock::monotonic().saturating_sub(started).as_secs_f64();
    println!(
        "{} schedules clean, {} steps, {seconds:.1} s on {} threads: {:.0} schedules per second per thread",
        args.seeds,
        steps.into_inner(),
        args.threads,
        args.seeds as f64 / seconds / args.threads as f64,
    );
    ExitCode::SUCCESS
}
