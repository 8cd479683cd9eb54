//! The state of one held message.

use std::time::Duration;

use rand::rngs::SmallRng;
use weirgate_common::fault::Fault;

use super::backoff::Backoff;
use super::{Limits, Load, Moment, group};
use crate::failure::Failure;

pub(super) struct Delivery {
    pub(super) tasks: Vec<Task>,
    /// Something else in the message that can never be processed.
    pub(super) unprocessable: Option<Failure>,
    pub(super) receive_count: u32,
    pub(super) received_at: Moment,
    /// From when the current lease counts. Before the first extension: the receipt.
    pub(super) leased_at: Moment,
    /// The span last asked for.
    pub(super) lease: Duration,
    pub(super) extending: bool,
    /// The receipt is stale or at its 12 hours; extending makes no sense any more.
    pub(super) lost: bool,
    pub(super) stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Working,
    /// `due`: when to send; `None` while a send is under way.
    Burying {
        event: Option<usize>,
        attempts: u32,
        failure: Failure,
        tries: u32,
        due: Option<Moment>,
    },
    /// `due`: when to delete at the latest; `None` while a delete is under way.
    Deleting {
        tries: u32,
        due: Option<Moment>,
    },
    Releasing {
        delay: Duration,
        asked: bool,
    },
}

pub(super) struct Task {
    pub(super) load: Load,
    pub(super) state: TaskState,
    /// How many objects may be in its import, itself included.
    pub(super) company: usize,
    /// Failures that count.
    pub(super) attempts: u32,
    pub(super) outages: u32,
    pub(super) waits: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum TaskState {
    Waiting { not_before: Moment },
    Running,
    Settled,
    Failed(Verdict),
}

/// What a failed event asks for. The message as a whole is decided once no event of it is left
/// to do, so that one bad event does not keep its neighbours from being imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Bury { attempts: u32, failure: Failure },
    Release { delay: Duration },
}

impl Stage {
    pub(super) fn burying(
        now: Moment,
        event: Option<usize>,
        attempts: u32,
        failure: Failure,
    ) -> Self {
        Stage::Burying { event, attempts, failure, tries: 0, due: Some(now) }
    }

    pub(super) fn deleting(due: Moment) -> Self {
        Stage::Deleting { tries: 0, due: Some(due) }
    }

    pub(super) fn releasing(delay: Duration) -> Self {
        Stage::Releasing { delay, asked: false }
    }
}

impl Task {
    fn new(load: Load, company: usize, now: Moment) -> Self {
        let state = TaskState::Waiting { not_before: now };
        Task { load, state, company, attempts: 0, outages: 0, waits: 0 }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, TaskState::Running | TaskState::Waiting { .. })
    }

    /// What follows from a failure of its own.
    pub(super) fn failed(
        &mut self,
        now: Moment,
        failure: Failure,
        receive_count: u32,
        limits: &Limits,
        rng: &mut SmallRng,
    ) -> TaskState {
        let release = Backoff::RELEASE.after(receive_count, rng);
        match failure.fault {
            Fault::Outage(_) => {
                self.outages += 1;
                // One object may look like an outage for ever; it must not stop the others.
                match self.outages < limits.attempts_max {
                    true => TaskState::Waiting { not_before: now },
                    false => TaskState::Failed(Verdict::Release { delay: release }),
                }
            }
            Fault::Busy => {
                self.waits += 1;
                let wait = Backoff::BUSY.after(self.waits, rng);
                TaskState::Waiting { not_before: now + wait }
            }
            Fault::Transient => {
                self.attempts += 1;
                let attempts = self.attempts;
                if attempts < limits.attempts_max {
                    let wait = Backoff::RETRY.after(attempts, rng);
                    TaskState::Waiting { not_before: now + wait }
                } else if receive_count >= limits.receives_max {
                    // SQS would move it at the next receive, without a reason.
                    TaskState::Failed(Verdict::Bury { attempts, failure })
                } else {
                    TaskState::Failed(Verdict::Release { delay: release })
                }
            }
            Fault::Permanent => {
                let attempts = self.attempts + 1;
                TaskState::Failed(Verdict::Bury { attempts, failure })
            }
        }
    }
}

impl Delivery {
    pub(super) fn of(
        limits: &Limits,
        now: Moment,
        receive_count: u32,
        loads: Vec<Load>,
        unprocessable: Option<Failure>,
    ) -> Self {
        let company = limits.grouping.objects_max;
        Delivery {
            tasks: loads.into_iter().map(|load| Task::new(load, company, now)).collect(),
            unprocessable,
            receive_count,
            received_at: now,
            leased_at: now,
            lease: limits.lease,
            extending: false,
            lost: false,
            stage: Stage::Working,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.tasks.iter().any(|task| task.state == TaskState::Running)
    }

    /// Moves on from [`Stage::Working`] once nothing is left to do.
    pub(super) fn conclude(&mut self, now: Moment, ack_linger: Duration) {
        if self.stage != Stage::Working || self.tasks.iter().any(Task::is_open) {
            return;
        }
        self.stage = self.verdict(now).unwrap_or(Stage::deleting(now + ack_linger));
    }

    /// The stage that the failed events ask for: a burial outweighs a release, since the copy in
    /// the dead-letter queue brings every event of the message back.
    pub(super) fn verdict(&self, now: Moment) -> Option<Stage> {
        if let Some(failure) = &self.unprocessable {
            return Some(Stage::burying(now, None, 1, failure.clone()));
        }
        let mut release = None;
        for (index, task) in self.tasks.iter().enumerate() {
            match &task.state {
                TaskState::Failed(Verdict::Bury { attempts, failure }) => {
                    return Some(Stage::burying(now, Some(index), *attempts, failure.clone()));
                }
                TaskState::Failed(Verdict::Release { delay }) => {
                    release = release.max(Some(*delay));
                }
                _ => {}
            }
        }
        release.map(Stage::releasing)
    }

    /// All that is left is to tell SQS.
    pub(super) fn is_acknowledged(&self) -> bool {
        matches!(self.stage, Stage::Deleting { .. } | Stage::Releasing { .. })
    }

    /// All that is left of it may be imported with others.
    pub(super) fn is_small(&self, limits: &Limits) -> bool {
        let small = |task: &Task| !task.is_open() || group::is_sociable(limits, task);
        self.stage == Stage::Working && self.tasks.iter().all(small)
    }

    /// Half of the lease is left: time for a second try if the first extension fails.
    pub(super) fn extend_at(&self) -> Moment {
        self.leased_at + self.lease / 2
    }

    /// The new lease counts from the question: SQS restarts its clock later than that, so we
    /// never believe in more than we have.
    pub(super) fn ask_extension(&mut self, now: Moment, lease: Duration) {
        self.extending = true;
        self.lease = lease;
        self.leased_at = now;
    }

    /// Ask again soon; the old lease still has almost half of its span.
    pub(super) fn retry_extension(&mut self, now: Moment) {
        self.leased_at = (now + self.lease / 8).saturating_sub(self.lease / 2);
    }

    /// When something of this delivery is due, its lease aside.
    pub(super) fn wakes(&self, limits: &Limits) -> impl Iterator<Item = Moment> {
        let stage = match &self.stage {
            Stage::Burying { due, .. } | Stage::Deleting { due, .. } => *due,
            Stage::Working | Stage::Releasing { .. } => None,
        };
        let starts = self.tasks.iter().filter_map(|task| match task.state {
            TaskState::Waiting { not_before } => {
                Some([not_before, group::ready_at(limits, task, not_before)])
            }
            _ => None,
        });
        stage.into_iter().chain(starts.flatten())
    }
}
