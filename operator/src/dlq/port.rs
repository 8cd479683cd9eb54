//! The dead-letter tools' view of a queue. Semantics are those of SQS: receiving hides, receipts
//! go stale without an error, and every batch answers per entry.

use std::collections::BTreeMap;
use std::time::Duration;

use weirgate_common::queue::{EntryResults, Message, Queue, QueueError};

pub(crate) trait Letterbox {
    /// Up to ten messages, hidden from everybody else for `visibility`. Must not be cancelled.
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError>;

    /// Hides each message for the span from now; zero gives it back.
    async fn change_visibility(&self, receipts: &[(String, Duration)]) -> EntryResults;

    async fn delete(&self, receipts: &[String]) -> EntryResults;

    async fn send(&self, messages: &[(String, BTreeMap<String, String>)]) -> EntryResults;
}

impl Letterbox for Queue {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        Queue::receive(self, weirgate_common::queue::BATCH_MAX, wait, visibility).await
    }

    async fn change_visibility(&self, receipts: &[(String, Duration)]) -> EntryResults {
        Queue::change_visibility(self, receipts).await
    }

    async fn delete(&self, receipts: &[String]) -> EntryResults {
        Queue::delete(self, receipts).await
    }

    async fn send(&self, messages: &[(String, BTreeMap<String, String>)]) -> EntryResults {
        Queue::send(self, messages).await
    }
}
