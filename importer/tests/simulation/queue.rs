//! SQS, with all that it is allowed to do: a receipt is worth something until the next receive,
//! deletes with an old one succeed without deleting, and whoever asks too late is refused.

use std::time::Duration;

use weirgate_common::queue::LEASE_TOTAL_MAX;
use weirgate_importer::protocol::{DeliveryId, Extension};

use super::scenario::Message;

pub(crate) struct Queue {
    pub(crate) messages: Vec<Entry>,
    /// By the number of the delivery.
    deliveries: Vec<usize>,
    receives_max: u32,
}

pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) visible_at: Duration,
    pub(crate) receives: u32,
    /// The only delivery that can still change something.
    pub(crate) receipt: Option<DeliveryId>,
    received_at: Duration,
    /// Copies in the dead-letter queue that carry a reason.
    pub(crate) dead_letters: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Queued,
    Deleted,
    /// In the dead-letter queue by the redrive policy, without a reason.
    Redriven,
}

impl Queue {
    pub(crate) fn new(messages: &[Message], receives_max: u32) -> Self {
        let entry = |message: &Message| Entry {
            place: Place::Queued,
            visible_at: message.visible_at,
            receives: 0,
            receipt: None,
            received_at: Duration::ZERO,
            dead_letters: 0,
        };
        let messages = messages.iter().map(entry).collect();
        Queue { messages, deliveries: Vec::new(), receives_max }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.iter().all(|entry| entry.place != Place::Queued)
    }

    pub(crate) fn message(&self, delivery: DeliveryId) -> usize {
        self.deliveries[delivery.0 as usize]
    }

    /// Delivers a message, or moves it away when it was delivered too often.
    pub(crate) fn receive(
        &mut self,
        message: usize,
        now: Duration,
        lease: Duration,
    ) -> Option<DeliveryId> {
        let entry = &mut self.messages[message];
        assert_eq!(entry.place, Place::Queued);
        if entry.receives >= self.receives_max {
            entry.place = Place::Redriven;
            return None;
        }
        let delivery = DeliveryId(self.deliveries.len() as u64);
        self.deliveries.push(message);
        entry.receives += 1;
        entry.visible_at = now + lease;
        entry.received_at = now;
        entry.receipt = Some(delivery);
        Some(delivery)
    }

    pub(crate) fn change_visibility(
        &mut self,
        delivery: DeliveryId,
        span: Duration,
        now: Duration,
    ) -> Extension {
        let entry = &mut self.messages[self.deliveries[delivery.0 as usize]];
        let current = entry.place == Place::Queued && entry.receipt == Some(delivery);
        if !current || entry.visible_at <= now {
            return Extension::Lost;
        }
        if now + span > entry.received_at + LEASE_TOTAL_MAX {
            return Extension::Failed;
        }
        entry.visible_at = now + span;
        Extension::Granted
    }

    pub(crate) fn delete(&mut self, delivery: DeliveryId) {
        let entry = &mut self.messages[self.deliveries[delivery.0 as usize]];
        if entry.place == Place::Queued && entry.receipt == Some(delivery) {
            entry.place = Place::Deleted;
        }
    }
}
