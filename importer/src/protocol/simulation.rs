//! The protocol against a simulated queue and database, over seeded schedules of faults.
//!
//! The checker holds the invariants of DESIGN section 5 that concern delivery: a message is
//! deleted only when every event of it is settled or a copy lies in the dead-letter queue,
//! every message ends in one of the two, outages bury nothing, and a drain gives everything back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weirgate_common::fault::{Dependency, Fault};

use super::{Arrival, DeliveryId, Effect, Extension, Input, Limits, Moment, Protocol, TaskId};
use crate::failure::Failure;

const LEASE: Duration = Duration::from_secs(30);
const RECEIVES_MAX: u32 = 5;

/// A message as the simulated SQS keeps it.
struct Queued {
    events: Vec<Kind>,
    /// It also holds something that can never be processed.
    strange: bool,
    visible_at: Moment,
    receives: u32,
    /// The delivery whose receipt is valid.
    receipt: Option<DeliveryId>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Good,
    Poison,
    Flaky,
    /// Looks like an outage for ever, though the dependency answers every probe.
    Cursed,
}

struct World {
    rng: SmallRng,
    now: Moment,
    queue: BTreeMap<usize, Queued>,
    dead: BTreeSet<usize>,
    /// Moved by SQS itself, without a reason.
    redriven: BTreeSet<usize>,
    committed: BTreeSet<(usize, usize)>,
    deliveries: BTreeMap<DeliveryId, usize>,
    next_delivery: u64,
    /// Answers under way: when they arrive, and what they say.
    answers: Vec<(Moment, Input)>,
    outage: Option<(Moment, Moment)>,
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let queue = (0..rng.random_range(1..30))
            .map(|id| {
                let events = (0..rng.random_range(1..4))
                    .map(|_| match rng.random_range(0..20) {
                        0 => Kind::Poison,
                        1..3 => Kind::Flaky,
                        3 if rng.random_bool(0.2) => Kind::Cursed,
                        _ => Kind::Good,
                    })
                    .collect();
                let strange = rng.random_bool(0.05);
                let visible_at = Moment::ZERO;
                (id, Queued { events, strange, visible_at, receives: 0, receipt: None })
            })
            .collect();
        let outage = rng.random_bool(0.3).then(|| {
            let from = Duration::from_millis(rng.random_range(0..20_000));
            (from, from + Duration::from_millis(rng.random_range(1_000..120_000)))
        });
        World {
            rng,
            now: Moment::ZERO,
            queue,
            dead: BTreeSet::new(),
            redriven: BTreeSet::new(),
            committed: BTreeSet::new(),
            deliveries: BTreeMap::new(),
            next_delivery: 0,
            answers: Vec::new(),
            outage,
            trace: Vec::new(),
        }
    }

    fn away(&self) -> bool {
        self.outage.is_some_and(|(from, to)| (from..to).contains(&self.now))
    }

    fn answer(&mut self, wait_ms: std::ops::Range<u64>, input: Input) {
        let at = self.now + Duration::from_millis(self.rng.random_range(wait_ms));
        self.answers.push((at, input));
    }

    fn run(&mut self, effect: Effect) {
        self.trace.push(format!("{:?} {effect:?}", self.now));
        match effect {
            Effect::Receive { count } => {
                if self.rng.random_bool(0.03) {
                    return self.answer(1..50, Input::ReceiveFailed);
                }
                let arrivals = self.receive(count);
                self.answer(1..400, Input::Received(arrivals));
            }
            Effect::Import(task) => {
                let result = self.import(task);
                // Some imports outlive their lease.
                let wait = if self.rng.random_bool(0.05) { 20_000..90_000 } else { 1..3_000 };
                self.answer(wait, Input::Imported(task, result));
            }
            Effect::DeadLetter { delivery, failure, .. } => {
                assert!(!matches!(failure.fault, Fault::Outage(_)), "an outage buried a message");
                let sent = self.rng.random_bool(0.9);
                if sent {
                    self.dead.insert(self.deliveries[&delivery]);
                }
                // Sent, but the answer was lost: a second copy is harmless.
                let told = sent && self.rng.random_bool(0.95);
                self.answer(1..50, Input::DeadLettered(delivery, told));
            }
            Effect::Extend(batch) => {
                let results = batch.into_iter().map(|(id, lease)| (id, self.extend(id, lease)));
                let results = results.collect();
                self.answer(1..50, Input::Extended(results));
            }
            Effect::Release(batch) => {
                for (id, delay) in &batch {
                    self.extend(*id, *delay);
                }
                let ids = batch.into_iter().map(|(id, _)| id).collect();
                self.answer(1..50, Input::Released(ids));
            }
            Effect::Delete(batch) => {
                let results = batch.into_iter().map(|id| (id, self.delete(id))).collect();
                self.answer(1..50, Input::Deleted(results));
            }
            Effect::Probe(dependency) => {
                let ok = dependency == Dependency::Queue || !self.away();
                self.answer(1..50, Input::Probed(dependency, ok));
            }
            Effect::Forget(_) | Effect::Stop => {}
        }
    }

    fn receive(&mut self, count: usize) -> Vec<Arrival> {
        let now = self.now;
        let visible: Vec<usize> = self
            .queue
            .iter()
            .filter(|(_, queued)| queued.visible_at <= now)
            .map(|(id, _)| *id)
            .collect();
        let mut arrivals = Vec::new();
        for id in visible {
            if arrivals.len() == count {
                break;
            }
            let queued = self.queue.get_mut(&id).unwrap();
            if queued.receives >= RECEIVES_MAX {
                self.redriven.insert(id);
                self.queue.remove(&id);
                continue;
            }
            let delivery = DeliveryId(self.next_delivery);
            self.next_delivery += 1;
            queued.receives += 1;
            queued.visible_at = now + LEASE;
            queued.receipt = Some(delivery);
            self.deliveries.insert(delivery, id);
            arrivals.push(Arrival {
                delivery,
                receive_count: queued.receives,
                costs: queued.events.iter().map(|_| 1).collect(),
                failure: queued.strange.then(|| Failure::permanent("no_feed", "")),
            });
        }
        arrivals
    }

    fn import(&mut self, task: TaskId) -> Result<(), Failure> {
        let id = self.deliveries[&task.delivery];
        if self.away() {
            return Err(Failure::new(Fault::Outage(Dependency::Database), "away", ""));
        }
        // The message may be gone when its lease was lost; the work is still asked for.
        let kind = self.queue.get(&id).map_or(Kind::Good, |queued| queued.events[task.index]);
        match kind {
            Kind::Poison => return Err(Failure::permanent("corrupt", "")),
            Kind::Cursed => {
                return Err(Failure::new(Fault::Outage(Dependency::ObjectStore), "cursed", ""));
            }
            Kind::Flaky if self.rng.random_bool(0.7) => {
                return Err(Failure::new(Fault::Transient, "flaky", ""));
            }
            _ if self.rng.random_bool(0.1) => return Err(Failure::new(Fault::Busy, "busy", "")),
            _ => {}
        }
        self.committed.insert((id, task.index));
        match self.rng.random_bool(0.03) {
            // Committed, but the reply was lost.
            true => Err(Failure::new(Fault::Transient, "lost_reply", "")),
            false => Ok(()),
        }
    }

    fn extend(&mut self, id: DeliveryId, span: Duration) -> Extension {
        if self.rng.random_bool(0.03) {
            return Extension::Failed;
        }
        let now = self.now;
        match self.queue.get_mut(&self.deliveries[&id]) {
            Some(queued) if queued.receipt == Some(id) => {
                queued.visible_at = now + span;
                Extension::Granted
            }
            _ => Extension::Lost,
        }
    }

    fn delete(&mut self, id: DeliveryId) -> bool {
        let message = self.deliveries[&id];
        if self.rng.random_bool(0.05) {
            return false;
        }
        let Some(queued) = self.queue.get(&message) else { return true };
        let settled =
            (0..queued.events.len()).all(|index| self.committed.contains(&(message, index)));
        let settled = settled && !queued.strange;
        assert!(
            settled || self.dead.contains(&message),
            "message {message} was deleted before it was settled"
        );
        // A stale receipt, and sometimes a valid one, deletes nothing and says it did.
        if queued.receipt == Some(id) && self.rng.random_bool(0.98) {
            self.queue.remove(&message);
        }
        true
    }

    /// The next thing to happen, and when.
    fn next(&mut self, wake: Option<Moment>) -> Input {
        let earliest = (0..self.answers.len()).min_by_key(|i| self.answers[*i].0);
        match (earliest, wake) {
            (Some(i), wake) if wake.is_none_or(|at| self.answers[i].0 <= at) => {
                let (at, input) = self.answers.swap_remove(i);
                self.now = self.now.max(at);
                input
            }
            (_, Some(at)) => {
                assert!(at > self.now, "the protocol asked to be woken in the past: a busy loop");
                self.now = at;
                Input::Wake
            }
            (_, None) => panic!("nothing will ever happen again"),
        }
    }
}

fn limits(seed: u64) -> Limits {
    Limits {
        slots: 1 + (seed % 5) as usize,
        bytes_max: 3,
        lease: LEASE,
        attempts_max: 3,
        receives_max: RECEIVES_MAX,
        seed,
    }
}

fn simulate(seed: u64) {
    let mut world = World::new(seed);
    let messages: BTreeMap<usize, (Vec<Kind>, bool)> = world
        .queue
        .iter()
        .map(|(id, queued)| (*id, (queued.events.clone(), queued.strange)))
        .collect();
    let limits = limits(seed);
    let mut protocol = Protocol::new(limits.clone());
    let mut input = Input::Wake;
    let mut drained = false;
    let mut stopped = false;
    for _ in 0..200_000 {
        world.trace.push(format!("{:?} {input:?}", world.now));
        for effect in protocol.step(world.now, input).0 {
            stopped |= effect == Effect::Stop;
            world.run(effect);
        }
        assert!(protocol.running() <= limits.slots);
        if stopped {
            break;
        }
        let quiet = world.queue.is_empty() && protocol.held() == 0;
        input = if quiet && !drained {
            drained = true;
            Input::Drain(world.now + Duration::from_secs(30))
        } else {
            world.next(protocol.next_wake())
        };
    }
    assert!(stopped, "the run did not come to an end");
    for (id, (events, strange)) in messages {
        let committed = (0..events.len()).all(|index| world.committed.contains(&(id, index)));
        let dead = world.dead.contains(&id) || world.redriven.contains(&id);
        assert!(committed || dead, "message {id} was lost");
        let poison = strange || events.contains(&Kind::Poison);
        assert!(!poison || dead, "poison message {id} is not in the dead-letter queue");
        // A neighbour of poison is imported all the same.
        for (index, kind) in events.iter().enumerate() {
            let reached = world.committed.contains(&(id, index));
            assert!(reached || *kind != Kind::Good || world.redriven.contains(&id), "{id} {index}");
        }
    }
}

/// Prints the seed and the trace of a failure; `simulate(seed)` replays it.
fn check(seed: u64) {
    if let Err(panic) = std::panic::catch_unwind(|| simulate(seed)) {
        let mut message = format!("seed {seed} failed");
        if let Some(text) = panic.downcast_ref::<String>() {
            message = format!("{message}: {text}");
        }
        panic!("{message}");
    }
}

#[test]
fn no_schedule_of_faults_loses_or_buries_wrongly() {
    for seed in 0..5_000 {
        check(seed);
    }
}

#[test]
fn a_drain_gives_everything_back_in_time() {
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        let mut protocol = Protocol::new(limits(seed));
        let start = Duration::from_millis(seed * 7 % 4_000);
        let deadline = start + Duration::from_secs(10);
        let mut input = Input::Wake;
        let mut draining = false;
        let mut stopped = false;
        while !stopped {
            for effect in protocol.step(world.now, input).0 {
                assert!(!draining || !matches!(effect, Effect::Receive { .. }));
                stopped |= effect == Effect::Stop;
                world.run(effect);
            }
            input = match draining || world.now < start {
                true if draining => world.next(protocol.next_wake()),
                true => world.next(Some(protocol.next_wake().map_or(start, |at| at.min(start)))),
                false => {
                    draining = true;
                    Input::Drain(deadline)
                }
            };
        }
        assert!(world.now <= deadline + super::STOP_AFTER, "seed {seed}: drain took too long");
        assert!(
            protocol.held() == 0 || world.now >= deadline + super::STOP_AFTER,
            "seed {seed}: stopped while holding messages"
        );
    }
}
