//! The protocol's effects on SQS, and what came of them.

use std::collections::BTreeMap;
use std::time::Duration;

use weirgate_common::queue::{EntryResults, Message, Queue, QueueError};

use crate::protocol::{DeliveryId, Extension, Input};

/// A queue of messages, with what SQS promises and no more. `Queue` is the real one; tests have
/// another.
pub trait Mailbox: Clone + Send + Sync + 'static {
    /// Waits for the first message. Never cancelled: what it would have returned is hidden until
    /// `lease` has passed.
    fn receive(
        &self,
        count_max: usize,
        wait: Duration,
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Message>, QueueError>> + Send;

    /// With a stale receipt it may succeed and delete nothing.
    fn delete(&self, receipts: &[String]) -> impl Future<Output = EntryResults> + Send;

    fn change_visibility(
        &self,
        receipts: &[(String, Duration)],
    ) -> impl Future<Output = EntryResults> + Send;

    fn send(
        &self,
        messages: &[(String, BTreeMap<String, String>)],
    ) -> impl Future<Output = EntryResults> + Send;

    /// Whether the queue answers at all.
    fn answers(&self) -> impl Future<Output = bool> + Send;
}

impl Mailbox for Queue {
    async fn receive(
        &self,
        count_max: usize,
        wait: Duration,
        lease: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        Queue::receive(self, count_max, wait, lease).await
    }

    async fn delete(&self, receipts: &[String]) -> EntryResults {
        Queue::delete(self, receipts).await
    }

    async fn change_visibility(&self, receipts: &[(String, Duration)]) -> EntryResults {
        Queue::change_visibility(self, receipts).await
    }

    async fn send(&self, messages: &[(String, BTreeMap<String, String>)]) -> EntryResults {
        Queue::send(self, messages).await
    }

    async fn answers(&self) -> bool {
        self.depth().await.is_ok()
    }
}

/// A delivery and the receipt that SQS knows it by.
pub(crate) type Receipt = (DeliveryId, String);

pub(crate) async fn delete(queue: &impl Mailbox, batch: Vec<Receipt>) -> Input {
    let (ids, receipts): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let results = queue.delete(&receipts).await;
    let told = ids.into_iter().zip(results).map(|(id, result)| {
        if let Err(error) = &result {
            tracing::warn!(%error, "delete failed; the message will be tried again or redelivered");
        }
        // A stale receipt will never delete anything: the ledger row is what counts.
        (id, result.as_ref().map_or_else(QueueError::is_stale_receipt, |()| true))
    });
    Input::Deleted(told.collect())
}

pub(crate) async fn extend(queue: &impl Mailbox, batch: Vec<(Receipt, Duration)>) -> Input {
    let (receipts, leases): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let (ids, receipts): (Vec<_>, Vec<_>) = receipts.into_iter().unzip();
    let entries: Vec<_> = receipts.into_iter().zip(leases).collect();
    let results = queue.change_visibility(&entries).await;
    let told = ids.into_iter().zip(results).map(|(id, result)| match result {
        Ok(()) => (id, Extension::Granted),
        Err(error) if error.is_stale_receipt() => {
            tracing::warn!(%error, "lease lost; another importer may take the message");
            (id, Extension::Lost)
        }
        Err(error) => {
            tracing::warn!(%error, "lease not extended; asking again");
            (id, Extension::Failed)
        }
    });
    Input::Extended(told.collect())
}

pub(crate) async fn release(queue: &impl Mailbox, batch: Vec<(Receipt, Duration)>) -> Input {
    let ids = batch.iter().map(|((id, _), _)| *id).collect();
    let entries: Vec<_> = batch.into_iter().map(|((_, receipt), delay)| (receipt, delay)).collect();
    for error in queue.change_visibility(&entries).await.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "release failed; the message comes back when its lease ends");
    }
    Input::Released(ids)
}

/// Sends the original body with its reason; true once SQS has it.
pub(crate) async fn dead_letter(
    queue: &impl Mailbox,
    body: String,
    attributes: BTreeMap<String, String>,
) -> bool {
    match queue.send(&[(body, attributes)]).await.pop() {
        Some(Ok(())) => true,
        Some(Err(error)) => {
            tracing::warn!(%error, "the dead-letter queue did not take the message; trying again");
            false
        }
        None => false,
    }
}
