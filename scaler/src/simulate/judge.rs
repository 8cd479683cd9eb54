//! One policy on one workload: run it, and say how it did.

use serde::Serialize;

use super::baselines::{self, Baseline, Known};
use super::bound::bound;
use super::chance::Chance;
use super::ours;
use super::plant::{Plant, Settings};
use super::workload::{Kind, SERVICE_MEAN_MS, SLOTS, Window, Workload};
use crate::policy::Objective;

/// Work left over after the workload's span is waited for this long.
const OVERTIME_MS: u64 = 2 * 3_600_000;

pub(super) const OURS: &str = "weirgate";

#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    Weirgate(Objective),
    Baseline(Baseline),
}

impl Policy {
    pub fn name(&self) -> String {
        match self {
            Policy::Weirgate(_) => OURS.to_owned(),
            Policy::Baseline(baseline) => baseline.name(),
        }
    }

    /// Its rule, whatever its knob.
    pub fn rule(&self) -> &'static str {
        match self {
            Policy::Weirgate(_) => OURS,
            Policy::Baseline(baseline) => baseline.rule(),
        }
    }
}

/// The plant and the promise that all policies are judged by.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    pub kind: Kind,
    /// Mean offered load in instances.
    pub load: f64,
    pub boot_ms: f64,
    /// The largest lag of the queue's counters.
    pub lag_ms: u64,
    pub freshness_ms: u64,
    /// Rules that have to be told how long a message takes are told this many times the truth.
    pub service_error: f64,
}

impl Trial {
    /// Eight times the mean load.
    pub fn instances_max(&self) -> u32 {
        (self.load * 8.0).ceil().max(1.0) as u32
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Percent of messages committed after their deadline, or never.
    pub late_percent: f64,
    /// Percent of the work that a clairvoyant with the full fleet could not serve in time.
    pub forced_percent: f64,
    pub p50_s: f64,
    pub p95_s: f64,
    pub p99_s: f64,
    pub max_s: f64,
    pub instance_hours: f64,
    pub bound_hours: f64,
    /// Billed over bound.
    pub cost_ratio: f64,
    /// Changes of direction of the desired size.
    pub reversals_per_hour: f64,
    pub launches: f64,
    pub interrupted: f64,
    pub dead_lettered: f64,
    /// Neither committed nor given up two hours after the end.
    pub unsettled: f64,
}

/// One moment of a run, for plots.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Moment {
    pub at_s: f64,
    pub visible: u64,
    pub running: u32,
    pub desired: u32,
    pub oldest_s: f64,
}

/// A workload drawn for a seed, with its bound, for any number of policies.
#[derive(Debug)]
pub struct Drawn {
    trial: Trial,
    workload: Workload,
    bound_ms: f64,
    late_share: f64,
    peak_load: u32,
    seed: u64,
}

impl Drawn {
    pub fn new(trial: &Trial, seed: u64) -> Self {
        let workload = trial.kind.draw(trial.load, trial.boot_ms, seed);
        let bound = bound(&workload, trial.freshness_ms, trial.boot_ms, trial.instances_max());
        let peak_load = peak_load(&workload).min(trial.instances_max());
        Drawn {
            trial: trial.clone(),
            workload,
            bound_ms: bound.instance_ms,
            late_share: bound.late_share,
            peak_load,
            seed,
        }
    }

    /// Runs the policy; `watch` sees the plant every ten seconds.
    pub fn judge(&self, policy: &Policy, mut watch: impl FnMut(Moment)) -> Score {
        let trial = &self.trial;
        let instances_max = trial.instances_max();
        let from_ms =
            (self.workload.span_ms as f64 * Chance::new(self.seed, 3).between(0.1, 0.9)) as u64;
        let settings = Settings {
            boot_median_ms: trial.boot_ms,
            launch_failures: 0.02,
            lag_max_ms: trial.lag_ms,
            instances_max,
            drain_grace_ms: 300_000,
            no_capacity: Some(Window { from_ms, to_ms: from_ms + 600_000 }),
        };
        let mut plant = Plant::new(&self.workload, settings, self.seed);
        let mut controller = match policy {
            Policy::Weirgate(objective) => {
                Controller::Weirgate(Box::new(ours::Running::new(Objective {
                    instances_max,
                    slots: SLOTS,
                    ..objective.clone()
                })))
            }
            Policy::Baseline(baseline) => {
                let known = Known {
                    instances_max,
                    boot_ms: trial.boot_ms,
                    freshness_ms: trial.freshness_ms as f64,
                    service_ms: SERVICE_MEAN_MS * trial.service_error,
                    peak: self.peak_load,
                };
                Controller::Baseline(
                    baseline.period_ms(),
                    baselines::Running::new(baseline.clone(), known),
                )
            }
        };

        let mut turns = Turns::default();
        let (mut next_ms, mut next_watch_ms) = (10_000, 0);
        let end_ms = self.workload.span_ms + OVERTIME_MS;
        while next_ms < end_ms && (next_ms < self.workload.span_ms || plant.unsettled() > 0) {
            let period_ms = match &mut controller {
                Controller::Weirgate(ours) => {
                    plant.advance(next_ms - ours::REPORT_AGE_MS);
                    ours.report(&plant);
                    plant.advance(next_ms);
                    ours.step(&mut plant);
                    ours.objective.period.as_millis() as u64
                }
                Controller::Baseline(period_ms, baseline) => {
                    plant.advance(next_ms);
                    baseline.step(&mut plant);
                    *period_ms
                }
            };
            turns.note(plant.desired);
            if plant.now_ms >= next_watch_ms {
                next_watch_ms = plant.now_ms + 10_000;
                watch(Moment {
                    at_s: plant.now_ms as f64 / 1000.0,
                    visible: plant.visible(),
                    running: plant.running(),
                    desired: plant.desired,
                    oldest_s: plant.oldest_ms() as f64 / 1000.0,
                });
            }
            next_ms += period_ms;
        }
        plant.close();
        self.score(plant, &turns)
    }

    fn score(&self, mut plant: Plant<'_>, turns: &Turns) -> Score {
        let tally = &plant.tally;
        let ended = tally.sojourns_ms.len() as u64 + tally.poisoned + tally.dead_lettered;
        assert_eq!(
            ended + plant.unsettled(),
            self.workload.messages.len() as u64,
            "the simulated world lost or doubled a message"
        );
        let sojourns = &mut plant.tally.sojourns_ms;
        sojourns.sort_unstable();
        let healthy = self.workload.messages.iter().filter(|m| !m.poison).count();
        let in_time = sojourns.partition_point(|ms| u64::from(*ms) <= self.trial.freshness_ms);
        let at = |q: f64| {
            let rank = (q * sojourns.len() as f64).ceil() as usize;
            sojourns.get(rank.max(1) - 1).map_or(0.0, |ms| f64::from(*ms) / 1000.0)
        };
        let hours = |ms: f64| ms / 3_600_000.0;
        Score {
            late_percent: 100.0 * (healthy - in_time) as f64 / healthy.max(1) as f64,
            forced_percent: 100.0 * self.late_share,
            p50_s: at(0.5),
            p95_s: at(0.95),
            p99_s: at(0.99),
            max_s: at(1.0),
            instance_hours: hours(plant.tally.billed_ms as f64),
            bound_hours: hours(self.bound_ms),
            cost_ratio: plant.tally.billed_ms as f64 / self.bound_ms.max(1.0),
            reversals_per_hour: f64::from(turns.reversals) / hours(plant.now_ms as f64),
            launches: plant.tally.launches as f64,
            interrupted: plant.tally.interrupted as f64,
            dead_lettered: plant.tally.dead_lettered as f64,
            unsettled: plant.unsettled() as f64,
        }
    }
}

enum Controller {
    Weirgate(Box<ours::Running>),
    Baseline(u64, baselines::Running),
}

/// Changes of direction.
#[derive(Default)]
struct Turns {
    desired: u32,
    rising: Option<bool>,
    reversals: u32,
}

impl Turns {
    fn note(&mut self, desired: u32) {
        if desired == self.desired {
            return;
        }
        let rising = desired > self.desired;
        self.reversals += u32::from(self.rising.is_some_and(|was| was != rising));
        (self.rising, self.desired) = (Some(rising), desired);
    }
}

/// Instances that the busiest five minutes need.
fn peak_load(workload: &Workload) -> u32 {
    const SPAN_MS: u64 = 300_000;
    let mut work = vec![0.0; (workload.span_ms / SPAN_MS) as usize + 1];
    for message in &workload.messages {
        work[(u64::from(message.at_ms) / SPAN_MS) as usize] += f64::from(message.service_ms);
    }
    let peak = work.into_iter().fold(0.0, f64::max);
    (peak / SLOTS as f64 / SPAN_MS as f64).ceil() as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::workload::Trace;
    use super::*;

    fn trial(kind: Kind) -> Trial {
        Trial {
            kind,
            load: 5.0,
            boot_ms: 60_000.0,
            lag_ms: 60_000,
            freshness_ms: 300_000,
            service_error: 1.0,
        }
    }

    fn ours() -> Policy {
        Policy::Weirgate(Objective {
            freshness: Duration::from_secs(300),
            instances_min: 0,
            instances_max: 0,
            slots: SLOTS,
            period: Duration::from_secs(10),
            settle: Duration::from_secs(75),
        })
    }

    #[test]
    fn a_seed_tells_the_same_story_twice_and_no_policy_beats_the_bound() {
        let baselines = Baseline::all().into_iter().map(Policy::Baseline);
        for policy in baselines.chain([ours()]) {
            for kind in [Kind::Spike, Kind::Poison, Kind::BrownOut] {
                let drawn = Drawn::new(&trial(kind), 7);
                let score = drawn.judge(&policy, |_| {});
                assert_eq!(score, drawn.judge(&policy, |_| {}), "{}", policy.name());
                assert!(score.cost_ratio >= 1.0 || score.unsettled > 0.0, "{score:?}");
            }
        }
    }

    /// The goals, on what a test has time for; docs/scaling.md has the whole table.
    #[test]
    fn ours_keeps_the_promise_at_little_more_than_the_bound() {
        let text = include_str!("../../tests/it/data/working-day.csv");
        let trace = Trace::parse("working-day", text).unwrap();
        for (kind, cost_ratio_max) in [
            (Kind::Trace(trace), 1.2),
            (Kind::Steady, 1.1),
            (Kind::Step, 1.25),
            (Kind::Spike, 1.4),
            (Kind::Ramp, 1.2),
            (Kind::HeavyTail, 1.5),
            (Kind::Poison, 1.3),
            (Kind::MetricsOutage, 1.3),
        ] {
            for seed in 0..3 {
                let score = Drawn::new(&trial(kind.clone()), seed).judge(&ours(), |_| {});
                let at = format!("{} seed {seed}: {score:?}", kind.name());
                assert!(score.late_percent <= 0.2, "late: {at}");
                assert!(score.cost_ratio <= cost_ratio_max, "dear: {at}");
                assert_eq!(score.interrupted + score.dead_lettered, 0.0, "broken: {at}");
                if kind == Kind::Steady {
                    assert!(score.reversals_per_hour <= 2.0, "restless: {at}");
                }
            }
        }
    }

    #[test]
    fn a_slow_database_is_not_fed_with_instances() {
        for seed in 0..3 {
            let score = Drawn::new(&trial(Kind::BrownOut), seed).judge(&ours(), |_| {});
            assert!(score.cost_ratio <= 1.35, "seed {seed}: {score:?}");
        }
    }

    #[test]
    fn scaling_on_cpu_leaves_before_the_queue_is_empty() {
        let drawn = Drawn::new(&trial(Kind::BrownOut), 1);
        let cpu = drawn.judge(&Policy::Baseline(Baseline::Cpu { target: 0.5 }), |_| {});
        let ours = drawn.judge(&ours(), |_| {});
        assert!(cpu.interrupted > 0.0 && ours.interrupted == 0.0);
        assert!(cpu.late_percent > ours.late_percent);
    }
}
