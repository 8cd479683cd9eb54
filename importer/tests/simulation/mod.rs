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
//!                           └─▶ services          what comes of a request, and when
//! ```

mod database;
mod defect;
mod queue;
mod scenario;
mod services;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weirgate_common::config::WriteMode;
use weirgate_importer::protocol::{Effect, ImportId, Input, Moment, Outcome, Protocol, TaskId};

use database::Database;
pub(crate) use defect::Defect;
use defect::Tamper;
use queue::{Place, Queue};
use scenario::{Incident, Kind, Scenario};
use watch::Watch;

/// A schedule that needs more steps than this goes round in circles.
const STEPS_MAX: u64 = 400_000;

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
        import: ImportId,
        /// Those in the transaction, with their objects.
        members: Vec<(TaskId, usize)>,
        /// What came of the others.
        outcomes: Vec<(TaskId, Outcome)>,
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
            // Now and then the commit was on its way.
            What::Commit { members, .. } if !alive => {
                self.unlock(&members);
                if !self.spoils(&members) && self.rng.random_bool(0.1) {
                    self.note(|_| format!("database: commits {members:?} for the dead"));
                    self.write(&members);
                }
            }
            What::Commit { import, members, outcomes } => {
                self.commit(of, import, &members, outcomes);
            }
            What::Effect(Effect::Import(..)) if !alive => {}
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
                let Some(process) = &mut self.importers[importer].process else { return };
                let asleep_until = process.asleep_until.max(self.now);
                process.asleep_until = asleep_until.max(self.now + span);
                if clock_too {
                    process.lag += process.asleep_until - asleep_until;
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
        self.hang_up(importer);
        self.importers[importer].generation += 1;
        self.later(importer, 100..20_000, What::Start);
    }

    /// Open transactions outlive their client until the database notices.
    fn hang_up(&mut self, importer: usize) {
        let noticed_at = self.now + Duration::from_millis(self.rng.random_range(0..60_000));
        let orphan = |at: &Duration, event: &mut Event| {
            event.of.importer == importer
                && matches!(event.what, What::Commit { .. })
                && *at > noticed_at
        };
        let orphans: Vec<Event> =
            self.events.extract_if(.., |(at, _), event| orphan(at, event)).map(|it| it.1).collect();
        for event in orphans {
            self.insert(noticed_at, event.of, event.what);
        }
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

    /// Every message is settled or visibly dead; every object's rows are there once.
    fn check_end(&mut self) {
        for (id, asked) in self.scenario.messages.iter().enumerate() {
            let entry = &self.queue.messages[id];
            let dead = entry.dead_letters > 0 || entry.place == Place::Redriven;
            let settled = |object: &usize| self.database.is_settled(&self.scenario, *object);
            let poison = asked.strange
                || asked.events.iter().any(|object| {
                    matches!(self.scenario.objects[*object].kind, Kind::Poison | Kind::Spoiler)
                        && !settled(object)
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
