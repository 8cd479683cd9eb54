//! The delivery protocol under thousands of schedules of faults, and under planted defects.

mod simulation;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use simulation::{Defect, run};
use weirgate_importer::protocol::{
    Arrival, DeliveryId, Effect, FeedId, Grouping, Input, Limits, Load, Protocol,
};

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

/// One receive brings ten messages; a group has room for fifty.
#[test]
fn small_objects_are_received_by_several_calls_while_the_queue_is_full() {
    let mut protocol = Protocol::new(Limits {
        slots: 4,
        bytes_max: 1 << 30,
        lease: Duration::from_secs(60),
        attempts_max: 3,
        receives_max: 3,
        grouping: Grouping::default(),
        seed: 0,
    });
    let mut next = 0;
    let mut messages = |count| {
        let arrival = |_| {
            next += 1;
            let loads = vec![Load { feed: FeedId(0), cost: 1_000 }];
            Arrival { delivery: DeliveryId(next), receive_count: 1, loads, failure: None }
        };
        Input::Received((0..count).map(arrival).collect())
    };
    let received = |protocol: &mut Protocol, input| {
        let effects = protocol.step(Duration::from_millis(1), input).0;
        effects.iter().filter(|effect| matches!(effect, Effect::Receive { .. })).count()
    };
    assert_eq!(received(&mut protocol, Input::Wake), 1);
    assert_eq!(received(&mut protocol, messages(4)), 1, "fewer than ten: the queue is empty");
    assert_eq!(received(&mut protocol, messages(10)), 2, "one more, now that one was full");
    assert_eq!(received(&mut protocol, messages(10)), 2);
    assert_eq!(received(&mut protocol, messages(10)), 2, "four are on their way");
    assert_eq!(received(&mut protocol, messages(10)), 1);
    assert_eq!(received(&mut protocol, messages(9)), 0, "the queue is empty again");
    assert_eq!(received(&mut protocol, Input::ReceiveFailed), 0);
}
