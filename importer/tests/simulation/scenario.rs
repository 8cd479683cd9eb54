//! What a seed stands for: the objects, the messages about them, and all that will go wrong.

use std::ops::Range;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use weirgate_common::config::WriteMode;
use weirgate_common::fault::Dependency;
use weirgate_importer::protocol::{FeedId, Grouping, Limits, Load};

pub(crate) struct Scenario {
    pub(crate) mode: WriteMode,
    /// Whether the bucket keeps older versions: else an overwritten object cannot be read.
    pub(crate) versioned: bool,
    pub(crate) objects: Vec<Object>,
    pub(crate) messages: Vec<Message>,
    pub(crate) importers: usize,
    pub(crate) limits: Limits,
    pub(crate) rates: Rates,
    pub(crate) outages: Vec<Outage>,
    pub(crate) incidents: Vec<(Duration, usize, Incident)>,
    /// Outages and nothing else: then no message may suffer.
    pub(crate) only_outages: bool,
    /// From here on nothing goes wrong any more, and everything must come to its end.
    pub(crate) healed_at: Duration,
}

pub(crate) struct Object {
    /// Keys are shared out among two feeds.
    pub(crate) key: usize,
    pub(crate) etag: String,
    pub(crate) sequencer: String,
    pub(crate) written_at: Duration,
    /// Memory that importing it needs.
    pub(crate) cost: u64,
    pub(crate) kind: Kind,
    /// How long its import takes, when that is out of the ordinary.
    pub(crate) slow: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Good,
    /// Fails the same way every time.
    Poison,
    /// Fails more often than not.
    Flaky,
    /// Looks like an outage for ever, though the dependency answers every probe.
    Cursed,
    /// The database refuses the transaction that it is in, and does not say because of whom.
    Spoiler,
    /// The database goes away whenever it is committed.
    Jinx,
    /// Much larger than its event says.
    Bloated,
}

/// What importing a small object needs.
pub(crate) const SMALL: u64 = 1;

pub(crate) struct Message {
    /// Indices of objects. Empty: an event that asks for nothing.
    pub(crate) events: Vec<usize>,
    /// It also holds something that can never be processed.
    pub(crate) strange: bool,
    pub(crate) visible_at: Duration,
}

pub(crate) struct Outage {
    pub(crate) of: Dependency,
    pub(crate) during: Range<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Incident {
    /// SIGKILL, or the machine is gone.
    Kill,
    /// SIGTERM with this grace.
    Terminate { grace: Duration },
    /// The machine stands still. Its monotonic clock may stand still as well: then its leases
    /// run out without its knowing.
    Suspend { span: Duration, clock_too: bool },
}

/// How likely each fault is, whenever there is an occasion.
#[derive(Default)]
pub(crate) struct Rates {
    /// A request or reply takes seconds instead of milliseconds.
    pub(crate) slow_call: f64,
    /// A long poll returns nothing though there are messages.
    pub(crate) empty_receive: f64,
    /// The reply of a receive is lost: its messages are hidden, and nobody works on them.
    pub(crate) lost_receive: f64,
    /// A message that is in flight is delivered once more.
    pub(crate) duplicate: f64,
    /// One entry of a batch is refused.
    pub(crate) refused: f64,
    /// One entry of a batch is carried out, and reported as failed.
    pub(crate) lost_reply: f64,
    /// A delete succeeds and deletes nothing.
    pub(crate) idle_delete: f64,
    /// The database's connection breaks at the commit, before or after it took effect.
    pub(crate) broken_commit: f64,
    /// An import takes longer than a lease.
    pub(crate) slow_import: f64,
    /// A process dies between two effects of one step.
    pub(crate) kill: f64,
}

impl Scenario {
    pub(crate) fn draw(seed: u64, rng: &mut SmallRng) -> Self {
        let only_outages = rng.random_bool(0.1);
        let healed_at = Duration::from_secs(rng.random_range(20..240));
        let importers = rng.random_range(1..=3);
        let lease = Duration::from_secs([20, 30, 60, 300][rng.random_range(0..4)]);
        let limits = Limits {
            slots: rng.random_range(1..=5),
            bytes_max: rng.random_range(30..=120),
            lease,
            attempts_max: rng.random_range(if only_outages { 3..=5 } else { 1..=4 }),
            receives_max: rng.random_range(2..=6),
            grouping: Grouping {
                objects_max: [1, 2, 3, 5, 8][rng.random_range(0..5)],
                bytes_max: rng.random_range(4..=12),
                linger: Duration::from_millis([0, 50, 2_000][rng.random_range(0..3)]),
            },
            seed,
        };
        let mut scenario = Scenario {
            mode: if rng.random_bool(0.5) { WriteMode::Replace } else { WriteMode::Append },
            versioned: rng.random_bool(0.5),
            objects: Vec::new(),
            messages: Vec::new(),
            importers,
            limits,
            rates: Rates::default(),
            outages: Vec::new(),
            incidents: Vec::new(),
            only_outages,
            healed_at,
        };
        scenario.draw_messages(rng);
        scenario.draw_outages(rng);
        if !only_outages {
            scenario.rates = Rates::draw(rng);
            scenario.draw_incidents(rng);
        }
        scenario
    }

    fn draw_messages(&mut self, rng: &mut SmallRng) {
        let published = self.healed_at / 2;
        let mut keys = 0;
        let mut at = Duration::ZERO;
        for _ in 0..rng.random_range(1..=16) {
            // Some come together.
            if rng.random_bool(0.5) {
                at = published.mul_f64(rng.random::<f64>() * rng.random::<f64>());
            }
            let count = if rng.random_bool(0.3) { rng.random_range(0..=3) } else { 1 };
            let mut events = Vec::with_capacity(count);
            for _ in 0..count {
                let key = match keys > 0 && rng.random_bool(0.1) {
                    true => rng.random_range(0..keys),
                    false => keys,
                };
                keys = keys.max(key + 1);
                events.push(self.objects.len());
                self.objects.push(Object::draw(self, key, at, rng));
            }
            let strange = !self.only_outages && rng.random_bool(0.04);
            // Notifications are late, in any order, and sometimes there are two.
            for _ in 0..if rng.random_bool(0.05) { 2 } else { 1 } {
                let delay = Duration::from_millis(rng.random_range(0..3_000));
                let visible_at = at + delay;
                self.messages.push(Message { events: events.clone(), strange, visible_at });
            }
        }
    }

    fn draw_outages(&mut self, rng: &mut SmallRng) {
        let dependencies = [Dependency::Database, Dependency::ObjectStore, Dependency::Queue];
        for of in dependencies {
            if !rng.random_bool(if self.only_outages { 0.5 } else { 0.2 }) {
                continue;
            }
            let from = self.healed_at.mul_f64(rng.random::<f64>() / 2.0);
            let to = from + (self.healed_at - from).mul_f64(rng.random::<f64>());
            // Without the queue no lease can be kept: then messages suffer.
            if !(self.only_outages && of == Dependency::Queue) {
                self.outages.push(Outage { of, during: from..to });
            }
        }
    }

    fn draw_incidents(&mut self, rng: &mut SmallRng) {
        for _ in 0..[0, 0, 1, 2, 4][rng.random_range(0..5)] {
            let at = self.healed_at.mul_f64(rng.random::<f64>());
            let span = Duration::from_millis(rng.random_range(100..90_000));
            let incident = match rng.random_range(0..3) {
                0 => Incident::Kill,
                1 => Incident::Terminate { grace: span },
                _ => Incident::Suspend { span, clock_too: rng.random_bool(0.5) },
            };
            self.incidents.push((at, rng.random_range(0..self.importers), incident));
        }
    }

    pub(crate) fn is_away(&self, dependency: Dependency, now: Duration) -> bool {
        self.outages.iter().any(|outage| outage.of == dependency && outage.during.contains(&now))
    }

    /// Whether a reader finds exactly this version.
    pub(crate) fn is_readable(&self, object: usize, now: Duration) -> bool {
        let it = &self.objects[object];
        let newer = |other: &Object| {
            other.key == it.key && other.sequencer > it.sequencer && other.written_at <= now
        };
        self.versioned || !self.objects.iter().any(newer)
    }
}

impl Object {
    pub(crate) fn load(&self) -> Load {
        Load { feed: FeedId(self.key % 2), cost: self.cost }
    }

    fn draw(scenario: &Scenario, key: usize, at: Duration, rng: &mut SmallRng) -> Self {
        let id = scenario.objects.len();
        let kind = match rng.random_range(0..40) {
            0 | 1 if !scenario.only_outages => Kind::Poison,
            2 | 3 if !scenario.only_outages => Kind::Flaky,
            4 if !scenario.only_outages && rng.random_bool(0.2) => Kind::Cursed,
            5 | 6 if !scenario.only_outages => Kind::Spoiler,
            7 if !scenario.only_outages && rng.random_bool(0.2) => Kind::Jinx,
            8 | 9 => Kind::Bloated,
            _ => Kind::Good,
        };
        let giant = rng.random_bool(0.1);
        let slow = match rng.random_range(0..20_000) {
            // Past the longest lease that SQS grants.
            0 if !scenario.only_outages => Some(Duration::from_secs(13 * 3600)),
            1..400 => Some(Duration::from_secs(rng.random_range(5..120))),
            _ => None,
        };
        let versions = scenario.objects.iter().filter(|other| other.key == key);
        let written_at = versions.map(|other| other.written_at).fold(at, Duration::max);
        Object {
            key,
            etag: format!("{id:x}"),
            sequencer: format!("{id:08X}"),
            written_at,
            cost: if giant { rng.random_range(1..=scenario.limits.bytes_max + 20) } else { SMALL },
            kind,
            slow,
        }
    }
}

impl Rates {
    /// Each run has some faults and not others: what hides behind a frequent fault shows when
    /// that one is off.
    fn draw(rng: &mut SmallRng) -> Self {
        let mut rate = |max: f64| match rng.random_bool(0.5) {
            true => 0.0,
            false => max * rng.random::<f64>(),
        };
        Rates {
            slow_call: rate(0.1),
            empty_receive: rate(0.5),
            lost_receive: rate(0.1),
            duplicate: rate(0.2),
            refused: rate(0.3),
            lost_reply: rate(0.3),
            idle_delete: rate(0.1),
            broken_commit: rate(0.3),
            slow_import: rate(0.3),
            kill: rate(0.02),
        }
    }
}
