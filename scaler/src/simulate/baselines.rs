//! What people run today, with the constants of its code or documentation.
//!
//! Each is given the benefit of the doubt: Kubernetes' grace of 30 s before a kill, a minimum
//! of one instance where it cannot leave zero, and true figures where it would have to estimate.

use std::collections::VecDeque;

use super::plant::{Plant, Sample, State};
use super::workload::{SERVICE_MEAN_MS, SLOTS};

const MINUTE_MS: u64 = 60_000;

/// Kubernetes' `terminationGracePeriodSeconds`.
const POD_GRACE_MS: u64 = 30_000;

#[derive(Clone, Debug, PartialEq)]
pub enum Baseline {
    /// As many as the busiest five minutes need, always.
    StaticPeak { instances: u32 },
    /// EC2 Auto Scaling target tracking of average CPU.
    Cpu { target: f64 },
    /// Target tracking of visible messages per instance, as AWS recommends for SQS: acceptable
    /// latency over processing time.
    BacklogPerInstance { target: f64 },
    /// KEDA's SQS scaler with the Horizontal Pod Autoscaler.
    Keda { target: f64, in_flight: bool },
    /// buildkite-agent-scaler.
    Buildkite,
    /// ecs-watchbot: the literal queue rule.
    Watchbot,
    /// Knative's pod autoscaler on concurrency.
    Knative { target: f64 },
    /// laravel-queue-autoscale.
    Laravel { promise: f64 },
    /// Queueing theory's DelayedOff: an instance leaves after idling as long as a boot takes.
    DelayedOff { wait_ms: u64 },
}

impl Baseline {
    /// Each at its defaults.
    pub fn all(boot_ms: f64) -> Vec<Baseline> {
        let per_instance = 300_000.0 / SERVICE_MEAN_MS * SLOTS as f64;
        let mut all = vec![
            Baseline::StaticPeak { instances: 0 },
            Baseline::Cpu { target: 0.5 },
            Baseline::BacklogPerInstance { target: per_instance },
        ];
        for in_flight in [true, false] {
            all.extend([1.0, 5.0, SLOTS as f64].map(|target| Baseline::Keda { target, in_flight }));
        }
        all.extend([
            Baseline::Buildkite,
            Baseline::Watchbot,
            Baseline::Knative { target: SLOTS as f64 },
            Baseline::Laravel { promise: 1.0 },
            Baseline::DelayedOff { wait_ms: boot_ms as u64 },
        ]);
        all
    }

    /// Each over the range of its main knob, for a search.
    pub fn tuned(boot_ms: f64) -> Vec<Baseline> {
        let per_instance = 300_000.0 / SERVICE_MEAN_MS * SLOTS as f64;
        let mut all = Vec::new();
        all.extend([0.2, 0.3, 0.4, 0.6].map(|target| Baseline::Cpu { target }));
        all.extend(
            [0.05, 0.1, 0.2, 0.4, 0.7]
                .map(|part| Baseline::BacklogPerInstance { target: per_instance * part }),
        );
        all.extend(
            [2.0, 3.0, 6.0, 8.0, 16.0, 40.0]
                .map(|target| Baseline::Keda { target, in_flight: true }),
        );
        all.extend([10.0, 40.0, 100.0].map(|target| Baseline::Keda { target, in_flight: false }));
        all.extend([2.0, 3.0, 6.0, 12.0].map(|target| Baseline::Knative { target }));
        all.extend([0.5, 0.7, 0.85, 1.2].map(|promise| Baseline::Laravel { promise }));
        all.extend(
            [0.25, 0.5, 2.0, 4.0]
                .map(|boots| Baseline::DelayedOff { wait_ms: (boot_ms * boots) as u64 }),
        );
        all
    }

    /// The rule, and its knob where that is not at the default.
    pub fn name(&self) -> String {
        match self {
            Baseline::StaticPeak { .. } => "static-peak".to_owned(),
            Baseline::Cpu { target: 0.5 } => "cpu".to_owned(),
            Baseline::Cpu { target } => format!("cpu@{target}"),
            Baseline::BacklogPerInstance { target: 300.0 } => "backlog-per-instance".to_owned(),
            Baseline::BacklogPerInstance { target } => format!("backlog-per-instance@{target}"),
            Baseline::Keda { target, in_flight: true } => format!("keda-{target}"),
            Baseline::Keda { target, in_flight: false } => format!("keda-{target}-visible"),
            Baseline::Buildkite => "buildkite".to_owned(),
            Baseline::Watchbot => "watchbot".to_owned(),
            Baseline::Knative { target } if *target == SLOTS as f64 => "knative".to_owned(),
            Baseline::Knative { target } => format!("knative@{target}"),
            Baseline::Laravel { promise: 1.0 } => "laravel".to_owned(),
            Baseline::Laravel { promise } => format!("laravel@{promise}"),
            Baseline::DelayedOff { wait_ms } => format!("delayed-off@{}s", wait_ms / 1000),
        }
    }

    pub(super) fn period_ms(&self) -> u64 {
        match self {
            Baseline::StaticPeak { .. } | Baseline::Cpu { .. } => MINUTE_MS,
            Baseline::BacklogPerInstance { .. } => MINUTE_MS,
            Baseline::Keda { .. } => 15_000,
            Baseline::Buildkite | Baseline::Laravel { .. } | Baseline::DelayedOff { .. } => 10_000,
            Baseline::Watchbot => 300_000,
            Baseline::Knative { .. } => 2_000,
        }
    }
}

/// A baseline at work: its rule and what it remembers.
#[derive(Debug)]
pub(super) struct Running {
    rule: Baseline,
    instances_max: u32,
    boot_ms: f64,
    changed_ms: u64,
    /// Recommendations or readings, with their times.
    window: VecDeque<(u64, f64)>,
    active_ms: u64,
    panic_until_ms: u64,
    reading: (u64, u64),
    read_ms: Option<u64>,
}

impl Running {
    pub(super) fn new(rule: Baseline, instances_max: u32, boot_ms: f64) -> Self {
        Running {
            rule,
            instances_max,
            boot_ms,
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
            Baseline::StaticPeak { instances } => plant.set_desired(instances, 0),
            Baseline::Cpu { target } => self.track(plant, |s, _| s.cpu / target),
            Baseline::BacklogPerInstance { target } => {
                self.track(plant, |s, n| s.visible / f64::from(n.max(1)) / target);
            }
            Baseline::Keda { target, in_flight } => self.keda(plant, target, in_flight),
            Baseline::Buildkite => self.buildkite(plant),
            Baseline::Watchbot => self.watchbot(plant),
            Baseline::Knative { target } => self.knative(plant, target),
            Baseline::Laravel { promise } => self.laravel(plant, promise),
            Baseline::DelayedOff { wait_ms } => self.delayed_off(plant, wait_ms),
        }
    }

    fn resize(&mut self, plant: &mut Plant<'_>, desired: u32, grace_ms: u64) {
        if desired != plant.desired {
            self.changed_ms = plant.now_ms;
            plant.set_desired(desired.min(self.instances_max), grace_ms);
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

    fn buildkite(&mut self, plant: &mut Plant<'_>) {
        let (visible, held) = self.poll(plant, 0);
        let wanted = ((visible + held).div_ceil(SLOTS) as u32).min(self.instances_max);
        let cool = self.changed_ms == 0 || plant.now_ms >= self.changed_ms + 300_000;
        if wanted > plant.desired && cool {
            self.resize(plant, wanted, 0);
        }
        idle_leave(plant, 600_000);
    }

    fn watchbot(&mut self, plant: &mut Plant<'_>) {
        let (visible, held) = self.poll(plant, 0);
        // Both rules fire on a full queue that nobody works; here the first one wins, or nothing
        // would ever boot.
        if visible > 0 {
            let step = (self.instances_max / 10).clamp(1, 100);
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
        let service_s = SERVICE_MEAN_MS / 1000.0;
        let promise_s = (300_000.0 * promise - self.boot_ms).max(10_000.0) / 1000.0;
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

    fn delayed_off(&mut self, plant: &mut Plant<'_>, wait_ms: u64) {
        let (visible, held) = self.poll(plant, 0);
        let wanted = (visible + held).div_ceil(SLOTS) as u32;
        if wanted > plant.desired {
            self.resize(plant, wanted, 0);
        }
        idle_leave(plant, wait_ms);
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
