//! What the protocol is told, and what it asks for.

use std::time::Duration;

use weirgate_common::fault::Dependency;
use weirgate_common::queue::BATCH_MAX;

use crate::failure::Failure;

/// Time since the start of the process, by the monotonic clock.
pub type Moment = Duration;

/// One receipt of a message, numbered by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u64);

/// A feed, numbered by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeedId(pub usize);

/// One event of a delivery, for one feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub delivery: DeliveryId,
    pub index: usize,
}

/// One transaction, numbered by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImportId(pub u64);

/// The named limits; each has a reason.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Imports at the same time.
    pub slots: usize,
    /// Bytes of memory that running imports may need together.
    pub bytes_max: u64,
    /// Visibility asked for at receive and at each extension.
    pub lease: Duration,
    /// In-place tries of a transient failure, before the message is given back.
    pub attempts_max: u32,
    /// The queue's `maxReceiveCount`: the last receive at which we can still dead-letter with a
    /// reason, before SQS does it without one.
    pub receives_max: u32,
    pub grouping: Grouping,
    /// Jitter comes from here, so that a run can be repeated.
    pub seed: u64,
}

/// When small objects of one feed share an import: for them the transaction costs more than
/// the rows.
#[derive(Clone, Debug)]
pub struct Grouping {
    /// Objects in one import. Each holds an advisory lock, and PostgreSQL has room for 64 per
    /// connection (`max_locks_per_transaction`).
    pub objects_max: usize,
    /// Memory that they may need together. What needs a quarter of it gains little from company.
    pub bytes_max: u64,
    /// How long an object waits for others while a slot is free.
    pub linger: Duration,
}

impl Default for Grouping {
    fn default() -> Self {
        Grouping { objects_max: 50, bytes_max: 8 << 20, linger: Duration::from_millis(50) }
    }
}

/// A freshly received message, as far as the protocol cares.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub delivery: DeliveryId,
    pub receive_count: u32,
    /// One for each event and feed. Empty: nothing to do but acknowledge.
    pub loads: Vec<Load>,
    /// Something in the message cannot be processed: it is no event, or for no feed.
    pub failure: Option<Failure>,
}

/// What importing one object takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub feed: FeedId,
    /// Bytes of memory.
    pub cost: u64,
}

#[derive(Debug)]
pub enum Input {
    /// Time passed; see [`next_wake`](super::Protocol::next_wake).
    Wake,
    Received(Vec<Arrival>),
    ReceiveFailed,
    Imported(ImportId, Vec<(TaskId, Outcome)>),
    DeadLettered(DeliveryId, bool),
    Deleted(Vec<(DeliveryId, bool)>),
    Extended(Vec<(DeliveryId, Extension)>),
    Released(Vec<DeliveryId>),
    Probed(Dependency, bool),
    /// Finish what can be finished until the moment given, give the rest back.
    Drain(Moment),
}

/// What came of one object of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durably, whether rows were written now, before, or rightly never.
    Settled,
    Failed(Failure),
    /// The transaction failed; nobody knows which of its objects is the cause, if it is one.
    FailedTogether(Failure),
    /// It must be imported alone: it is larger than it looked, or another of its key was there.
    Apart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    Granted,
    /// The receipt is stale: somebody else has, or will get, the message.
    Lost,
    /// No answer; ask again.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Receive {
        count: usize,
    },
    /// Commit these together; all of them are of one feed.
    Import(ImportId, Vec<TaskId>),
    DeadLetter {
        delivery: DeliveryId,
        event: Option<usize>,
        attempts: u32,
        failure: Failure,
    },
    Extend(Vec<(DeliveryId, Duration)>),
    Delete(Vec<DeliveryId>),
    Release(Vec<(DeliveryId, Duration)>),
    Probe(Dependency),
    /// The protocol is done with this delivery.
    Forget(DeliveryId),
    /// Nothing is held any more; the drain is complete.
    Stop,
}

/// What to do now. Dropping it loses messages.
#[must_use]
#[derive(Debug, Default)]
pub struct Effects(pub Vec<Effect>);

impl Effects {
    pub(super) fn batches<T: Clone>(&mut self, entries: Vec<T>, effect: impl Fn(Vec<T>) -> Effect) {
        self.0.extend(entries.chunks(BATCH_MAX).map(|batch| effect(batch.to_vec())));
    }
}
