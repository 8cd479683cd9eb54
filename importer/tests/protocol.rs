//! The delivery protocol under thousands of schedules of faults, and under planted defects.

mod simulation;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use simulation::{Defect, run};

/// Schedules of the default test run; `cargo run --release -p weirgate-importer --example soak`
/// runs any number.
const SEEDS: u64 = 20_000;

/// A defect that hides longer than this would hide from the default test run as well.
const SEEDS_TO_CATCH: u64 = 2_000;

#[test]
fn the_protocol_keeps_its_promises_under_any_fault() {
    let next = AtomicU64::new(0);
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < SEEDS
                {
                    if let Some(rule) = run(seed, None, false).violation {
                        let trace = run(seed, None, true).trace.join("\n");
                        panic!("{trace}\nseed {seed}: {rule}");
                    }
                }
            });
        }
    });
}

/// `cargo run … --example soak -- --seed N` must show what failed.
#[test]
fn the_protocol_simulation_replays_exactly() {
    for seed in 0..50 {
        assert_eq!(run(seed, None, true).trace, run(seed, None, true).trace);
    }
}

/// A simulation in which little happens would keep every promise.
#[test]
fn the_protocol_simulation_goes_where_it_hurts() {
    let mut missing = vec![
        "is killed before Delete",
        "is killed before DeadLetter",
        "Kill",
        "Terminate",
        "clock_too: true",
        "clock_too: false",
        "Outage(Database)",
        "Outage(ObjectStore)",
        "ReceiveFailed",
        "Received([])",
        "Probed(Queue, false)",
        "Lost)",
        "Failed)",
        "commit_lost",
        "Busy",
        "corrupt",
        "no_feed",
        "flaky",
        "cursed",
        "for the dead",
        "goes to the dead-letter queue",
        "Stop",
        "FailedTogether",
        "Apart",
        "index: 0 }, TaskId {",
    ];
    let mut steps = 0;
    for seed in 0..1_000 {
        let run = run(seed, None, true);
        steps += run.steps;
        missing.retain(|event| !run.trace.iter().any(|line| line.contains(event)));
    }
    assert!(missing.is_empty(), "never happens: {missing:?}");
    assert!(steps > 50 * 1_000, "{steps} steps");
}

#[test]
fn the_protocol_simulation_catches_planted_defects() {
    let caught =
        |defect| (0..SEEDS_TO_CATCH).any(|seed| run(seed, Some(defect), false).violation.is_some());
    let missed: Vec<Defect> = Defect::ALL.into_iter().filter(|defect| !caught(*defect)).collect();
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
}
