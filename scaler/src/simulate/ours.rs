//! Our own policy in the simulated world: the same observation, the same `plan`, as in the
//! service.

use std::collections::VecDeque;

use weirgate_common::clock::Timestamp;
use weirgate_common::ledger::{WorkerReport, WorkerState};
use weirgate_common::queue::Depth;

use super::plant::{Plant, State};
use super::workload::SLOTS;
use crate::group::{GroupState, Instance, InstanceId, Life};
use crate::history::History;
use crate::observe::{FAILURES_SPAN, Observation, Reading};
use crate::policy::{Objective, Step, plan};

/// How old the workers' reports are when a decision is made.
pub(super) const REPORT_AGE_MS: u64 = 3_000;

#[derive(Debug)]
pub(super) struct Running {
    pub(super) objective: Objective,
    history: History,
    /// Simulated indices of the instances, by id.
    reports: Vec<WorkerReport>,
    /// Messages given up so far, at each step of the last [`FAILURES_SPAN`].
    given_up: VecDeque<(Timestamp, u64)>,
}

impl Running {
    pub(super) fn new(objective: Objective) -> Self {
        Running {
            objective,
            history: History::default(),
            reports: Vec::new(),
            given_up: VecDeque::new(),
        }
    }

    /// What the workers write to the ledger.
    pub(super) fn report(&mut self, plant: &Plant<'_>) {
        let time = |ms: u64| Timestamp::from_unix_ms(ms as i64);
        self.reports.clear();
        for i in &plant.alive {
            let it = &plant.instances[*i as usize];
            if !matches!(it.state, State::Running | State::Draining) {
                continue;
            }
            self.reports.push(WorkerReport {
                worker: name(*i),
                fleet: String::new(),
                state: match it.state {
                    State::Draining => WorkerState::Draining,
                    _ => WorkerState::Running,
                },
                slots: SLOTS,
                busy: it.held.len() as u64,
                done: it.done,
                service_ms: it.service_sum_ms.checked_div(it.done).unwrap_or(0),
                oldest_message_at: it.held.iter().map(|held| held.sent_ms).min().map(time),
                started_at: time(it.started_ms),
                reported_at: time(plant.now_ms),
            });
        }
    }

    pub(super) fn step(&mut self, plant: &mut Plant<'_>) {
        let at = Timestamp::from_unix_ms(plant.now_ms as i64);
        let depth = match plant.counters() {
            Some((visible, in_flight)) => Reading::Known(Depth { visible, in_flight, delayed: 0 }),
            None => Reading::Unknown("no answer".to_owned()),
        };
        let instances = plant
            .alive
            .iter()
            .map(|i| Instance {
                id: InstanceId(name(*i)),
                life: match plant.instances[*i as usize].state {
                    State::Booting => Life::Pending,
                    State::Running => Life::InService,
                    State::Draining | State::Gone => Life::Leaving,
                },
                protected: false,
            })
            .collect();
        self.given_up.push_back((at, plant.tally.poisoned + plant.tally.dead_lettered));
        while self.given_up.front().is_some_and(|(then, _)| at.since(*then) > FAILURES_SPAN) {
            self.given_up.pop_front();
        }
        let given_up_lately = match (self.given_up.front(), self.given_up.back()) {
            (Some((_, before)), Some((_, now))) => now - before,
            _ => 0,
        };
        let observation = Observation {
            at,
            depth,
            group: Reading::Known(GroupState {
                desired: plant.desired,
                min: 0,
                max: self.objective.instances_max,
                instances,
                suspended: Default::default(),
                launch_failure: None,
            }),
            workers: Reading::Known(self.reports.clone()),
            // The simulated CloudWatch has no age of the oldest message.
            oldest: Reading::Known(None),
            dead_letters: Reading::Known(given_up_lately),
        };
        self.history.learn(&observation);
        let plan = plan(&self.objective, &self.history, &observation, at);
        self.history.note_wanted(at, plan.report.wanted);
        match plan.step {
            Step::Hold(_) => {}
            Step::Out { to, .. } | Step::Cut { to, .. } => plant.set_desired(to, 0),
            Step::In { .. } => {
                for id in &plan.victims {
                    if let Ok(index) = id.0.trim_start_matches("i-").parse() {
                        plant.terminate(index);
                    }
                }
            }
        }
    }
}

fn name(index: u32) -> String {
    format!("i-{index:07}")
}
