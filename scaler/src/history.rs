//! What a fleet's past observations say that the latest one alone does not.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use weirgate_common::clock::Timestamp;
use weirgate_common::ledger::WorkerState;

use crate::group::{GroupState, InstanceId, Life};
use crate::observe::{FAILURES_SPAN, Observation};
use crate::saturation::{Growth, Saturation};

/// Boot time until one has been seen: a small machine image with one container.
const BOOT_ASSUMED: Duration = Duration::from_secs(60);

/// Boots remembered. Enough for a percentile, few enough to follow a new image.
const BOOTS_MAX: usize = 20;

/// Service time until one has been seen, and how many messages' worth of it the estimate holds
/// on to: the first to be settled are the quick ones.
const SERVICE_ASSUMED: Duration = Duration::from_secs(2);
const SERVICE_ASSUMED_WEIGHT: f64 = 3.0;

/// Service times older than this count for little.
const SERVICE_MEMORY: Duration = Duration::from_secs(600);

/// Arrivals are counted over this long. Counters lag by up to a minute, so shorter windows
/// measure the lag.
const FLOW_WINDOW: Duration = FAILURES_SPAN;

/// A rate from a shorter span is noise, and takes a single burst for a flow.
const MIN_FLOW_SPAN: Duration = Duration::from_secs(120);

/// Quiet spells remembered, and how many it takes to say something about the next.
const SPELLS_MAX: usize = 20;
const SPELLS_MIN: usize = 4;

/// Shorter pauses between two messages are no spell: nobody would shut a fleet down for them.
const SPELL_MIN: Duration = Duration::from_secs(60);

/// Past wishes are kept for the longest wait that any rule asks for.
const WANTED_WINDOW: Duration = Duration::from_secs(3_600);

/// Readings further apart than this do not speak for the time between them.
const GAP_MAX: Duration = Duration::from_secs(60);

/// Learns from every observation, in order, decisions or not: a standby's is as good as the
/// acting scaler's.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The unbroken run of readings that said "empty", in-flight and delayed included.
    empty: Option<Streak>,
    /// The unbroken run of readings that said "not empty".
    occupied: Option<Streak>,
    /// The last size the group was seen asking for.
    desired: Option<u32>,
    /// The size it was left at by us, until it is seen to differ.
    left_at: Option<u32>,
    /// That size, when the latest observation differs from it.
    changed_from: Option<u32>,
    /// Messages settled by each worker as of its latest report.
    done: BTreeMap<InstanceId, u64>,
    /// Messages settled by all workers since this history began.
    settled: u64,
    /// Slot-seconds worked and messages settled, both fading over [`SERVICE_MEMORY`].
    worked_s: f64,
    worked_count: f64,
    /// Messages at work now.
    held: u64,
    /// Depth and [`History::settled`] at each reading of the last [`FLOW_WINDOW`].
    flow: VecDeque<Flow>,
    /// What the rules wanted at each decision of the last [`WANTED_WINDOW`].
    wanted: VecDeque<(Timestamp, u32)>,
    learned_at: Option<Timestamp>,
    boots: VecDeque<Duration>,
    /// Instances whose arrival was seen and whose first report is awaited.
    arriving: BTreeMap<InstanceId, Timestamp>,
    /// Instances of the last known group state.
    seen: Option<Vec<InstanceId>>,
    saturation: Saturation,
    /// When a worker last held or settled a message.
    worked_at: Option<Timestamp>,
    /// How long it was quiet before work came back, the latest times.
    spells: VecDeque<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    at: Timestamp,
    settled: u64,
    depth: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streak {
    first: Timestamp,
    last: Timestamp,
}

impl Streak {
    fn extend(streak: Option<Streak>, at: Timestamp) -> Option<Streak> {
        match streak {
            Some(streak) if at.since(streak.last) <= GAP_MAX => Some(Streak { last: at, ..streak }),
            _ => Some(Streak { first: at, last: at }),
        }
    }
}

impl History {
    pub fn learn(&mut self, observation: &Observation) {
        let at = observation.at;
        match observation.depth.known() {
            Some(depth) if depth.total() == 0 => {
                self.empty = Streak::extend(self.empty, at);
                self.occupied = None;
            }
            Some(_) => {
                self.empty = None;
                self.occupied = Streak::extend(self.occupied, at);
            }
            // The queue may have filled and drained unseen: emptiness must be proven anew.
            None => self.empty = None,
        }
        self.learn_work(observation);
        if let Some(group) = observation.group.known() {
            self.desired = Some(group.desired);
            self.changed_from = self.left_at.filter(|left_at| *left_at != group.desired);
            self.left_at = self.left_at.map(|_| group.desired);
            self.learn_boots(group, observation);
        }
    }

    /// How long the readings have said "empty" without a break.
    pub fn empty_for(&self) -> Duration {
        self.empty.map_or(Duration::ZERO, |streak| streak.last.since(streak.first))
    }

    /// How long the readings have said "not empty" without a break: no message that still
    /// waits can be known to be older.
    pub fn occupied_for(&self) -> Duration {
        self.occupied.map_or(Duration::ZERO, |streak| streak.last.since(streak.first))
    }

    /// How long no worker has held or settled anything. Unlike the queue's counters, workers
    /// neither lag nor blip.
    pub fn quiet_for(&self, now: Timestamp) -> Duration {
        self.worked_at.map_or(Duration::ZERO, |at| now.since(at))
    }

    /// After this long without work, nine in ten of the latest quiet spells had ended. `None`
    /// until there were a few.
    pub fn quiet_usually(&self) -> Option<Duration> {
        let mut spells: Vec<Duration> = self.spells.iter().copied().collect();
        spells.sort_unstable();
        (spells.len() >= SPELLS_MIN).then(|| spells[(spells.len() * 9).div_ceil(10) - 1])
    }

    pub fn desired(&self) -> Option<u32> {
        self.desired
    }

    /// Remembers the size that a step left the group at; `None` when the step may have been
    /// carried out in part.
    pub fn note_left_at(&mut self, desired: Option<u32>) {
        self.left_at = desired;
    }

    /// The size we knew, when somebody else has changed it since the observation before.
    pub fn changed_from(&self) -> Option<u32> {
        self.changed_from
    }

    /// Slot-seconds per message, by Little's law on what the workers hold and settle: their own
    /// figures leave out what is still unfinished. Remembered while nobody works.
    pub fn service(&self) -> Duration {
        let assumed_s = SERVICE_ASSUMED.as_secs_f64() * SERVICE_ASSUMED_WEIGHT;
        // What is held has been worked on without being settled: left out, a fleet that has only
        // just begun would seem to take for ever.
        let count = self.worked_count + self.held as f64 + SERVICE_ASSUMED_WEIGHT;
        Duration::from_secs_f64((self.worked_s + assumed_s) / count)
    }

    /// Arrivals per second over the last minutes: what was settled, and what the queue gained.
    /// `None` until there are readings to compare.
    pub fn arrival_rate(&self) -> Option<f64> {
        let (first, last) = (self.flow.front()?, self.flow.back()?);
        let span = last.at.since(first.at);
        if span < MIN_FLOW_SPAN {
            return None;
        }
        // Single readings are from anywhere in the last minute: compare means of a few.
        let few = (self.flow.len() / 4).clamp(1, 6);
        let mean = |depths: &mut dyn Iterator<Item = &Flow>| {
            depths.map(|flow| flow.depth as f64).sum::<f64>() / few as f64
        };
        let before = mean(&mut self.flow.iter().take(few));
        let after = mean(&mut self.flow.iter().rev().take(few));
        // The means lie this much closer together than the ends.
        let apart = 1.0 - (few - 1) as f64 / (self.flow.len() - 1).max(1) as f64;
        let settled = (last.settled - first.settled) as f64;
        let gained = (after - before) / apart.max(0.5);
        Some(((settled + gained) / span.as_secs_f64()).max(0.0))
    }

    /// How far the fleet may grow before it is known to help.
    pub fn growth(&self, now: Timestamp) -> Growth {
        self.saturation.growth(now)
    }

    /// Messages settled over the same span as dead letters are counted.
    pub fn settled_lately(&self) -> u64 {
        match (self.flow.front(), self.flow.back()) {
            (Some(first), Some(last)) => last.settled - first.settled,
            _ => 0,
        }
    }

    /// Remembers what the rules wanted, so that a later plan knows for how long they have. Not
    /// knowing what they would want breaks the run: what is spare must be proven anew.
    pub fn note_wanted(&mut self, at: Timestamp, instances: Option<u32>) {
        let Some(instances) = instances else { return self.wanted.clear() };
        if self.wanted.back().is_some_and(|(then, _)| at.since(*then) > GAP_MAX) {
            self.wanted.clear();
        }
        while self.wanted.front().is_some_and(|(then, _)| at.since(*then) > WANTED_WINDOW) {
            self.wanted.pop_front();
        }
        self.wanted.push_back((at, instances));
    }

    /// The most that the rules have wanted within `span` before `now`; `None` when the decisions
    /// do not reach back that far.
    pub fn wanted_within(&self, now: Timestamp, span: Duration) -> Option<u32> {
        let oldest = self.wanted.front()?.0;
        if now.since(oldest) < span {
            return None;
        }
        let recent = self.wanted.iter().rev().take_while(|(at, _)| now.since(*at) <= span);
        recent.map(|(_, instances)| *instances).max()
    }

    /// From an instance's appearance in the group to its importer's first report: the 90th
    /// percentile of the latest boots.
    pub fn boot(&self) -> Duration {
        let mut boots: Vec<Duration> = self.boots.iter().copied().collect();
        boots.sort_unstable();
        boots.get((boots.len() * 9).div_ceil(10).max(1) - 1).copied().unwrap_or(BOOT_ASSUMED)
    }

    /// Instances whose first report is awaited and not overdue, and the mean time until it comes.
    pub fn arriving(&self, now: Timestamp) -> (u64, Duration) {
        let boot = self.boot();
        let due = self.arriving.values().map(|arrived_at| now.since(*arrived_at));
        let etas: Vec<Duration> =
            due.filter(|waited| *waited <= boot * 2).map(|w| boot.saturating_sub(w)).collect();
        let count = u32::try_from(etas.len()).unwrap_or(u32::MAX);
        (u64::from(count), etas.iter().sum::<Duration>() / count.max(1))
    }

    fn learn_work(&mut self, observation: &Observation) {
        let at = observation.at;
        let before_at = self.learned_at.replace(at);
        let passed = before_at.map_or(Duration::ZERO, |then| at.since(then)).min(GAP_MAX);
        if observation.workers.known().is_none() {
            return;
        }
        let fresh = observation.fresh_workers(at);
        let (mut busy, mut busy_s, mut settled) = (0, 0.0, 0);
        for (id, report) in &fresh {
            let at_work = report.busy.min(report.slots);
            busy += at_work;
            busy_s += at_work as f64 * passed.min(at.since(report.started_at)).as_secs_f64();
            // A new worker has settled all of it since the last look; one that was there before,
            // only unseen, has settled it at unknown times.
            let is_new = before_at.is_some_and(|then| report.started_at >= then.before(GAP_MAX));
            let unseen = if is_new { 0 } else { report.done };
            settled += report.done.saturating_sub(*self.done.get(id).unwrap_or(&unseen));
        }
        self.done = fresh.iter().map(|(id, report)| (id.clone(), report.done)).collect();
        self.settled += settled;
        self.held = busy;
        if busy > 0 || settled > 0 {
            if let Some(worked_at) = self.worked_at
                && at.since(worked_at) >= SPELL_MIN
            {
                if self.spells.len() == SPELLS_MAX {
                    self.spells.pop_front();
                }
                self.spells.push_back(at.since(worked_at));
            }
            self.worked_at = Some(at);
        }
        let taking = || fresh.values().filter(|report| report.state == WorkerState::Running);
        self.saturation.learn(
            at,
            taking().map(|report| report.slots).sum(),
            taking().map(|report| report.busy.min(report.slots)).sum(),
            self.settled,
        );
        let kept = (-passed.as_secs_f64() / SERVICE_MEMORY.as_secs_f64()).exp();
        // An idle fleet forgets nothing: no work is no news of how long work takes.
        if busy > 0 || settled > 0 {
            self.worked_s = self.worked_s * kept + busy_s;
            self.worked_count = self.worked_count * kept + settled as f64;
        }
        if let Some(depth) = observation.depth.known() {
            while self.flow.front().is_some_and(|flow| at.since(flow.at) > FLOW_WINDOW) {
                self.flow.pop_front();
            }
            self.flow.push_back(Flow { at, settled: self.settled, depth: depth.total() });
        }
    }

    fn learn_boots(&mut self, group: &GroupState, observation: &Observation) {
        let coming = |life| matches!(life, Life::Pending | Life::InService);
        let present: Vec<InstanceId> = group
            .instances
            .iter()
            .filter(|instance| coming(instance.life))
            .map(|instance| instance.id.clone())
            .collect();
        // What was there before the first look arrived at an unknown time.
        if let Some(seen) = &self.seen {
            for id in present.iter().filter(|id| !seen.contains(id)) {
                self.arriving.insert(id.clone(), observation.at);
            }
        }
        self.arriving.retain(|id, _| present.contains(id));
        for (id, report) in observation.fresh_workers(observation.at) {
            if let Some(arrived_at) = self.arriving.remove(&id) {
                if self.boots.len() == BOOTS_MAX {
                    self.boots.pop_front();
                }
                self.boots.push_back(report.started_at.since(arrived_at));
            }
        }
        self.seen = Some(present);
    }
}
