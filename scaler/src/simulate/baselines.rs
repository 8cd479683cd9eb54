//! What people run today, with the constants of its code or documentation.
//!
//! Each is given the benefit of the doubt: Kubernetes' grace of 30 s before a kill, a minimum
//! of one instance where it cannot leave zero, and true figures where it would have to estimate.

use std::collections::VecDeque;

use super::plant::{Plant, Sample, State};
use super::workload::SLOTS;

const MINUTE_MS: u64 = 60_000;

/// Kubernetes' `terminationGracePeriodSeconds`.
const POD_GRACE_MS: u64 = 30_000;

#[derive(Clone, Debug, PartialEq)]
pub enum Baseline {
    /// A part of what the busiest five minutes need, always.
    StaticPeak { part: f64 },
    /// EC2 Auto Scaling target tracking of average CPU.
    Cpu { target: f64 },
    /// Target tracking of visible messages per instance, as AWS recommends for SQS, to a part of
    /// acceptable latency over processing time.
    BacklogPerInstance { part: f64 },
    /// KEDA's SQS scaler with the Horizontal Pod Autoscaler.
    Keda { target: f64, in_flight: bool },
    /// practo's k8s-worker-pod-autoscaler: backlog over a target, and no fewer than what is sent
    /// needs.
    WorkerPod { target: f64 },
    /// buildkite-agent-scaler, whose instances leave after idling.
    Buildkite { idle_ms: u64 },
    /// ecs-watchbot: the literal queue rule, growing by a part of the maximum.
    Watchbot { part: f64 },
    /// Lambda's SQS pollers, with a slot for each concurrent invocation.
    Lambda { per_minute: f64 },
    /// Knative's pod autoscaler on concurrency.
    Knative { target: f64 },
    /// laravel-queue-autoscale, with a part of the objective for its promise.
    Laravel { promise: f64 },
    /// Square-root staffing: the offered load and a number of its roots.
    SquareRoot { roots: f64 },
    /// Queueing theory's DelayedOff: an instance leaves after idling for so many boots.
    DelayedOff { boots: f64 },
}

/// What a rule knows of the world before it starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) instances_max: u32,
    pub(super) boot_ms: f64,
    pub(super) freshness_ms: f64,
    /// What it is told that a message takes.
    pub(super) service_ms: f64,
    /// Instances that the busiest five minutes need.
    pub(super) peak: u32,
}

impl Baseline {
    /// Each at its defaults.
    pub fn all() -> Vec<Baseline> {
        let mut all = vec![
            Baseline::StaticPeak { part: 1.0 },
            Baseline::Cpu { target: 0.5 },
            Baseline::BacklogPerInstance { part: 1.0 },
        ];
        for in_flight in [true, false] {
            all.extend([1.0, 5.0, SLOTS as f64].map(|target| Baseline::Keda { target, in_flight }));
        }
        all.extend([
            Baseline::WorkerPod { target: 2.0 },
            Baseline::Buildkite { idle_ms: 600_000 },
            Baseline::Watchbot { part: 0.1 },
            Baseline::Lambda { per_minute: 300.0 },
            Baseline::Knative { target: SLOTS as f64 },
            Baseline::Laravel { promise: 1.0 },
            Baseline::SquareRoot { roots: 1.0 },
            Baseline::DelayedOff { boots: 1.0 },
        ]);
        all
    }

    /// Each over the range of its main knob, besides the defaults: what a search may choose from.
    pub fn variants() -> Vec<Baseline> {
        let mut all = Vec::new();
        all.extend([0.5, 0.75, 1.25].map(|part| Baseline::StaticPeak { part }));
        all.extend([0.2, 0.3, 0.4, 0.6].map(|target| Baseline::Cpu { target }));
        all.extend([0.05, 0.1, 0.2, 0.4, 0.7].map(|part| Baseline::BacklogPerInstance { part }));
        for in_flight in [true, false] {
            all.extend(
                [2.0, 3.0, 6.0, 8.0, 16.0, 40.0, 100.0]
                    .map(|target| Baseline::Keda { target, in_flight }),
            );
        }
        all.extend([10.0, 40.0, 75.0, 150.0, 300.0].map(|target| Baseline::WorkerPod { target }));
        all.extend([60_000, 180_000, 1_200_000].map(|idle_ms| Baseline::Buildkite { idle_ms }));
        all.extend([0.02, 0.05, 0.2, 0.5].map(|part| Baseline::Watchbot { part }));
        all.extend([15.0, 60.0, 120.0].map(|per_minute| Baseline::Lambda { per_minute }));
        all.extend([2.0, 3.0, 6.0, 12.0].map(|target| Baseline::Knative { target }));
        all.extend([0.5, 0.7, 0.85, 1.2].map(|promise| Baseline::Laravel { promise }));
        all.extend([0.0, 0.5, 2.0, 4.0].map(|roots| Baseline::SquareRoot { roots }));
        all.extend([0.25, 0.5, 2.0, 4.0].map(|boots| Baseline::DelayedOff { boots }));
        all
    }

    /// The rule, whatever its knob.
    pub fn rule(&self) -> &'static str {
        match self {
            Baseline::StaticPeak { .. } => "static-peak",
            Baseline::Cpu { .. } => "cpu",
            Baseline::BacklogPerInstance { .. } => "backlog-per-instance",
            Baseline::Keda { in_flight: true, .. } => "keda",
            Baseline::Keda { in_flight: false, .. } => "keda-visible",
            Baseline::WorkerPod { .. } => "worker-pod",
            Baseline::Buildkite { .. } => "buildkite",
            Baseline::Watchbot { .. } => "watchbot",
            Baseline::Lambda { .. } => "lambda",
            Baseline::Knative { .. } => "knative",
            Baseline::Laravel { .. } => "laravel",
            Baseline::SquareRoot { .. } => "square-root",
            Baseline::DelayedOff { .. } => "delayed-off",
        }
    }

    /// The rule, and its knob where that is not at the only default.
    pub fn name(&self) -> String {
        let knob = match self {
            Baseline::StaticPeak { part }
            | Baseline::BacklogPerInstance { part }
            | Baseline::Watchbot { part } => *part,
            Baseline::Cpu { target }
            | Baseline::Keda { target, .. }
            | Baseline::WorkerPod { target }
            | Baseline::Knative { target } => *target,
            Baseline::Buildkite { idle_ms } => *idle_ms as f64 / 1000.0,
            Baseline::Lambda { per_minute } => *per_minute,
            Baseline::Laravel { promise } => *promise,
            Baseline::SquareRoot { roots } => *roots,
            Baseline::DelayedOff { boots } => *boots,
        };
        let is_keda = matches!(self, Baseline::Keda { .. });
        match Baseline::all().contains(self) && !is_keda {
            true => self.rule().to_owned(),
            false => format!("{}@{knob}", self.rule()),
        }
    }

    pub(super) fn period_ms(&self) -> u64 {
        match self {
            Baseline::StaticPeak { .. } | Baseline::Cpu { .. } => MINUTE_MS,
            Baseline::BacklogPerInstance { .. } | Baseline::Lambda { .. } => MINUTE_MS,
            Baseline::Keda { .. } => 15_000,
            Baseline::WorkerPod { .. } => 20_000,
            Baseline::Buildkite { .. }
            | Baseline::Laravel { .. }
            | Baseline::SquareRoot { .. }
            | Baseline::DelayedOff { .. } => 10_000,
            Baseline::Watchbot { .. } => 300_000,
            Baseline::Knative { .. } => 2_000,
        }
    }
}

/// A baseline at work: its rule and what it remembers.
#[derive(Debug)]
pub(super) struct Running {
    rule: Baseline,
    known: Known,
    changed_ms: u64,
    /// Recommendations or readings, with their times.
    window: VecDeque<(u64, f64)>,
    active_ms: u64,
    panic_until_ms: u64,
    reading: (u64, u64),
    read_ms: Option<u64>,
}

impl Running {
    pub(super) fn new(rule: Baseline, known: Known) -> Self {
        Running {
            rule,
            known,
            changed_ms: 0,
            window: VecDeque::new(),
            active_ms: 0,
            panic_until_ms: 0,
            reading: (0, 0),
            read_ms: None,
        }
    }

    pub(super) fn step(&mut self, plant: &mut Plant<'_>) {
        match self.rule {
            Baseline::StaticPeak { part } => {
                plant.set_desired((f64::from(self.known.peak) * part).ceil() as u32, 0);
            }
            Baseline::Cpu { target } => self.track(plant, |s, _| s.cpu / target),
            Baseline::BacklogPerInstance { part } => {
                let target = part * self.known.freshness_ms / self.instance_service_ms();
                self.track(plant, |s, n| s.visible / f64::from(n.max(1)) / target);
            }
            Baseline::Keda { target, in_flight } => self.keda(plant, target, in_flight),
            Baseline::WorkerPod { target } => self.worker_pod(plant, target),
            Baseline::Buildkite { idle_ms } => self.buildkite(plant, idle_ms),
            Baseline::Watchbot { part } => self.watchbot(plant, part),
            Baseline::Lambda { per_minute } => self.lambda(plant, per_minute),
            Baseline::Knative { target } => self.knative(plant, target),
            Baseline::Laravel { promise } => self.laravel(plant, promise),
            Baseline::SquareRoot { roots } => self.square_root(plant, roots),
            Baseline::DelayedOff { boots } => self.delayed_off(plant, boots),
        }
    }

    /// What one message takes of an instance with all its slots.
    fn instance_service_ms(&self) -> f64 {
        self.known.service_ms / SLOTS as f64
    }

    fn resize(&mut self, plant: &mut Plant<'_>, desired: u32, grace_ms: u64) {
        if desired != plant.desired {
            self.changed_ms = plant.now_ms;
            plant.set_desired(desired.min(self.known.instances_max), grace_ms);
        }
    }

    /// Target tracking: out after three points above the target, in after fifteen below nine
    /// tenths of it, never in within the warm-up of 300 s.
    fn track(&mut self, plant: &mut Plant<'_>, ratio: impl Fn(&Sample, u32) -> f64) {
        let now = plant.desired.max(1);
        if plant.desired == 0 {
            self.resize(plant, 1, 0);
        }
        let ratios: Vec<f64> = plant.samples(15).iter().map(|s| ratio(s, now)).collect();
        let wanted = |ratio: f64| (f64::from(now) * ratio).ceil().max(1.0) as u32;
        let warming = plant.now_ms < self.changed_ms + 300_000;
        if ratios.len() >= 3 && ratios[..3].iter().all(|r| *r > 1.0) {
            if !warming || wanted(ratios[0]) > plant.desired {
                self.resize(plant, wanted(ratios[0]).max(now), 0);
            }
        } else if ratios.len() >= 15 && ratios.iter().all(|r| *r < 0.9) && !warming {
            self.resize(plant, wanted(ratios[0]).min(now), 0);
        }
    }

    /// The reading, refreshed when older than the poll interval.
    fn poll(&mut self, plant: &mut Plant<'_>, every_ms: u64) -> (u64, u64) {
        if self.read_ms.is_none_or(|at| plant.now_ms >= at + every_ms)
            && let Some(reading) = plant.counters()
        {
            (self.reading, self.read_ms) = (reading, Some(plant.now_ms));
        }
        self.reading
    }

    fn keda(&mut self, plant: &mut Plant<'_>, target: f64, in_flight: bool) {
        let (visible, held) = self.poll(plant, 30_000);
        let length = (visible + if in_flight { held } else { 0 }) as f64;
        let now = plant.desired;
        if length > 0.0 {
            self.active_ms = plant.now_ms;
        }
        if now == 0 {
            if length > 0.0 {
                self.resize(plant, 1, POD_GRACE_MS);
            }
            return;
        }
        if plant.now_ms >= self.active_ms + 300_000 {
            return self.resize(plant, 0, POD_GRACE_MS);
        }
        let ratio = length / (target * f64::from(now));
        let wanted =
            if (1.0 - ratio).abs() <= 0.1 { f64::from(now) } else { (length / target).ceil() };
        self.window.push_back((plant.now_ms, wanted));
        while self.window.front().is_some_and(|(at, _)| *at + 300_000 < plant.now_ms) {
            self.window.pop_front();
        }
        let stable = self.window.iter().map(|(_, n)| *n).fold(wanted, f64::max);
        let wanted = if wanted >= f64::from(now) { wanted } else { stable.min(f64::from(now)) };
        let ceiling = f64::from(now + 4).max(f64::from(now) * 2.0);
        self.resize(plant, wanted.clamp(1.0, ceiling) as u32, POD_GRACE_MS);
    }

    fn buildkite(&mut self, plant: &mut Plant<'_>, idle_ms: u64) {
        let (visible, held) = self.poll(plant, 0);
        let wanted = ((visible + held).div_ceil(SLOTS) as u32).min(self.known.instances_max);
        let cool = self.changed_ms == 0 || plant.now_ms >= self.changed_ms + 300_000;
        if wanted > plant.desired && cool {
            self.resize(plant, wanted, 0);
        }
        idle_leave(plant, idle_ms);
    }

    fn watchbot(&mut self, plant: &mut Plant<'_>, part: f64) {
        let (visible, held) = self.poll(plant, 0);
        // Both rules fire on a full queue that nobody works; here the first one wins, or nothing
        // would ever boot.
        if visible > 0 {
            let step = ((f64::from(self.known.instances_max) * part) as u32).clamp(1, 100);
            self.resize(plant, plant.desired + step, 0);
        } else if held == 0 {
            self.resize(plant, 0, 0);
        }
    }

    fn knative(&mut self, plant: &mut Plant<'_>, target: f64) {
        let (visible, held) = self.poll(plant, 0);
        let now_ms = plant.now_ms;
        self.window.push_back((now_ms, (visible + held) as f64));
        while self.window.front().is_some_and(|(at, _)| *at + MINUTE_MS < now_ms) {
            self.window.pop_front();
        }
        let mean = |span_ms: u64| {
            let recent = self.window.iter().filter(|(at, _)| *at + span_ms >= now_ms);
            let (sum, count) = recent.fold((0.0, 0u32), |(s, c), (_, v)| (s + v, c + 1));
            sum / f64::from(count.max(1))
        };
        let (stable, panic) = ((mean(60_000) / target).ceil(), (mean(6_000) / target).ceil());
        let ready = plant.running();
        if panic / f64::from(ready.max(1)) >= 2.0 {
            self.panic_until_ms = now_ms + MINUTE_MS;
        }
        let now = f64::from(plant.desired);
        let mut wanted = stable;
        if now_ms < self.panic_until_ms {
            wanted = stable.max(panic).max(now);
        }
        if wanted > 0.0 {
            self.active_ms = now_ms;
        }
        wanted = wanted.max((now / 2.0).floor()).min(f64::from(ready.max(1)) * 1000.0);
        if wanted < 1.0 && now_ms < self.active_ms + 30_000 {
            wanted = now.min(1.0);
        }
        self.resize(plant, wanted as u32, POD_GRACE_MS);
    }

    fn laravel(&mut self, plant: &mut Plant<'_>, promise: f64) {
        let (visible, held) = self.poll(plant, 0);
        let service_s = self.known.service_ms / 1000.0;
        let promise_s =
            (self.known.freshness_ms * promise - self.known.boot_ms).max(10_000.0) / 1000.0;
        let age_s = plant.oldest_ms() as f64 / 1000.0;
        // Little's law in reverse: what is held now, per service time.
        let flow = held as f64;
        let left_s = promise_s - age_s;
        let pressure = (1.0 + 8.0 * (age_s / promise_s - 0.5).max(0.0).powi(2)).min(5.0);
        let backlog = visible as f64 / (left_s / service_s).max(1.0) * pressure;
        let wanted = (flow.max(backlog) / SLOTS as f64).ceil();
        let now = f64::from(plant.desired);
        if plant.now_ms < self.changed_ms + MINUTE_MS && self.changed_ms > 0 {
            return;
        }
        let floor = (now * 0.75).floor();
        self.resize(plant, wanted.max(floor) as u32, POD_GRACE_MS);
    }

    /// The rate of what was sent, over the newest minutes that CloudWatch has.
    fn sent_per_ms(plant: &Plant<'_>) -> f64 {
        let samples = plant.samples(3);
        let sent: f64 = samples.iter().map(|sample| sample.sent).sum();
        sent / (samples.len().max(1) as u64 * MINUTE_MS) as f64
    }

    /// Within a tenth nothing changes; nothing goes while messages are held; and after a change
    /// nothing goes for ten minutes.
    fn worker_pod(&mut self, plant: &mut Plant<'_>, target: f64) {
        let (visible, held) = self.poll(plant, 20_000);
        let now = plant.desired;
        let least = (Self::sent_per_ms(plant) * self.instance_service_ms()).ceil() as u32;
        let by_backlog = (visible as f64 / target).ceil() as u32;
        let close = (f64::from(by_backlog) / f64::from(now.max(1)) - 1.0).abs() <= 0.1;
        let wanted = match (visible, held) {
            (0, 0) => least,
            (0, _) => least.max(now.min(1)),
            _ if now > 0 && close => now,
            _ => by_backlog,
        };
        let wanted = wanted.max(least);
        if wanted >= now || plant.now_ms >= self.changed_ms + 600_000 {
            self.resize(plant, wanted, POD_GRACE_MS);
        }
    }

    /// Five pollers at first, so many more each minute while messages wait, and fewer again as
    /// fewer are used.
    fn lambda(&mut self, plant: &mut Plant<'_>, per_minute: f64) {
        let (visible, held) = self.poll(plant, 0);
        let before = self.window.back().map_or(0.0, |(_, pollers)| *pollers);
        let pollers = match (visible > 0, before > 0.0) {
            (true, false) => 5.0,
            (true, true) => (before + per_minute).min(1_000.0),
            (false, _) => before.min(held as f64),
        };
        // No more than there is work for: Lambda bills what runs.
        let useful = pollers.min((visible + held) as f64);
        self.window.clear();
        self.window.push_back((plant.now_ms, pollers));
        self.resize(plant, (useful / SLOTS as f64).ceil() as u32, POD_GRACE_MS);
    }

    fn square_root(&mut self, plant: &mut Plant<'_>, roots: f64) {
        let (visible, held) = self.poll(plant, 0);
        let load = Self::sent_per_ms(plant) * self.known.service_ms;
        let staffed = ((load + roots * load.sqrt()) / SLOTS as f64).ceil() as u32;
        // The formula is for a flow; what waits without one still needs somebody.
        self.resize(plant, staffed.max(u32::from(visible + held > 0)), POD_GRACE_MS);
    }

    fn delayed_off(&mut self, plant: &mut Plant<'_>, boots: f64) {
        let (visible, held) = self.poll(plant, 0);
        let wanted = (visible + held).div_ceil(SLOTS) as u32;
        if wanted > plant.desired {
            self.resize(plant, wanted, 0);
        }
        idle_leave(plant, (self.known.boot_ms * boots) as u64);
    }
}

/// Every instance that has idled for `wait_ms` goes.
fn idle_leave(plant: &mut Plant<'_>, wait_ms: u64) {
    let now_ms = plant.now_ms;
    let idle: Vec<u32> = plant
        .alive
        .iter()
        .copied()
        .filter(|i| {
            let it = &plant.instances[*i as usize];
            let idle = it.state == State::Running && it.held.is_empty();
            idle && now_ms >= it.idle_since_ms + wait_ms
        })
        .collect();
    for instance in idle {
        plant.terminate(instance);
    }
}
