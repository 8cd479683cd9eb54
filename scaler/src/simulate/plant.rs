//! The world a policy acts on: a queue, a group and a database, event by event.
//!
//! The policy sees it as the service would: counters late and noisy, launches late or failing,
//! worker reports a few seconds old.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::chance::Chance;
use super::workload::{POISON_RECEIVES, SLOTS, Window, Workload};

/// Visibility time-out: what a killed worker's messages wait before they are seen again.
const VISIBILITY_MS: u64 = 120_000;

/// Receives before the redrive policy gives a message up.
const RECEIVES_MAX: u8 = 5;

/// What a failed message waits before the next try.
const RETRY_MS: u64 = 60_000;

/// CPU of an instance whose slots are all busy with an unhurried database.
const CPU_BUSY: f64 = 0.7;

/// Shorter lives are billed as this.
const BILLED_MIN_MS: u64 = 60_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) boot_median_ms: f64,
    pub(super) launch_failures: f64,
    /// The largest lag of the queue's counters.
    pub(super) lag_max_ms: u64,
    pub(super) instances_max: u32,
    /// What a terminated worker may take to finish what it holds.
    pub(super) drain_grace_ms: u64,
    /// Ten minutes without launches, starting here.
    pub(super) no_capacity: Option<Window>,
}

#[derive(Debug)]
pub(super) struct Plant<'w> {
    pub(super) now_ms: u64,
    workload: &'w Workload,
    settings: Settings,
    chance: Chance,
    next_arrival: usize,
    visible: VecDeque<u32>,
    /// Receives of each message so far.
    receives: Vec<u8>,
    /// Not visible and in nobody's hands.
    parked: u64,
    busy: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    events_made: u64,
    pub(super) instances: Vec<Instance>,
    /// Not gone, by index.
    pub(super) alive: Vec<u32>,
    /// One entry per free slot of a running instance.
    free: Vec<u32>,
    pub(super) desired: u32,
    snapshots: VecDeque<Snapshot>,
    samples: Vec<Sample>,
    cpu_sum: f64,
    /// Arrivals up to the latest sample.
    sampled: usize,
    pub(super) tally: Tally,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Booted { instance: u32 },
    Served { instance: u32, message: u32 },
    Visible { message: u32 },
    GraceOver { instance: u32 },
}

#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) state: State,
    pub(super) launched_ms: u64,
    pub(super) started_ms: u64,
    pub(super) held: Vec<Held>,
    pub(super) done: u64,
    pub(super) service_sum_ms: u64,
    pub(super) idle_since_ms: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    message: u32,
    pub(super) sent_ms: u64,
    started_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Booting,
    Running,
    Draining,
    Gone,
}

#[derive(Clone, Copy, Debug)]
struct Snapshot {
    visible: u64,
    in_flight: u64,
}

/// One minute as CloudWatch tells it, later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    published_ms: u64,
    pub(super) visible: f64,
    /// Arrived in that minute.
    pub(super) sent: f64,
    /// Mean over the running instances and the minute.
    pub(super) cpu: f64,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Time from arrival to commit, per message committed.
    pub(super) sojourns_ms: Vec<u32>,
    pub(super) billed_ms: u64,
    pub(super) launches: u64,
    /// Messages whose work a termination threw away.
    pub(super) interrupted: u64,
    /// Messages given up although nothing was wrong with them.
    pub(super) dead_lettered: u64,
    pub(super) poisoned: u64,
}

impl<'w> Plant<'w> {
    pub(super) fn new(workload: &'w Workload, settings: Settings, seed: u64) -> Self {
        Plant {
            now_ms: 0,
            workload,
            settings,
            chance: Chance::new(seed, 2),
            next_arrival: 0,
            visible: VecDeque::new(),
            receives: vec![0; workload.messages.len()],
            parked: 0,
            busy: 0,
            events: BinaryHeap::new(),
            events_made: 0,
            instances: Vec::new(),
            alive: Vec::new(),
            free: Vec::new(),
            desired: 0,
            snapshots: VecDeque::new(),
            samples: Vec::new(),
            cpu_sum: 0.0,
            sampled: 0,
            tally: Tally {
                sojourns_ms: Vec::with_capacity(workload.messages.len()),
                ..Tally::default()
            },
        }
    }

    /// Everything that happens up to and including `until_ms`.
    pub(super) fn advance(&mut self, until_ms: u64) {
        while self.now_ms < until_ms {
            let second_end = (self.now_ms / 1000 + 1) * 1000;
            let stop = until_ms.min(second_end);
            self.run_events(stop);
            self.now_ms = stop;
            if stop == second_end {
                self.second();
            }
        }
    }

    /// Messages that are neither committed nor given up.
    pub(super) fn unsettled(&self) -> u64 {
        let to_come = self.workload.messages.len() - self.next_arrival;
        (to_come + self.visible.len()) as u64 + self.parked + self.busy
    }

    fn run_events(&mut self, until_ms: u64) {
        loop {
            let arrival = self.workload.messages.get(self.next_arrival).map(|m| u64::from(m.at_ms));
            let event = self.events.peek().map(|Reverse((at, _, _))| *at);
            match (arrival, event) {
                (Some(at), event) if at <= until_ms && event.is_none_or(|e| at <= e) => {
                    self.now_ms = self.now_ms.max(at);
                    self.visible.push_back(self.next_arrival as u32);
                    self.next_arrival += 1;
                    self.match_work();
                }
                (_, Some(at)) if at <= until_ms => {
                    self.now_ms = self.now_ms.max(at);
                    if let Some(Reverse((_, _, event))) = self.events.pop() {
                        self.happen(event);
                    }
                }
                _ => return,
            }
        }
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.events_made += 1;
        self.events.push(Reverse((at_ms, self.events_made, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Booted { instance } => self.booted(instance),
            Event::Served { instance, message } => self.served(instance, message),
            Event::Visible { message } => {
                self.parked -= 1;
                if self.receives[message as usize] >= RECEIVES_MAX {
                    self.tally.dead_lettered += 1;
                } else {
                    // Back among the oldest: SQS keeps no order, and the sent time is its own.
                    self.visible.push_front(message);
                    self.match_work();
                }
            }
            Event::GraceOver { instance } => {
                if self.instances[instance as usize].state == State::Draining {
                    self.end(instance);
                }
            }
        }
    }

    fn booted(&mut self, instance: u32) {
        let now_ms = self.now_ms;
        let it = &mut self.instances[instance as usize];
        if it.state != State::Booting {
            return;
        }
        if self.chance.unit() < self.settings.launch_failures {
            self.end(instance);
            return;
        }
        it.state = State::Running;
        (it.started_ms, it.idle_since_ms) = (now_ms, now_ms);
        self.free.extend(std::iter::repeat_n(instance, SLOTS as usize));
        self.match_work();
    }

    /// Gives waiting messages to free slots, each to one picked by chance, as polling does.
    fn match_work(&mut self) {
        while !self.free.is_empty()
            && let Some(message) = self.visible.pop_front()
        {
            let slot = self.chance.below(self.free.len());
            let instance = self.free.swap_remove(slot);
            self.receives[message as usize] += 1;
            self.busy += 1;
            let drawn = self.workload.messages[message as usize];
            let took_ms = f64::from(drawn.service_ms) * self.stretch();
            let now_ms = self.now_ms;
            self.instances[instance as usize].held.push(Held {
                message,
                sent_ms: u64::from(drawn.at_ms),
                started_ms: now_ms,
            });
            self.at(now_ms + took_ms as u64, Event::Served { instance, message });
        }
    }

    /// How much longer everything takes while more slots are busy than the database serves.
    fn stretch(&self) -> f64 {
        match self.workload.brown_out {
            Some((window, slots)) if window.holds(self.now_ms) => {
                (self.busy as f64 / slots).max(1.0)
            }
            _ => 1.0,
        }
    }

    fn served(&mut self, instance: u32, message: u32) {
        let now_ms = self.now_ms;
        let it = &mut self.instances[instance as usize];
        // The work of an instance that is gone went with it.
        let Some(slot) = it.held.iter().position(|held| held.message == message) else { return };
        let held = it.held.swap_remove(slot);
        it.service_sum_ms += now_ms - held.started_ms;
        if it.held.is_empty() {
            it.idle_since_ms = now_ms;
        }
        let state = it.state;
        self.busy -= 1;
        let drawn = self.workload.messages[message as usize];
        let given_up = drawn.poison && self.receives[message as usize] >= POISON_RECEIVES;
        // Importers count what they settle, not what they try.
        self.instances[instance as usize].done += u64::from(!drawn.poison || given_up);
        if !drawn.poison {
            self.tally.sojourns_ms.push((now_ms - u64::from(drawn.at_ms)) as u32);
        } else if given_up {
            self.tally.poisoned += 1;
        } else {
            self.parked += 1;
            self.at(now_ms + RETRY_MS, Event::Visible { message });
        }
        match state {
            State::Draining if self.instances[instance as usize].held.is_empty() => {
                self.end(instance);
            }
            State::Running => {
                self.free.push(instance);
                self.match_work();
            }
            State::Draining | State::Booting | State::Gone => {}
        }
    }

    /// Once a second: the group makes good its size, and the counters are noted.
    fn second(&mut self) {
        let no_capacity = self.settings.no_capacity.is_some_and(|w| w.holds(self.now_ms));
        let mut coming = self.counted();
        while coming < self.desired && !no_capacity {
            let instance = self.instances.len() as u32;
            self.instances.push(Instance {
                state: State::Booting,
                launched_ms: self.now_ms,
                started_ms: 0,
                held: Vec::new(),
                done: 0,
                service_sum_ms: 0,
                idle_since_ms: 0,
            });
            self.alive.push(instance);
            // p95 over p50 of 1.5: σ = ln 1.5 / 1.645.
            let boot_ms = self.chance.lognormal(self.settings.boot_median_ms, 0.2465);
            self.at(self.now_ms + boot_ms as u64, Event::Booted { instance });
            self.tally.launches += 1;
            coming += 1;
        }
        if self.snapshots.len() as u64 > self.settings.lag_max_ms / 1000 {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(Snapshot {
            visible: self.visible.len() as u64,
            in_flight: self.busy + self.parked,
        });
        let running = self.running();
        if running > 0 {
            let slots = (u64::from(running) * SLOTS) as f64;
            self.cpu_sum += (CPU_BUSY * self.busy as f64 / self.stretch() / slots).min(1.0);
        }
        if self.now_ms.is_multiple_of(60_000) {
            let late_ms = self.chance.between(60_000.0, 120_000.0) as u64;
            self.samples.push(Sample {
                published_ms: self.now_ms + late_ms,
                visible: self.visible.len() as f64,
                sent: (self.next_arrival - self.sampled) as f64,
                cpu: self.cpu_sum / 60.0,
            });
            (self.cpu_sum, self.sampled) = (0.0, self.next_arrival);
        }
    }

    /// Booting or running: what the desired size is compared with.
    pub(super) fn counted(&self) -> u32 {
        self.count(|state| matches!(state, State::Booting | State::Running))
    }

    pub(super) fn running(&self) -> u32 {
        self.count(|state| state == State::Running)
    }

    fn count(&self, wanted: impl Fn(State) -> bool) -> u32 {
        let states = self.alive.iter().map(|i| self.instances[*i as usize].state);
        states.filter(|state| wanted(*state)).count() as u32
    }

    fn unknown(&self) -> bool {
        self.workload.metrics_outage.is_some_and(|window| window.holds(self.now_ms))
    }

    /// Visible and in flight as `GetQueueAttributes` tells them: each from another moment of
    /// the last minute, now and then with a message or two that are not there.
    pub(super) fn counters(&mut self) -> Option<(u64, u64)> {
        if self.unknown() {
            return None;
        }
        let mut lagged = |of: fn(&Snapshot) -> u64| {
            let age = self.chance.below(self.snapshots.len().max(1));
            let seen = self.snapshots.iter().rev().nth(age).map_or(0, of);
            match self.chance.unit() < 0.01 {
                true => seen + 1 + self.chance.below(2) as u64,
                false => seen,
            }
        };
        Some((lagged(|s| s.visible), lagged(|s| s.in_flight)))
    }

    /// The newest `count` minutes that CloudWatch has published, newest first.
    pub(super) fn samples(&self, count: usize) -> Vec<Sample> {
        if self.unknown() {
            return Vec::new();
        }
        let published = self.samples.iter().rev().filter(|s| s.published_ms <= self.now_ms);
        published.take(count).copied().collect()
    }

    /// How long the message that has waited longest has waited, truly.
    pub(super) fn oldest_ms(&self) -> u64 {
        self.visible.front().map_or(0, |message| {
            self.now_ms - u64::from(self.workload.messages[*message as usize].at_ms)
        })
    }

    pub(super) fn visible(&self) -> u64 {
        self.visible.len() as u64
    }

    /// Sets the size. A lower one lets the group pick victims, who get `grace_ms`.
    pub(super) fn set_desired(&mut self, desired: u32, grace_ms: u64) {
        self.desired = desired.min(self.settings.instances_max);
        while self.counted() > self.desired {
            let candidates: Vec<u32> = self
                .alive
                .iter()
                .copied()
                .filter(|i| {
                    let state = self.instances[*i as usize].state;
                    matches!(state, State::Booting | State::Running)
                })
                .collect();
            let victim = candidates[self.chance.below(candidates.len())];
            self.drain(victim, grace_ms);
        }
    }

    /// Terminates this instance and lowers the size by one.
    pub(super) fn terminate(&mut self, instance: u32) {
        let state = self.instances[instance as usize].state;
        if self.desired > 0 && matches!(state, State::Booting | State::Running) {
            self.desired -= 1;
            self.drain(instance, self.settings.drain_grace_ms);
        }
    }

    fn drain(&mut self, instance: u32, grace_ms: u64) {
        self.free.retain(|slot| *slot != instance);
        let it = &mut self.instances[instance as usize];
        it.state = State::Draining;
        if it.held.is_empty() || grace_ms == 0 {
            self.end(instance);
        } else {
            self.at(self.now_ms + grace_ms, Event::GraceOver { instance });
        }
    }

    fn end(&mut self, instance: u32) {
        let now_ms = self.now_ms;
        let it = &mut self.instances[instance as usize];
        it.state = State::Gone;
        self.tally.billed_ms += (now_ms - it.launched_ms).max(BILLED_MIN_MS);
        self.alive.retain(|i| *i != instance);
        for held in std::mem::take(&mut it.held) {
            self.busy -= 1;
            self.parked += 1;
            self.tally.interrupted += 1;
            let visible_ms = (held.started_ms + VISIBILITY_MS).max(now_ms + 1);
            self.at(visible_ms, Event::Visible { message: held.message });
        }
    }

    /// Bills what still runs.
    pub(super) fn close(&mut self) {
        for i in std::mem::take(&mut self.alive) {
            let lived_ms = self.now_ms - self.instances[i as usize].launched_ms;
            self.tally.billed_ms += lived_ms.max(BILLED_MIN_MS);
        }
    }
}
