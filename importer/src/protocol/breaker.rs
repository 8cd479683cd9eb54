//! One circuit breaker per dependency: while one is open nothing is received and nothing
//! started, leases are kept, and a probe asks from time to time whether it is back.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use weirgate_common::fault::Dependency;

use super::Moment;
use super::backoff::Backoff;

#[derive(Default)]
pub(super) struct Breakers {
    /// Only what is away is listed.
    open: BTreeMap<Dependency, Open>,
}

struct Open {
    failures: u32,
    /// `None` while a probe is under way.
    probe_at: Option<Moment>,
}

impl Breakers {
    pub(super) fn any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Opens it; when it is open already, the probes under way decide.
    pub(super) fn open(&mut self, dependency: Dependency, now: Moment, rng: &mut SmallRng) {
        self.open.entry(dependency).or_insert_with(|| Open {
            failures: 1,
            probe_at: Some(now + Backoff::PROBE.after(1, rng)),
        });
    }

    pub(super) fn probed(
        &mut self,
        dependency: Dependency,
        ok: bool,
        now: Moment,
        rng: &mut SmallRng,
    ) {
        if ok {
            self.open.remove(&dependency);
        } else if let Some(breaker) = self.open.get_mut(&dependency) {
            breaker.failures = breaker.failures.saturating_add(1);
            breaker.probe_at = Some(now + Backoff::PROBE.after(breaker.failures, rng));
        }
    }

    /// Takes the probes that are due; each must be answered with `probed`.
    pub(super) fn probes_due(&mut self, now: Moment) -> Vec<Dependency> {
        let mut due = Vec::new();
        for (dependency, breaker) in &mut self.open {
            if breaker.probe_at.is_some_and(|at| at <= now) {
                breaker.probe_at = None;
                due.push(*dependency);
            }
        }
        due
    }

    pub(super) fn next_probe(&self) -> Option<Moment> {
        self.open.values().filter_map(|breaker| breaker.probe_at).min()
    }
}
