//! What a fleet's past observations say that the latest one alone does not.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use weirgate_common::clock::Timestamp;

use crate::group::{GroupState, InstanceId, Life};
use crate::observe::Observation;

/// Boot time until one has been seen: a small machine image with one container.
const BOOT_ASSUMED: Duration = Duration::from_secs(60);

/// Boots remembered. Enough for a percentile, few enough to follow a new image.
const BOOTS_MAX: usize = 20;

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
    service: Option<Duration>,
    boots: VecDeque<Duration>,
    /// Instances whose arrival was seen and whose first report is awaited.
    arriving: BTreeMap<InstanceId, Timestamp>,
    /// Instances of the last known group state.
    seen: Option<Vec<InstanceId>>,
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
        self.learn_service(observation);
        if let Some(group) = observation.group.known() {
            self.desired = Some(group.desired);
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

    pub fn desired(&self) -> Option<u32> {
        self.desired
    }

    /// Mean service time of one message, remembered while there is nobody to report it.
    pub fn service(&self) -> Option<Duration> {
        self.service
    }

    /// From an instance's appearance in the group to its importer's first report: the 90th
    /// percentile of the latest boots.
    pub fn boot(&self) -> Duration {
        let mut boots: Vec<Duration> = self.boots.iter().copied().collect();
        boots.sort_unstable();
        boots.get((boots.len() * 9).div_ceil(10).max(1) - 1).copied().unwrap_or(BOOT_ASSUMED)
    }

    fn learn_service(&mut self, observation: &Observation) {
        let workers = observation.fresh_workers(observation.at);
        let (mut total_ms, mut done) = (0u128, 0u128);
        for report in workers.values().filter(|report| report.service_ms > 0) {
            // A worker with a longer record speaks with more weight.
            let weight = u128::from(report.done.max(1));
            total_ms += u128::from(report.service_ms) * weight;
            done += weight;
        }
        if let Some(mean_ms) = total_ms.checked_div(done) {
            let mean_ms = u64::try_from(mean_ms).unwrap_or(u64::MAX);
            self.service = Some(Duration::from_millis(mean_ms));
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
