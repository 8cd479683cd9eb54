//! Many runs: every policy on every workload with the same seeds, told by medians.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use super::judge::{Drawn, Policy, Score, Trial};

#[derive(Clone, Debug, PartialEq)]
pub struct Suite {
    pub trials: Vec<Trial>,
    pub policies: Vec<Policy>,
    pub seeds: u64,
    pub threads: usize,
}

/// One policy on one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub workload: String,
    pub load: f64,
    /// The policy's rule, whatever its knob.
    pub rule: &'static str,
    pub policy: String,
    pub seeds: u64,
    /// Per figure, over the seeds.
    pub median: Score,
    /// 95 % bootstrap interval of the median.
    pub cost_ratio_low: f64,
    pub cost_ratio_high: f64,
    /// The worst seed.
    pub late_percent_max: f64,
    /// Over all seeds together.
    pub interrupted: f64,
    pub dead_lettered: f64,
}

impl Row {
    pub fn is_ours(&self) -> bool {
        self.rule == super::judge::OURS
    }
}

impl Suite {
    /// Runs everything; rows come in order of workload, then policy.
    pub fn run(&self) -> Vec<Row> {
        let jobs: Vec<(usize, u64)> = (0..self.trials.len())
            .flat_map(|trial| (0..self.seeds).map(move |seed| (trial, seed)))
            .collect();
        let next = AtomicUsize::new(0);
        let scores = Mutex::new(vec![Vec::new(); self.trials.len() * self.policies.len()]);
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    while let Some((trial, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let drawn = Drawn::new(&self.trials[*trial], *seed);
                        for (policy, runs) in self.policies.iter().enumerate() {
                            let score = drawn.judge(runs, |_| {});
                            let mut scores =
                                scores.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                            scores[trial * self.policies.len() + policy].push((*seed, score));
                        }
                    }
                });
            }
        });
        let scores = scores.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        scores
            .into_iter()
            .enumerate()
            .map(|(i, mut scores)| {
                // Threads finish in any order; rows must not depend on it.
                scores.sort_by_key(|(seed, _)| *seed);
                let scores: Vec<Score> = scores.into_iter().map(|(_, score)| score).collect();
                let trial = &self.trials[i / self.policies.len()];
                row(trial, &self.policies[i % self.policies.len()], &scores)
            })
            .collect()
    }
}

fn row(trial: &Trial, policy: &Policy, scores: &[Score]) -> Row {
    let all = |figure: fn(&Score) -> f64| -> Vec<f64> { scores.iter().map(figure).collect() };
    let (cost_ratio_low, cost_ratio_high) = bootstrap(&all(|s| s.cost_ratio));
    Row {
        workload: trial.kind.name().to_owned(),
        load: trial.load,
        rule: policy.rule(),
        policy: policy.name(),
        seeds: scores.len() as u64,
        median: Score {
            late_percent: median(all(|s| s.late_percent)),
            forced_percent: median(all(|s| s.forced_percent)),
            p50_s: median(all(|s| s.p50_s)),
            p95_s: median(all(|s| s.p95_s)),
            p99_s: median(all(|s| s.p99_s)),
            max_s: median(all(|s| s.max_s)),
            instance_hours: median(all(|s| s.instance_hours)),
            bound_hours: median(all(|s| s.bound_hours)),
            cost_ratio: median(all(|s| s.cost_ratio)),
            reversals_per_hour: median(all(|s| s.reversals_per_hour)),
            launches: median(all(|s| s.launches)),
            interrupted: median(all(|s| s.interrupted)),
            dead_lettered: median(all(|s| s.dead_lettered)),
            unsettled: median(all(|s| s.unsettled)),
        },
        cost_ratio_low,
        cost_ratio_high,
        late_percent_max: all(|s| s.late_percent).into_iter().fold(0.0, f64::max),
        interrupted: all(|s| s.interrupted).iter().sum(),
        dead_lettered: all(|s| s.dead_lettered).iter().sum(),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Percentile interval of the median from 1,000 resamples, always the same ones.
fn bootstrap(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut chance = super::chance::Chance::new(0, 4);
    let mut medians: Vec<f64> = (0..1_000)
        .map(|_| median(values.iter().map(|_| values[chance.below(values.len())]).collect()))
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    (medians[25], medians[974])
}
