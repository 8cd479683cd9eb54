//! The delivery protocol in a simulated world: a queue, an object store, a database and a clock
//! that do whatever they are allowed to, at moments drawn from a seed. Several importers run the
//! real `Protocol::step`; they are killed between two effects, drained and suspended.
//!
//! ```text
//! scenario    what the seed stands for
//!   └─▶ queue, database     what SQS and a transaction are
//!         └─▶ watch             one process: do its effects follow from what it was told?
//!               └─▶ defect            planted bugs, to see that they are found
//!                     └─▶ here              the world's clock, and what must hold in the end
//! ```

mod database;
mod defect;
mod queue;
mod scenario;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use weirgate_common::config::WriteMode;
use weirgate_common::fault::{Dependency, Fault};
use weirgate_importer::failure::Failure;
use weirgate_importer::protocol::{
    Arrival, DeliveryId, Effect, Extension, Input, Moment, Protocol, TaskId,
};

use database::Database;
pub(crate) use defect::Defect;
use defect::Tamper;
use queue::{Place, Queue};
use scenario::{Incident, Kind, Scenario};
use watch::Watch;

/// How long a receive waits for messages.
const LONG_POLL: Duration = Duration::from_secs(20);

/// A schedule that needs more steps than this goes round in circles.
const STEPS_MAX: u64 = 100_000;

/// What came of one seed.
pub(crate) struct Run {
    pub(crate) steps: u64,
    /// The rule that was broken.
    pub(crate) violation: Option<String>,
    /// What happened, line by line, when asked for.
    pub(crate) trace: Vec<String>,
}

/// Runs the schedule of a seed: the same every time.
pub(crate) fn run(seed: u64, defect: Option<Defect>, traced: bool) -> Run {
    let mut world = World::new(seed, defect, traced);
    // The protocol asserts its own invariants; what it says then belongs to the trace.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        world.violate(format!("panic: {}", text.unwrap_or("of an unknown kind")));
    }
    Run { steps: world.steps, violation: world.violation, trace: world.trace.unwrap_or_default() }
}

struct World {
    scenario: Scenario,
    defect: Option<Defect>,
    rng: SmallRng,
    now: Duration,
    /// By time; the number keeps those of one moment in order.
    events: BTreeMap<(Duration, u64), Event>,
    event_count: u64,
    queue: Queue,
    database: Database,
    importers: Vec<Importer>,
    /// Nothing is left to do: all processes are told to stop.
    finishing: bool,
    steps: u64,
    violation: Option<String>,
    trace: Option<Vec<String>>,
}

#[derive(Default)]
struct Importer {
    /// How many processes there were before.
    generation: u32,
    process: Option<Process>,
}

struct Process {
    protocol: Protocol,
    watch: Watch,
    tamper: Tamper,
    started_at: Duration,
    /// How long its clock stood still.
    lag: Duration,
    asleep_until: Duration,
}

struct Event {
    of: ProcessId,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct ProcessId {
    importer: usize,
    generation: u32,
}

enum What {
    /// A request reaches its dependency.
    Effect(Effect),
    /// A long poll looks again.
    Poll {
        count: usize,
        until: Duration,
    },
    Commit {
        task: TaskId,
        object: usize,
    },
    Answer(Input),
    Incident(Incident),
    Start,
}

impl Process {
    fn local(&self, now: Duration) -> Moment {
        now.saturating_sub(self.started_at + self.lag)
    }

    /// When it asks to be woken, by the world's clock.
    fn wakes_at(&self) -> Option<Duration> {
        let at = self.protocol.next_wake()? + self.started_at + self.lag;
        Some(at.max(self.asleep_until))
    }
}

impl World {
    fn new(seed: u64, defect: Option<Defect>, traced: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let scenario = Scenario::draw(seed, &mut rng);
        let queue = Queue::new(&scenario.messages, scenario.limits.receives_max);
        let importers = (0..scenario.importers).map(|_| Importer::default()).collect();
        let mut world = World {
            scenario,
            defect,
            rng,
            now: Duration::ZERO,
            events: BTreeMap::new(),
            event_count: 0,
            queue,
            database: Database::default(),
            importers,
            finishing: false,
            steps: 0,
            violation: None,
            trace: traced.then(Vec::new),
        };
        for importer in 0..world.importers.len() {
            world.later(importer, 0..2_000, What::Start);
        }
        for (at, importer, incident) in std::mem::take(&mut world.scenario.incidents) {
            world.at(at, importer, What::Incident(incident));
        }
        world
    }

    fn run(&mut self) {
        self.describe();
        while self.violation.is_none() {
            if !self.finishing && self.queue.is_empty() {
                self.finish();
            }
            if self.finishing && self.importers.iter().all(|it| it.process.is_none()) {
                return self.check_end();
            }
            if self.steps > STEPS_MAX {
                return self.violate("no end in sight".into());
            }
            self.advance();
        }
    }

    fn describe(&mut self) {
        let Some(trace) = &mut self.trace else { return };
        let scenario = &self.scenario;
        trace.push(format!(
            "{:?}, {} bucket, {} importers, {:?}, healed at {:?}",
            scenario.mode,
            if scenario.versioned { "versioned" } else { "unversioned" },
            scenario.importers,
            scenario.limits,
            scenario.healed_at,
        ));
        for (id, message) in scenario.messages.iter().enumerate() {
            let events = message.events.iter().map(|object| {
                let it = &scenario.objects[*object];
                format!("object {object} (key {}, {:?}, cost {})", it.key, it.kind, it.cost)
            });
            let events = events.collect::<Vec<_>>().join(", ");
            let strange = if message.strange { ", and something strange" } else { "" };
            trace.push(format!("message {id}: {events}{strange}"));
        }
        for outage in &scenario.outages {
            trace.push(format!("{} away during {:?}", outage.of, outage.during));
        }
    }

    fn note(&mut self, line: impl FnOnce(&World) -> String) {
        if self.trace.is_some() {
            let line = format!("{:>12.3?} {}", self.now, line(self));
            self.trace.iter_mut().for_each(|trace| trace.push(line.clone()));
        }
    }

    fn violate(&mut self, rule: String) {
        self.note(|_| format!("VIOLATION {rule}"));
        self.violation.get_or_insert(rule);
    }

    /// Whether a fault with this rate strikes now.
    fn strikes(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.now < self.scenario.healed_at && self.rng.random_bool(rate)
    }

    fn at(&mut self, at: Duration, importer: usize, what: What) {
        let generation = self.importers[importer].generation;
        self.insert(at, ProcessId { importer, generation }, what);
    }

    fn insert(&mut self, at: Duration, of: ProcessId, what: What) {
        self.event_count += 1;
        self.events.insert((at, self.event_count), Event { of, what });
    }

    fn is_alive(&self, of: ProcessId) -> bool {
        self.importers[of.importer].generation == of.generation
    }

    fn later(&mut self, importer: usize, wait_ms: std::ops::Range<u64>, what: What) {
        let wait = Duration::from_millis(self.rng.random_range(wait_ms));
        self.at(self.now + wait, importer, what);
    }

    /// After the time that a request or a reply takes.
    fn soon(&mut self, importer: usize, what: What) {
        let slow = self.strikes(self.scenario.rates.slow_call);
        self.later(importer, if slow { 1_000..4_000 } else { 1..50 }, what);
    }

    /// Nobody answers a process that is gone by now.
    fn answer(&mut self, to: ProcessId, input: Input) {
        if self.is_alive(to) {
            self.soon(to.importer, What::Answer(input));
        }
    }

    /// Lets the next thing happen.
    fn advance(&mut self) {
        let wakes =
            self.importers.iter().enumerate().filter_map(|(index, importer)| {
                Some((importer.process.as_ref()?.wakes_at()?, index))
            });
        let wake = wakes.min();
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        match (event, wake) {
            (Some(at), wake) if wake.is_none_or(|(wake, _)| at <= wake) => {
                self.now = self.now.max(at);
                if let Some((_, event)) = self.events.pop_first() {
                    self.happen(event);
                }
            }
            (_, Some((at, importer))) => {
                self.now = self.now.max(at);
                self.step(importer, Input::Wake);
            }
            (_, None) => self.violate("nothing will ever happen again".into()),
        }
    }

    fn happen(&mut self, event: Event) {
        let (of, importer) = (event.of, event.of.importer);
        let alive = self.is_alive(of);
        match event.what {
            What::Start => self.start(importer),
            What::Incident(incident) => self.strike(importer, incident),
            What::Answer(input) if alive => {
                let asleep_until =
                    self.importers[importer].process.as_ref().map(|it| it.asleep_until);
                match asleep_until {
                    Some(until) if until > self.now => {
                        self.at(until, importer, What::Answer(input));
                    }
                    Some(_) => self.step(importer, input),
                    None => {}
                }
            }
            What::Answer(_) => {}
            // A transaction outlives its client until the database notices; now and then the
            // commit was on its way.
            What::Commit { object, .. } if !alive => {
                self.database.unlock(self.scenario.objects[object].key);
                if self.rng.random_bool(0.1) {
                    self.note(|_| format!("database: commits object {object} for the dead"));
                    self.database.commit(&self.scenario, object);
                }
            }
            What::Commit { task, object } => self.commit(of, task, object),
            What::Effect(Effect::Import(_)) if !alive => {}
            // What a dead process has sent may arrive, or not.
            What::Effect(_) | What::Poll { .. } if !alive && self.rng.random_bool(0.5) => {}
            What::Poll { count, until } => self.poll(of, count, until),
            What::Effect(effect) => self.arrive(of, effect),
        }
    }

    fn start(&mut self, importer: usize) {
        if self.finishing || self.importers[importer].process.is_some() {
            return;
        }
        let mut limits = self.scenario.limits.clone();
        limits.seed = self.rng.random();
        let process = Process {
            protocol: Protocol::new(Defect::limits(self.defect, limits.clone())),
            watch: Watch::new(limits),
            tamper: Tamper::new(self.defect),
            started_at: self.now,
            lag: Duration::ZERO,
            asleep_until: self.now,
        };
        self.importers[importer].process = Some(process);
        self.note(|_| format!("importer {importer} starts"));
        self.step(importer, Input::Wake);
    }

    fn strike(&mut self, importer: usize, incident: Incident) {
        if self.importers[importer].process.is_none() {
            return;
        }
        self.note(|_| format!("importer {importer}: {incident:?}"));
        match incident {
            Incident::Kill => self.kill(importer),
            Incident::Terminate { grace } => self.drain(importer, grace),
            Incident::Suspend { span, clock_too } => {
                let until = self.now + span;
                let Some(process) = &mut self.importers[importer].process else { return };
                process.asleep_until = process.asleep_until.max(until);
                if clock_too {
                    process.lag += span;
                }
                let awake = process.local(process.asleep_until);
                process.watch.suspended(awake);
            }
        }
    }

    fn drain(&mut self, importer: usize, grace: Duration) {
        let Some(process) = &self.importers[importer].process else { return };
        let at = process.asleep_until.max(self.now);
        let deadline = process.local(at) + grace;
        self.at(at, importer, What::Answer(Input::Drain(deadline)));
    }

    fn kill(&mut self, importer: usize) {
        self.importers[importer].process = None;
        self.importers[importer].generation += 1;
        self.later(importer, 100..20_000, What::Start);
    }

    fn finish(&mut self) {
        self.finishing = true;
        for importer in 0..self.importers.len() {
            self.drain(importer, Duration::from_secs(30));
        }
    }

    /// One step of one process, and the effects it asks for: all of them, or only the first few.
    fn step(&mut self, importer: usize, input: Input) {
        self.steps += 1;
        let Some(mut process) = self.importers[importer].process.take() else { return };
        self.note(|_| format!("importer {importer} ◀ {input:?}"));
        let now = process.local(self.now);
        process.watch.told(now, &input);
        let mut inputs: VecDeque<Input> = process.tamper.input(input).into_iter().collect();
        while let Some(input) = inputs.pop_front() {
            let effects = process.protocol.step(now, input).0;
            let (effects, believed) = process.tamper.effects(effects);
            inputs.extend(believed);
            for effect in effects {
                if self.strikes(self.scenario.rates.kill) {
                    self.note(|_| format!("importer {importer} is killed before {effect:?}"));
                    return self.kill(importer);
                }
                self.note(|_| format!("importer {importer} ▶ {effect:?}"));
                if let Err(rule) = process.watch.asked(now, &effect) {
                    return self.violate(rule);
                }
                if !matches!(effect, Effect::Forget(_) | Effect::Stop) {
                    self.soon(importer, What::Effect(effect));
                }
            }
        }
        if let Err(rule) = process.watch.settled_down(now, &process.protocol) {
            return self.violate(rule);
        }
        match process.watch.stopped {
            true => self.kill(importer),
            false => self.importers[importer].process = Some(process),
        }
    }

    /// A request has reached its dependency.
    fn arrive(&mut self, from: ProcessId, effect: Effect) {
        match effect {
            Effect::Receive { count } => {
                self.poll(from, count, self.now + LONG_POLL);
            }
            Effect::Import(task) => self.begin(from, task),
            Effect::DeadLetter { delivery, .. } => {
                let sent = !self.refuses();
                if sent {
                    let message = self.queue.message(delivery);
                    self.queue.messages[message].dead_letters += 1;
                }
                let told = sent && !self.strikes(self.scenario.rates.lost_reply);
                self.answer(from, Input::DeadLettered(delivery, told));
            }
            Effect::Extend(batch) => {
                let results = batch.into_iter().map(|(id, span)| (id, self.extend(id, span)));
                let results = results.collect();
                self.answer(from, Input::Extended(results));
            }
            Effect::Delete(batch) => {
                let results = batch.into_iter().map(|id| (id, self.delete(id))).collect();
                self.answer(from, Input::Deleted(results));
            }
            Effect::Release(batch) => {
                let ids = batch.iter().map(|(id, _)| *id).collect();
                for (id, delay) in batch {
                    if !self.refuses() {
                        self.queue.change_visibility(id, delay, self.now);
                    }
                }
                self.answer(from, Input::Released(ids));
            }
            Effect::Probe(dependency) => {
                let back = !self.scenario.is_away(dependency, self.now);
                self.answer(from, Input::Probed(dependency, back));
            }
            Effect::Forget(_) | Effect::Stop => {}
        }
    }

    /// Whether SQS does not do what one entry asks.
    fn refuses(&mut self) -> bool {
        self.scenario.is_away(Dependency::Queue, self.now)
            || self.strikes(self.scenario.rates.refused)
    }

    fn extend(&mut self, id: DeliveryId, span: Duration) -> Extension {
        if self.refuses() {
            return Extension::Failed;
        }
        let result = self.queue.change_visibility(id, span, self.now);
        match self.strikes(self.scenario.rates.lost_reply) {
            true => Extension::Failed,
            false => result,
        }
    }

    fn delete(&mut self, id: DeliveryId) -> bool {
        let message = self.queue.message(id);
        if let Err(rule) = self.check_delete(message) {
            self.violate(rule);
        }
        if self.refuses() {
            return false;
        }
        if !self.strikes(self.scenario.rates.idle_delete) {
            self.queue.delete(id);
        }
        !self.strikes(self.scenario.rates.lost_reply)
    }

    /// Everything in it must be settled, or a copy must lie in the dead-letter queue.
    fn check_delete(&self, message: usize) -> Result<(), String> {
        let entry = &self.queue.messages[message];
        let asked = &self.scenario.messages[message];
        let settled = |object: &usize| self.database.is_settled(&self.scenario, *object);
        let settled = !asked.strange && asked.events.iter().all(settled);
        match entry.place != Place::Queued || entry.dead_letters > 0 || settled {
            true => Ok(()),
            false => Err(format!("message {message} is deleted before it is settled")),
        }
    }

    fn poll(&mut self, from: ProcessId, count: usize, until: Duration) {
        if self.scenario.is_away(Dependency::Queue, self.now) {
            return self.answer(from, Input::ReceiveFailed);
        }
        if self.strikes(self.scenario.rates.empty_receive) {
            return self.answer(from, Input::Received(Vec::new()));
        }
        let candidates = self.candidates();
        if candidates.is_empty() && self.now < until {
            let queued = self.queue.messages.iter().filter(|it| it.place == Place::Queued);
            let at = queued.map(|entry| entry.visible_at).min().unwrap_or(until).min(until);
            return self.insert(at, from, What::Poll { count, until });
        }
        let mut arrivals = Vec::new();
        for (message, injected) in candidates {
            if arrivals.len() == count {
                break;
            }
            arrivals.extend(self.receive(message, injected));
        }
        let lost = self.strikes(self.scenario.rates.lost_receive);
        let input = if lost { Input::ReceiveFailed } else { Input::Received(arrivals) };
        self.answer(from, input);
    }

    /// What a receive may return, in any order, and whether that is against the lease.
    fn candidates(&mut self) -> Vec<(usize, bool)> {
        let mut candidates = Vec::new();
        for message in 0..self.queue.messages.len() {
            let entry = &self.queue.messages[message];
            if entry.place != Place::Queued {
                continue;
            }
            let leased = entry.visible_at > self.now;
            let in_flight = entry.receipt.is_some();
            if !leased || in_flight && self.strikes(self.scenario.rates.duplicate) {
                candidates.push((message, leased));
            }
        }
        candidates.shuffle(&mut self.rng);
        candidates
    }

    fn receive(&mut self, message: usize, injected: bool) -> Option<Arrival> {
        let before = self.queue.messages[message].receipt;
        if let Some(before) = before
            && !injected
        {
            let processes = self.importers.iter().filter_map(|it| it.process.as_ref());
            if processes.map(|process| &process.watch).any(|watch| watch.must_hold(before)) {
                self.violate(format!("the lease of {before:?} ran out while it was worked on"));
            }
        } else if let Some(before) = before {
            let processes = self.importers.iter_mut().filter_map(|it| it.process.as_mut());
            processes.for_each(|process| process.watch.excuse(before));
        }
        let lease = self.scenario.limits.lease;
        let Some(delivery) = self.queue.receive(message, self.now, lease) else {
            self.note(|_| format!("queue: message {message} goes to the dead-letter queue"));
            return None;
        };
        self.note(|_| format!("queue: message {message} goes out as {delivery:?}"));
        let asked = &self.scenario.messages[message];
        Some(Arrival {
            delivery,
            receive_count: self.queue.messages[message].receives,
            costs: asked.events.iter().map(|object| self.scenario.objects[*object].cost).collect(),
            failure: asked.strange.then(|| Failure::permanent("no_feed", "")),
        })
    }

    /// An import asks the ledger, opens the object and its transaction.
    fn begin(&mut self, from: ProcessId, task: TaskId) {
        let message = self.queue.message(task.delivery);
        let object = self.scenario.messages[message].events[task.index];
        let result = match self.open(object) {
            Ok(false) => Ok(()),
            Ok(true) => {
                let it = &self.scenario.objects[object];
                let slow_import = self.scenario.rates.slow_import;
                let usual = it.slow.unwrap_or(Duration::from_millis(self.rng.random_range(5..900)));
                let span = match self.strikes(slow_import) {
                    true => self.scenario.limits.lease.mul_f64(self.rng.random_range(0.8..3.0)),
                    false => usual,
                };
                return self.insert(self.now + span, from, What::Commit { task, object });
            }
            Err((fault, code)) => Err(Failure::new(fault, code, "")),
        };
        self.answer(from, Input::Imported(task, result));
    }

    /// `true`: the transaction is open; `false`: there is nothing to do.
    fn open(&mut self, object: usize) -> Result<bool, (Fault, &'static str)> {
        let (database, store) = (Dependency::Database, Dependency::ObjectStore);
        if self.scenario.is_away(database, self.now) {
            return Err((Fault::Outage(database), "away"));
        }
        let asks = self.defect != Some(Defect::ImportsWithoutAskingTheLedger);
        if asks && self.database.asks_nothing(&self.scenario, object) {
            return Ok(false);
        }
        if self.scenario.is_away(store, self.now) {
            return Err((Fault::Outage(store), "away"));
        }
        if !self.scenario.is_readable(object, self.now) {
            self.database.supersede(object);
            return Ok(false);
        }
        match self.scenario.objects[object].kind {
            Kind::Poison => return Err((Fault::Permanent, "corrupt")),
            Kind::Cursed => return Err((Fault::Outage(store), "cursed")),
            Kind::Flaky if self.rng.random_bool(0.7) => return Err((Fault::Transient, "flaky")),
            Kind::Flaky | Kind::Good => {}
        }
        match self.database.lock(self.scenario.objects[object].key) {
            true => Ok(true),
            false => Err((Fault::Busy, "busy")),
        }
    }

    fn commit(&mut self, from: ProcessId, task: TaskId, object: usize) {
        self.database.unlock(self.scenario.objects[object].key);
        let away = self.scenario.is_away(Dependency::Database, self.now);
        let broken = self.strikes(self.scenario.rates.broken_commit);
        let reached = !(away || broken) || self.rng.random_bool(0.5);
        if reached {
            self.note(|_| format!("database: commits object {object}"));
            match self.defect {
                Some(Defect::ImportsWithoutAskingTheLedger) => {
                    self.database.write(&self.scenario, object, &[]);
                }
                _ => self.database.commit(&self.scenario, object),
            }
        }
        let fault = if away { Fault::Outage(Dependency::Database) } else { Fault::Transient };
        let result = match away || broken {
            true => Err(Failure::new(fault, "commit_lost", "")),
            false => Ok(()),
        };
        self.answer(from, Input::Imported(task, result));
    }

    /// Every message is settled or visibly dead; every object's rows are there once.
    fn check_end(&mut self) {
        for (id, asked) in self.scenario.messages.iter().enumerate() {
            let entry = &self.queue.messages[id];
            let dead = entry.dead_letters > 0 || entry.place == Place::Redriven;
            let settled = |object: &usize| self.database.is_settled(&self.scenario, *object);
            let poison = asked.strange
                || asked.events.iter().any(|object| {
                    self.scenario.objects[*object].kind == Kind::Poison && !settled(object)
                });
            if !dead && (poison || !asked.events.iter().all(settled)) {
                return self.violate(format!("message {id} is lost"));
            }
            if self.scenario.only_outages && (dead || entry.receives > 2) {
                return self.violate(format!("message {id} suffered from an outage"));
            }
        }
        for (id, object) in self.scenario.objects.iter().enumerate() {
            if !self.database.is_right(&self.scenario, id) {
                return self.violate(format!("the rows of object {id} are not there once"));
            }
            if self.scenario.mode == WriteMode::Replace && !self.database.holds_newest(object.key) {
                return self.violate(format!("key {} does not show its newest", object.key));
            }
        }
    }
}
