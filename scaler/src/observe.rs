//! What is known of one fleet at one moment. A source that fails is *unknown*, never zero.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use weirgate_common::clock::{self, Timestamp};
use weirgate_common::ledger::{Ledger, LedgerError, WorkerReport, WorkerState};
use weirgate_common::queue::{Depth, Queue, QueueError};

use crate::cloudwatch::{Aged, Monitor};
use crate::group::{Group, GroupState, InstanceId};

/// One source that has not answered after this long counts as unknown: a decision on what is
/// known is worth more than a late one on everything.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A worker report older than this says nothing about the present.
pub const REPORT_AGE_MAX: Duration = Duration::from_secs(30);

/// Dead letters are counted over this long.
pub const FAILURES_SPAN: Duration = Duration::from_secs(300);

/// The port to a queue's counters.
pub trait Gauge: Send + Sync {
    /// One reading: approximate, up to a minute behind, and not atomic across its numbers.
    fn depth(&self) -> impl Future<Output = Result<Depth, QueueError>> + Send;
}

impl Gauge for Queue {
    async fn depth(&self) -> Result<Depth, QueueError> {
        Queue::depth(self).await
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    pub at: Timestamp,
    pub depth: Reading<Depth>,
    pub group: Reading<GroupState>,
    pub workers: Reading<Vec<WorkerReport>>,
    /// What CloudWatch says of the oldest message, where it says anything: late, and blind to
    /// messages that were received three times, but independent of counters and workers.
    pub oldest: Reading<Option<Aged>>,
    /// Messages dead-lettered in the last [`FAILURES_SPAN`].
    pub dead_letters: Reading<u64>,
}

/// What one source said, or why it said nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading<T> {
    Known(T),
    Unknown(String),
}

impl<T> Reading<T> {
    pub fn known(&self) -> Option<&T> {
        match self {
            Reading::Known(value) => Some(value),
            Reading::Unknown(_) => None,
        }
    }

    pub fn why_unknown(&self) -> Option<&str> {
        match self {
            Reading::Known(_) => None,
            Reading::Unknown(why) => Some(why),
        }
    }
}

impl Observation {
    /// Reports that still say something about `now`, by instance.
    pub fn fresh_workers(&self, now: Timestamp) -> BTreeMap<InstanceId, &WorkerReport> {
        let reports = self.workers.known().map_or(&[][..], Vec::as_slice);
        reports
            .iter()
            .filter(|report| now.since(report.reported_at) <= REPORT_AGE_MAX)
            .filter(|report| report.state != WorkerState::Stopped)
            .map(|report| (InstanceId(report.worker.clone()), report))
            .collect()
    }
}

/// Asks all sources at once. `feeds` are those of the fleet. `at` is the time the questions were put: answers can only be newer.
pub async fn observe(
    fleet: &str,
    feeds: &[String],
    gauge: &impl Gauge,
    group: &impl Group,
    monitor: &impl Monitor,
    ledger: &Ledger,
) -> Observation {
    let at = clock::now();
    let (depth, group, workers, oldest, dead_letters) = tokio::join!(
        answer(gauge.depth()),
        answer(group.describe()),
        answer(ledger.workers(fleet, at.before(REPORT_AGE_MAX))),
        answer(monitor.oldest(at)),
        answer(dead_letters(feeds, at.before(FAILURES_SPAN), ledger)),
    );
    Observation { at, depth, group, workers, oldest, dead_letters }
}

async fn dead_letters(
    feeds: &[String],
    from: Timestamp,
    ledger: &Ledger,
) -> Result<u64, LedgerError> {
    let mut sum = 0;
    for feed in feeds {
        let counts = ledger.failure_counts(feed, from).await?;
        sum += counts.iter().map(|(_, count)| count).sum::<u64>();
    }
    Ok(sum)
}

fn answer<T, E: std::error::Error>(
    question: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Reading<T>> {
    // Boxed: the futures of the AWS SDK are several kilobytes each.
    let question = Box::pin(question);
    async {
        match tokio::time::timeout(ANSWER_MAX, question).await {
            Ok(Ok(value)) => Reading::Known(value),
            Ok(Err(error)) => Reading::Unknown(weirgate_common::fault::chain(&error)),
            Err(_) => Reading::Unknown(format!("no answer within {} s", ANSWER_MAX.as_secs())),
        }
    }
}
