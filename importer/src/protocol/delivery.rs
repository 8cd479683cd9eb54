//! The state of one held message.

use std::time::Duration;

use super::Moment;
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
    pub(super) cost: u64,
    pub(super) state: TaskState,
    /// When it last began to run.
    pub(super) started_at: Moment,
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
    pub(super) fn new(cost: u64, now: Moment) -> Self {
        let state = TaskState::Waiting { not_before: now };
        Task { cost, state, started_at: now, attempts: 0, outages: 0, waits: 0 }
    }

    /// Runs, or would if it could: retries that wait leave their slot to others.
    pub(super) fn wants_slot(&self, now: Moment) -> bool {
        match self.state {
            TaskState::Running => true,
            TaskState::Waiting { not_before } => not_before <= now,
            TaskState::Settled | TaskState::Failed(_) => false,
        }
    }
}

impl Delivery {
    pub(super) fn is_running(&self) -> bool {
        self.tasks.iter().any(|task| task.state == TaskState::Running)
    }

    /// Moves on from [`Stage::Working`] once nothing is left to do.
    pub(super) fn conclude(&mut self, now: Moment, ack_linger: Duration) {
        let done = |task: &Task| matches!(task.state, TaskState::Settled | TaskState::Failed(_));
        if self.stage != Stage::Working || !self.tasks.iter().all(done) {
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
    pub(super) fn wakes(&self) -> impl Iterator<Item = Moment> {
        let stage = match &self.stage {
            Stage::Burying { due, .. } | Stage::Deleting { due, .. } => *due,
            Stage::Working | Stage::Releasing { .. } => None,
        };
        let retries = self.tasks.iter().filter_map(|task| match task.state {
            TaskState::Waiting { not_before } => Some(not_before),
            _ => None,
        });
        stage.into_iter().chain(retries)
    }
}
