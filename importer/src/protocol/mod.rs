//! The delivery protocol: what happens to a message from its receipt until it is deleted,
//! dead-lettered or given back. Pure: time comes in, effects go out, nothing waits here.
//!
//! ```text
//!              all events settled
//! ┌─────────┐ ────────────────────────────────────▶ ┌──────────┐  deleted
//! │ Working │                                        │ Deleting │ ─────────▶ gone
//! │         │ ──permanent──▶ ┌─────────┐ ──sent────▶ └──────────┘
//! └─────────┘                │ Burying │
//!   │  ▲  │                  └─────────┘
//!   │  └──┘ transient: retry in place, with     │ the dead-letter queue stays out of reach
//!   │       backoff; outage: hold, probe        ▼
//!   │                                        ┌───────────┐
//!   └──retries used up, or drain───────────▶ │ Releasing │ ─────────▶ gone (SQS delivers again)
//!   └──lease lost, nothing runs──────────┐   └───────────┘
//!                                        └───────────────────────────▶ gone
//! ```
//!
//! A message is deleted only after every event in it is settled durably, or after a copy with
//! the reason lies in the dead-letter queue. Leases are extended for everything held, but
//! correctness never relies on them: a second importer finds the ledger row.
//!
//! `tests/simulation/` runs this code in a world where everything fails that may fail.

mod backoff;
mod breaker;
mod budget;
mod concurrency;
mod delivery;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use weirgate_common::fault::{Dependency, Fault};
use weirgate_common::queue::{BATCH_MAX, LEASE_TOTAL_MAX};

use crate::failure::Failure;
use backoff::Backoff;
use breaker::Breakers;
use budget::Budget;
use concurrency::Concurrency;
use delivery::{Delivery, Stage, Task, TaskState, Verdict};

/// Time since the start of the process, by the monotonic clock.
pub type Moment = Duration;

/// One receipt of a message, numbered by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u64);

/// One event of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub delivery: DeliveryId,
    pub index: usize,
}

/// The named limits; each has a reason.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Imports at the same time.
    pub slots: usize,
    /// Bytes of memory that running imports may need together.
    pub bytes_max: u64,
    /// Visibility asked for at receive and at each extension.
    pub lease: Duration,
    /// In-place tries of a transient failure, before the message is given back.
    pub attempts_max: u32,
    /// The queue's `maxReceiveCount`: the last receive at which we can still dead-letter with a
    /// reason, before SQS does it without one.
    pub receives_max: u32,
    /// Jitter comes from here, so that a run can be repeated.
    pub seed: u64,
}

/// A freshly received message, as far as the protocol cares.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub delivery: DeliveryId,
    pub receive_count: u32,
    /// Memory that importing each event needs. Empty: nothing to do but acknowledge.
    pub costs: Vec<u64>,
    /// Something in the message cannot be processed: it is no event, or for no feed.
    pub failure: Option<Failure>,
}

#[derive(Debug)]
pub enum Input {
    /// Time passed; see [`Protocol::next_wake`].
    Wake,
    Received(Vec<Arrival>),
    ReceiveFailed,
    /// `Ok`: settled durably, whether rows were written now, before, or rightly never.
    Imported(TaskId, Result<(), Failure>),
    DeadLettered(DeliveryId, bool),
    Deleted(Vec<(DeliveryId, bool)>),
    Extended(Vec<(DeliveryId, Extension)>),
    Released(Vec<DeliveryId>),
    Probed(Dependency, bool),
    /// Finish what can be finished until the moment given, give the rest back.
    Drain(Moment),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    Granted,
    /// The receipt is stale: somebody else has, or will get, the message.
    Lost,
    /// No answer; ask again.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Receive {
        count: usize,
    },
    Import(TaskId),
    DeadLetter {
        delivery: DeliveryId,
        event: Option<usize>,
        attempts: u32,
        failure: Failure,
    },
    Extend(Vec<(DeliveryId, Duration)>),
    Delete(Vec<DeliveryId>),
    Release(Vec<(DeliveryId, Duration)>),
    Probe(Dependency),
    /// The protocol is done with this delivery.
    Forget(DeliveryId),
    /// Nothing is held any more; the drain is complete.
    Stop,
}

/// What to do now. Dropping it loses messages.
#[must_use]
#[derive(Debug, Default)]
pub struct Effects(pub Vec<Effect>);

/// Acknowledgements wait this long for company: a batch call costs the same for ten.
const ACK_LINGER: Duration = Duration::from_millis(50);

/// Deletes are tried this often; then redelivery and the ledger row settle the message.
const DELETES_MAX: u32 = 5;

/// Sends to the dead-letter queue are tried this often in place; then the message is given back.
const BURIALS_MAX: u32 = 6;

/// After the grace of a drain, how long the last calls to SQS may take.
const STOP_AFTER: Duration = Duration::from_secs(5);

/// Held deliveries per slot: retries that wait must not keep slots empty, and nobody should
/// hold many messages that others could work on.
const HELD_PER_SLOT: usize = 2;

pub struct Protocol {
    limits: Limits,
    deliveries: BTreeMap<DeliveryId, Delivery>,
    breakers: Breakers,
    concurrency: Concurrency,
    receiving: bool,
    drain: Option<Moment>,
    stopped: bool,
    /// The time of the last step: all that was due by then is done or waits for an input.
    now: Moment,
    rng: SmallRng,
}

impl Protocol {
    pub fn new(limits: Limits) -> Self {
        assert!(limits.slots > 0, "an importer needs a slot");
        Protocol {
            rng: SmallRng::seed_from_u64(limits.seed),
            concurrency: Concurrency::new(limits.slots),
            limits,
            deliveries: BTreeMap::new(),
            breakers: Breakers::default(),
            receiving: false,
            drain: None,
            stopped: false,
            now: Moment::ZERO,
        }
    }

    /// Takes in what happened and says what to do. Cost is linear in what is held.
    pub fn step(&mut self, now: Moment, input: Input) -> Effects {
        let mut effects = Effects::default();
        self.now = now;
        match input {
            Input::Wake => {}
            Input::Received(arrivals) => self.received(now, arrivals),
            Input::ReceiveFailed => {
                self.receiving = false;
                self.breakers.open(Dependency::Queue, now, &mut self.rng);
            }
            Input::Imported(task, result) => self.imported(now, task, result),
            Input::DeadLettered(id, sent) => self.dead_lettered(now, id, sent),
            Input::Deleted(results) => self.deleted(now, results, &mut effects),
            Input::Extended(results) => self.extended(now, results),
            Input::Released(ids) => {
                for id in ids {
                    self.forget(id, &mut effects);
                }
            }
            Input::Probed(dependency, ok) => {
                self.breakers.probed(dependency, ok, now, &mut self.rng);
            }
            Input::Drain(deadline) => self.drain = Some(self.drain.unwrap_or(deadline)),
        }
        self.decide(now, &mut effects);
        effects
    }

    /// When to send [`Input::Wake`] if nothing else happens before.
    pub fn next_wake(&self) -> Option<Moment> {
        let deliveries = self
            .deliveries
            .values()
            .flat_map(|delivery| std::iter::once(delivery.extend_at()).chain(delivery.wakes()));
        deliveries
            .chain(self.breakers.next_probe())
            .chain(self.concurrency.next_tick())
            .chain(self.drain.into_iter().flat_map(|at| [at, at + STOP_AFTER]))
            .filter(|at| *at > self.now)
            .min()
    }

    /// Deliveries held, in whatever stage.
    pub fn held(&self) -> usize {
        self.deliveries.len()
    }

    /// Imports running now.
    pub fn running(&self) -> usize {
        self.tasks().filter(|task| task.state == TaskState::Running).count()
    }

    /// Slots in use: fewer than configured while the database is under strain.
    pub fn slots(&self) -> usize {
        self.concurrency.slots()
    }

    pub fn waits_for_outage(&self) -> bool {
        self.breakers.any_open()
    }

    fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.deliveries.values().flat_map(|delivery| &delivery.tasks)
    }

    fn received(&mut self, now: Moment, arrivals: Vec<Arrival>) {
        assert!(self.receiving, "messages arrive only when asked for");
        self.receiving = false;
        for arrival in arrivals {
            let mut delivery = Delivery {
                tasks: arrival.costs.into_iter().map(|cost| Task::new(cost, now)).collect(),
                unprocessable: arrival.failure,
                receive_count: arrival.receive_count,
                received_at: now,
                leased_at: now,
                lease: self.limits.lease,
                extending: false,
                lost: false,
                stage: Stage::Working,
            };
            delivery.conclude(now, ACK_LINGER);
            let known = self.deliveries.insert(arrival.delivery, delivery);
            assert!(known.is_none(), "delivery ids are never reused");
        }
    }

    fn imported(&mut self, now: Moment, task: TaskId, result: Result<(), Failure>) {
        // A drain past its deadline has given the delivery back and forgotten it.
        let Some(delivery) = self.deliveries.get_mut(&task.delivery) else { return };
        let attempts_max = self.limits.attempts_max;
        let receives_used = delivery.receive_count >= self.limits.receives_max;
        let release = Backoff::RELEASE.after(delivery.receive_count, &mut self.rng);
        let work = &mut delivery.tasks[task.index];
        assert_eq!(work.state, TaskState::Running, "only what runs can end");
        let (started_at, concurrency) = (work.started_at, &mut self.concurrency);
        work.state = match result {
            Ok(()) => {
                // What a large import takes says how large it is.
                if !budget::is_large(&self.limits, work.cost) {
                    concurrency.settled(now, started_at, work.cost);
                }
                TaskState::Settled
            }
            Err(failure) => match failure.fault {
                Fault::Outage(dependency) => {
                    self.breakers.open(dependency, now, &mut self.rng);
                    work.outages += 1;
                    // One object may look like an outage for ever; it must not stop the others.
                    match work.outages < attempts_max {
                        true => TaskState::Waiting { not_before: now },
                        false => TaskState::Failed(Verdict::Release { delay: release }),
                    }
                }
                Fault::Busy => {
                    work.waits += 1;
                    // One object that is locked for long says no more than that.
                    if work.waits == 1 {
                        concurrency.contended(now, started_at);
                    }
                    let wait = Backoff::BUSY.after(work.waits, &mut self.rng);
                    TaskState::Waiting { not_before: now + wait }
                }
                Fault::Transient => {
                    work.attempts += 1;
                    let attempts = work.attempts;
                    if attempts == 1 {
                        concurrency.contended(now, started_at);
                    }
                    if attempts < attempts_max {
                        let wait = Backoff::RETRY.after(attempts, &mut self.rng);
                        TaskState::Waiting { not_before: now + wait }
                    } else if receives_used {
                        // SQS would move it at the next receive, without a reason.
                        TaskState::Failed(Verdict::Bury { attempts, failure })
                    } else {
                        TaskState::Failed(Verdict::Release { delay: release })
                    }
                }
                Fault::Permanent => {
                    let attempts = work.attempts + 1;
                    TaskState::Failed(Verdict::Bury { attempts, failure })
                }
            },
        };
        delivery.conclude(now, ACK_LINGER);
    }

    fn dead_lettered(&mut self, now: Moment, id: DeliveryId, sent: bool) {
        let Some(delivery) = self.deliveries.get_mut(&id) else { return };
        let Stage::Burying { tries, due, .. } = &mut delivery.stage else { return };
        if sent {
            delivery.stage = Stage::deleting(now + ACK_LINGER);
            return;
        }
        *tries += 1;
        if *tries < BURIALS_MAX {
            *due = Some(now + Backoff::RETRY.after(*tries, &mut self.rng));
        } else {
            let delay = Backoff::RELEASE.after(delivery.receive_count, &mut self.rng);
            delivery.stage = Stage::releasing(delay);
        }
    }

    fn deleted(&mut self, now: Moment, results: Vec<(DeliveryId, bool)>, effects: &mut Effects) {
        for (id, deleted) in results {
            let Some(delivery) = self.deliveries.get_mut(&id) else { continue };
            let Stage::Deleting { tries, due } = &mut delivery.stage else { continue };
            *tries += 1;
            if deleted || *tries >= DELETES_MAX {
                self.forget(id, effects);
            } else {
                *due = Some(now + Backoff::RETRY.after(*tries, &mut self.rng));
            }
        }
    }

    fn extended(&mut self, now: Moment, results: Vec<(DeliveryId, Extension)>) {
        for (id, extension) in results {
            let Some(delivery) = self.deliveries.get_mut(&id) else { continue };
            delivery.extending = false;
            match extension {
                Extension::Granted => {}
                Extension::Lost => delivery.lost = true,
                Extension::Failed => delivery.retry_extension(now),
            }
        }
    }

    fn forget(&mut self, id: DeliveryId, effects: &mut Effects) {
        if self.deliveries.remove(&id).is_some() {
            effects.0.push(Effect::Forget(id));
        }
    }

    /// Everything that follows from the state rather than from the input alone.
    fn decide(&mut self, now: Moment, effects: &mut Effects) {
        if self.stopped {
            return;
        }
        self.concurrency.tick(now);
        self.give_up_lost(effects);
        if let Some(deadline) = self.drain {
            self.drain_held(now, deadline);
        }
        for dependency in self.breakers.probes_due(now) {
            effects.0.push(Effect::Probe(dependency));
        }
        self.start_imports(now, effects);
        self.bury(now, effects);
        self.extend_leases(now, effects);
        self.release(effects);
        self.delete(now, effects);
        self.receive(now, effects);
        if let Some(deadline) = self.drain {
            let drained = self.deliveries.is_empty() && !self.receiving;
            if drained || now >= deadline + STOP_AFTER {
                self.stopped = true;
                effects.0.push(Effect::Stop);
            }
        }
    }

    /// Without a lease somebody else has, or will get, the message: what runs may end, but what
    /// waits is left to them.
    fn give_up_lost(&mut self, effects: &mut Effects) {
        let given_up = self.deliveries.extract_if(.., |_, delivery| {
            delivery.lost && delivery.stage == Stage::Working && !delivery.is_running()
        });
        effects.0.extend(given_up.map(|(id, _)| Effect::Forget(id)));
    }

    /// While draining, what does not run is given back at once; past the deadline everything is.
    fn drain_held(&mut self, now: Moment, deadline: Moment) {
        let late = now >= deadline;
        for delivery in self.deliveries.values_mut() {
            let given_back = Stage::releasing(Duration::ZERO);
            match delivery.stage {
                Stage::Working if late => delivery.stage = given_back,
                // Whoever gets it next does the rest and buries what is bad, unless SQS does that
                // first, without a reason.
                Stage::Working if !delivery.is_running() => {
                    let verdict = delivery
                        .verdict(now)
                        .filter(|_| delivery.receive_count >= self.limits.receives_max);
                    delivery.stage = verdict.unwrap_or(given_back);
                }
                Stage::Burying { .. } if late => delivery.stage = given_back,
                _ => {}
            }
        }
    }

    fn budget(&self) -> Budget {
        Budget::new(self.concurrency.slots(), &self.limits)
    }

    fn start_imports(&mut self, now: Moment, effects: &mut Effects) {
        if self.breakers.any_open() {
            return;
        }
        let mut budget = self.budget();
        self.tasks()
            .filter(|task| task.state == TaskState::Running)
            .for_each(|task| budget.take(task.cost));
        for (id, delivery) in &mut self.deliveries {
            if delivery.stage != Stage::Working || delivery.lost {
                continue;
            }
            for (index, task) in delivery.tasks.iter_mut().enumerate() {
                let TaskState::Waiting { not_before } = task.state else { continue };
                if not_before > now || !budget.admit(task.cost) {
                    continue;
                }
                task.state = TaskState::Running;
                task.started_at = now;
                effects.0.push(Effect::Import(TaskId { delivery: *id, index }));
            }
        }
    }

    fn bury(&mut self, now: Moment, effects: &mut Effects) {
        for (id, delivery) in &mut self.deliveries {
            let Stage::Burying { event, attempts, failure, due, .. } = &mut delivery.stage else {
                continue;
            };
            if due.is_some_and(|at| at <= now) {
                *due = None;
                effects.0.push(Effect::DeadLetter {
                    delivery: *id,
                    event: *event,
                    attempts: *attempts,
                    failure: failure.clone(),
                });
            }
        }
    }

    fn extend_leases(&mut self, now: Moment, effects: &mut Effects) {
        let mut due = Vec::new();
        for (id, delivery) in &mut self.deliveries {
            let held = matches!(delivery.stage, Stage::Working | Stage::Burying { .. });
            if !held || delivery.extending || delivery.lost || delivery.extend_at() > now {
                continue;
            }
            // SQS refuses what would pass 12 hours in total, it does not clamp.
            let left = (delivery.received_at + LEASE_TOTAL_MAX)
                .saturating_sub(now + Duration::from_secs(1));
            let lease = self.limits.lease.min(Duration::from_secs(left.as_secs()));
            if lease.is_zero() {
                delivery.lost = true;
                continue;
            }
            delivery.ask_extension(now, lease);
            due.push((*id, lease));
        }
        effects.batches(due, Effect::Extend);
    }

    fn release(&mut self, effects: &mut Effects) {
        let mut due = Vec::new();
        for (id, delivery) in &mut self.deliveries {
            // An extension that arrived after the release would undo it: let it return first.
            if let Stage::Releasing { delay, asked: asked @ false } = &mut delivery.stage
                && !delivery.extending
            {
                *asked = true;
                due.push((*id, *delay));
            }
        }
        effects.batches(due, Effect::Release);
    }

    fn delete(&mut self, now: Moment, effects: &mut Effects) {
        let ready = |delivery: &Delivery| match delivery.stage {
            Stage::Deleting { due: Some(due), .. } => Some(due),
            _ => None,
        };
        let waiting = self.deliveries.values().filter_map(ready).count();
        let due_now = self.deliveries.values().filter_map(ready).any(|due| due <= now);
        if waiting < BATCH_MAX && !due_now && self.drain.is_none() {
            return;
        }
        let mut due = Vec::new();
        for (id, delivery) in &mut self.deliveries {
            if let Stage::Deleting { due: due_at @ Some(_), .. } = &mut delivery.stage {
                *due_at = None;
                due.push(*id);
            }
        }
        effects.batches(due, Effect::Delete);
    }

    fn receive(&mut self, now: Moment, effects: &mut Effects) {
        if self.receiving || self.drain.is_some() || self.breakers.any_open() {
            return;
        }
        let unsettled = self.deliveries.values().filter(|delivery| !delivery.is_acknowledged());
        let mut held = 0;
        let mut budget = self.budget();
        for delivery in unsettled {
            held += 1;
            let wanting = delivery.tasks.iter().filter(|task| task.wants_slot(now));
            wanting.for_each(|task| budget.take(task.cost));
        }
        let free_places = (HELD_PER_SLOT * self.limits.slots).saturating_sub(held);
        let count = budget.free_slots().min(free_places).min(BATCH_MAX);
        if count > 0 {
            self.receiving = true;
            effects.0.push(Effect::Receive { count });
        }
    }
}

impl Effects {
    fn batches<T: Clone>(&mut self, entries: Vec<T>, effect: impl Fn(Vec<T>) -> Effect) {
        self.0.extend(entries.chunks(BATCH_MAX).map(|batch| effect(batch.to_vec())));
    }
}
