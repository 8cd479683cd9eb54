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
//! Small objects of one feed wait a moment for each other and share an import. When it fails and
//! nobody knows because of whom, its objects are tried again in groups of half the size, until
//! the guilty one stands alone; what they failed at together counts against none of them.
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
mod group;
mod signals;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use weirgate_common::fault::{Dependency, Fault};
use weirgate_common::queue::{BATCH_MAX, LEASE_TOTAL_MAX};

use backoff::Backoff;
use breaker::Breakers;
use budget::Budget;
use concurrency::Concurrency;
use delivery::{Delivery, Stage, TaskState};
use group::Group;
pub use signals::{
    Arrival, DeliveryId, Effect, Effects, Extension, FeedId, Grouping, ImportId, Input, Limits,
    Load, Moment, Outcome, TaskId,
};

/// Acknowledgements wait this long for company: a batch call costs the same for ten.
const ACK_LINGER: Duration = Duration::from_millis(50);

/// Deletes are tried this often; then redelivery and the ledger row settle the message.
const DELETES_MAX: u32 = 5;

/// Sends to the dead-letter queue are tried this often in place; then the message is given back.
const BURIALS_MAX: u32 = 6;

/// After the grace of a drain, how long the last calls to SQS may take.
const STOP_AFTER: Duration = Duration::from_secs(5);

/// Deliveries held per slot, or groups of them: retries that wait must not keep slots empty, and nobody should
/// hold many messages that others could work on.
const HELD_PER_SLOT: usize = 2;

/// Receives at the same time, at most: each brings ten messages and takes a round trip to SQS, which
/// is long beside the import of ten small objects.
const RECEIVES_MAX: usize = 4;

pub struct Protocol {
    limits: Limits,
    deliveries: BTreeMap<DeliveryId, Delivery>,
    /// What runs.
    imports: BTreeMap<ImportId, Import>,
    next_import: u64,
    breakers: Breakers,
    concurrency: Concurrency,
    /// Receives that have not returned.
    receives: usize,
    /// How many there may be: one more after each that came back full, one after any other.
    receives_max: usize,
    drain: Option<Moment>,
    stopped: bool,
    /// The time of the last step: all that was due by then is done or waits for an input.
    now: Moment,
    rng: SmallRng,
}

struct Import {
    cost: u64,
    objects: usize,
    /// Whether others of its kind could have joined it.
    small: bool,
    started_at: Moment,
}

impl Protocol {
    pub fn new(limits: Limits) -> Self {
        assert!(limits.slots > 0, "an importer needs a slot");
        assert!(limits.grouping.objects_max > 0, "an import has an object");
        Protocol {
            rng: SmallRng::seed_from_u64(limits.seed),
            concurrency: Concurrency::new(limits.slots),
            limits,
            deliveries: BTreeMap::new(),
            imports: BTreeMap::new(),
            next_import: 0,
            breakers: Breakers::default(),
            receives: 0,
            receives_max: 1,
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
                self.returned(0);
                self.breakers.open(Dependency::Queue, now, &mut self.rng);
            }
            Input::Imported(import, outcomes) => self.imported(now, import, outcomes),
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
        let deliveries = self.deliveries.values().flat_map(|delivery| {
            std::iter::once(delivery.extend_at()).chain(delivery.wakes(&self.limits))
        });
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
        self.imports.len()
    }

    /// Slots in use: fewer than configured while the database is under strain.
    pub fn slots(&self) -> usize {
        self.concurrency.slots()
    }

    pub fn waits_for_outage(&self) -> bool {
        self.breakers.any_open()
    }

    fn received(&mut self, now: Moment, arrivals: Vec<Arrival>) {
        self.returned(arrivals.len());
        for arrival in arrivals {
            let Arrival { delivery: id, receive_count, loads, failure } = arrival;
            let mut delivery = Delivery::of(&self.limits, now, receive_count, loads, failure);
            delivery.conclude(now, ACK_LINGER);
            let known = self.deliveries.insert(id, delivery);
            assert!(known.is_none(), "delivery ids are never reused");
        }
    }

    fn returned(&mut self, messages: usize) {
        assert!(self.receives > 0, "messages arrive only when asked for");
        self.receives -= 1;
        self.receives_max = match messages < BATCH_MAX {
            true => 1,
            false => RECEIVES_MAX.min(self.receives_max + 1),
        };
    }

    fn imported(&mut self, now: Moment, import: ImportId, outcomes: Vec<(TaskId, Outcome)>) {
        let import = self.imports.remove(&import).expect("only what runs can end");
        let settled = outcomes.iter().any(|(_, outcome)| *outcome == Outcome::Settled);
        // Those who failed together try again at the same time.
        let regroup_at = now + Backoff::RETRY.after(1, &mut self.rng);
        let mut contended = false;
        for (id, outcome) in outcomes {
            // A drain past its deadline has given the delivery back and forgotten it.
            let Some(delivery) = self.deliveries.get_mut(&id.delivery) else { continue };
            let task = &mut delivery.tasks[id.index];
            assert_eq!(task.state, TaskState::Running, "only what runs can end");
            if let Outcome::Failed(failure) | Outcome::FailedTogether(failure) = &outcome {
                if let Fault::Outage(dependency) = failure.fault {
                    self.breakers.open(dependency, now, &mut self.rng);
                }
                // One object that is locked for long, or fails for ever, says no more than that.
                let first = task.waits == 0 && task.attempts == 0;
                contended |= first && matches!(failure.fault, Fault::Busy | Fault::Transient);
            }
            task.state = match outcome {
                Outcome::Settled => TaskState::Settled,
                Outcome::Apart => {
                    task.company = 1;
                    TaskState::Waiting { not_before: now }
                }
                Outcome::FailedTogether(_) if import.objects > 1 => {
                    task.company = import.objects.div_ceil(2);
                    TaskState::Waiting { not_before: regroup_at }
                }
                Outcome::Failed(failure) | Outcome::FailedTogether(failure) => {
                    let receives = delivery.receive_count;
                    task.failed(now, failure, receives, &self.limits, &mut self.rng)
                }
            };
            delivery.conclude(now, ACK_LINGER);
        }
        if contended {
            self.concurrency.contended(now, import.started_at);
        } else if settled && !budget::is_large(&self.limits, import.cost) {
            // What a large import takes says how large it is.
            self.concurrency.settled(now, import.started_at, import.cost);
        }
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
            let drained = self.deliveries.is_empty() && self.receives == 0;
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

    /// Without what waits.
    fn budget(&self) -> Budget {
        let mut budget = Budget::new(self.concurrency.slots(), &self.limits);
        self.imports.values().for_each(|import| budget.take(import.cost));
        budget
    }

    fn start_imports(&mut self, now: Moment, effects: &mut Effects) {
        if self.breakers.any_open() {
            return;
        }
        let mut budget = self.budget();
        for group in group::form(&self.limits, now, &self.deliveries) {
            let Group { tasks, cost, ready_at, full, small } = group;
            if !(full || ready_at <= now) || !budget.admit(cost) {
                continue;
            }
            for id in &tasks {
                if let Some(delivery) = self.deliveries.get_mut(&id.delivery) {
                    delivery.tasks[id.index].state = TaskState::Running;
                }
            }
            let id = ImportId(self.next_import);
            self.next_import += 1;
            let import = Import { cost, objects: tasks.len(), small, started_at: now };
            self.imports.insert(id, import);
            effects.0.push(Effect::Import(id, tasks));
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
        let all_asked = self.receives >= self.receives_max;
        if all_asked || self.drain.is_some() || self.breakers.any_open() {
            return;
        }
        let (mut budget, mut gathering, mut queued) = (self.budget(), false, false);
        for group in group::form(&self.limits, now, &self.deliveries) {
            match group.small && !group.full {
                true => gathering = true,
                false => {
                    budget.take(group.cost);
                    queued = true;
                }
            }
        }
        // Where objects are small the next group gathers while others run.
        let small = gathering || self.imports.values().any(|import| import.small);
        let streams = small && !queued;
        let receives_max = if streams { self.receives_max } else { 1 };
        while self.receives < receives_max {
            let free_places = (HELD_PER_SLOT * self.limits.slots).saturating_sub(self.places());
            let count = match streams {
                true => BATCH_MAX * free_places.min(1),
                false => budget.free_slots().min(free_places).min(BATCH_MAX),
            };
            if count == 0 {
                return;
            }
            self.receives += 1;
            effects.0.push(Effect::Receive { count });
        }
    }

    /// How much is held: as many messages about small objects as one import takes count as one.
    fn places(&self) -> usize {
        let unsettled = self.deliveries.values().filter(|delivery| !delivery.is_acknowledged());
        // What was asked for will most likely be like what came, if there are other receives at all.
        let (mut small, mut others) = (self.receives * BATCH_MAX, 0);
        for delivery in unsettled {
            match delivery.is_small(&self.limits) {
                true => small += 1,
                false => others += 1,
            }
        }
        others + small.div_ceil(self.limits.grouping.objects_max)
    }
}
