//! SQS, with all that it is allowed to do: a receipt is worth something until the next receive,
//! deletes with an old one succeed without deleting, and whoever asks too late is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use weirgate_common::clock;
use weirgate_common::queue::{EntryResults, Message, QueueError};
use weirgate_importer::sqs::Mailbox;

use super::Faults;

#[derive(Clone)]
pub struct FakeQueue {
    state: Arc<Mutex<State>>,
    sent: Arc<Notify>,
    faults: Faults,
    /// How often a message is delivered, and where it goes then.
    redrive: Option<(u32, Box<FakeQueue>)>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    next: u64,
    receipts: u64,
}

struct Entry {
    message: Message,
    visible_at: Duration,
}

const URL: &str = "memory://queue";

impl FakeQueue {
    pub fn new(faults: Faults, redrive: Option<(u32, FakeQueue)>) -> Self {
        let redrive = redrive.map(|(receives_max, to)| (receives_max, Box::new(to)));
        FakeQueue { state: Arc::default(), sent: Arc::default(), faults, redrive }
    }

    /// Messages that were not deleted, with their bodies.
    pub fn messages(&self) -> Vec<Message> {
        self.lock().entries.values().map(|entry| entry.message.clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn put(&self, body: String, attributes: BTreeMap<String, String>) {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let message = Message {
            message_id: format!("m{number}"),
            receipt: String::new(),
            body,
            receive_count: 0,
            sent_at: clock::now(),
            attributes,
        };
        let entry = Entry { message, visible_at: clock::monotonic() };
        state.entries.insert(number, entry);
        drop(state);
        self.sent.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is visible now, and when the next message will be.
    fn take(&self, count_max: usize, lease: Duration) -> (Vec<Message>, Option<Duration>) {
        let now = clock::monotonic();
        let (mut taken, mut dead, mut next) = (Vec::new(), Vec::new(), None);
        let mut state = self.lock();
        let State { entries, receipts, .. } = &mut *state;
        for (number, entry) in entries.iter_mut() {
            if taken.len() == count_max {
                break;
            }
            // SQS delivers at least once.
            let again = entry.message.receive_count > 0 && self.faults.strike();
            if entry.visible_at > now && !again {
                next = Some(next.unwrap_or(entry.visible_at).min(entry.visible_at));
                continue;
            }
            let receives_max = self.redrive.as_ref().map_or(u32::MAX, |(max, _)| *max);
            if entry.message.receive_count >= receives_max {
                dead.push(*number);
                continue;
            }
            *receipts += 1;
            entry.message.receipt = format!("{number}-{receipts}");
            entry.message.receive_count += 1;
            entry.visible_at = now + lease;
            taken.push(entry.message.clone());
        }
        for number in dead {
            if let (Some(entry), Some((_, to))) = (entries.remove(&number), &self.redrive) {
                to.put(entry.message.body, entry.message.attributes);
            }
        }
        (taken, next)
    }

    fn refused(&self, call: &'static str, code: &str) -> QueueError {
        QueueError::Entry {
            url: URL.to_owned(),
            call,
            code: code.to_owned(),
            detail: String::new(),
            sender_fault: code != "InternalError",
        }
    }

    /// Does one entry of a batch: with an error in its place, or though it reports one.
    fn entry(
        &self,
        call: &'static str,
        act: impl FnOnce(&mut State) -> Result<(), &'static str>,
    ) -> Result<(), QueueError> {
        let struck = self.faults.strike().then(|| self.faults.kind(2));
        if struck == Some(0) {
            return Err(self.refused(call, "InternalError"));
        }
        let done = act(&mut self.lock());
        match (done, struck) {
            (Err(code), _) => Err(self.refused(call, code)),
            (Ok(()), Some(_)) => Err(self.refused(call, "InternalError")),
            (Ok(()), None) => Ok(()),
        }
    }
}

/// The number of a message, which its receipts begin with.
fn number(receipt: &str) -> Option<u64> {
    receipt.split_once('-')?.0.parse().ok()
}

impl Mailbox for FakeQueue {
    async fn receive(
        &self,
        count_max: usize,
        wait: Duration,
        lease: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.faults.delay().await;
        let until = clock::monotonic() + wait;
        loop {
            let sent = self.sent.notified();
            let (taken, next) = self.take(count_max, lease);
            let now = clock::monotonic();
            if !taken.is_empty() && self.faults.strike() {
                // The reply is lost: the messages are hidden, and nobody has them.
                let (code, detail) = (None, "connection reset".to_owned());
                let call = "ReceiveMessage";
                return Err(QueueError::Call { url: URL.to_owned(), call, code, detail });
            }
            if !taken.is_empty() || now >= until {
                return Ok(taken);
            }
            let next = next.unwrap_or(until).min(until).saturating_sub(now);
            tokio::select! {
                () = sent => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    async fn delete(&self, receipts: &[String]) -> EntryResults {
        self.faults.delay().await;
        let delete = |receipt: &String| {
            self.entry("DeleteMessageBatch", |state| {
                let number = number(receipt).ok_or("ReceiptHandleIsInvalid")?;
                let current = state.entries.get(&number).map(|entry| &entry.message.receipt);
                // A stale receipt is fine and deletes nothing.
                if current == Some(receipt) {
                    state.entries.remove(&number);
                }
                Ok(())
            })
        };
        receipts.iter().map(delete).collect()
    }

    async fn change_visibility(&self, receipts: &[(String, Duration)]) -> EntryResults {
        self.faults.delay().await;
        let now = clock::monotonic();
        let change = |(receipt, span): &(String, Duration)| {
            self.entry("ChangeMessageVisibilityBatch", |state| {
                let number = number(receipt).ok_or("ReceiptHandleIsInvalid")?;
                let entry = state.entries.get_mut(&number).ok_or("InvalidParameterValue")?;
                if entry.message.receipt != *receipt || entry.visible_at <= now {
                    return Err("MessageNotInflight");
                }
                entry.visible_at = now + *span;
                Ok(())
            })
        };
        let results = receipts.iter().map(change).collect();
        self.sent.notify_waiters();
        results
    }

    async fn send(&self, messages: &[(String, BTreeMap<String, String>)]) -> EntryResults {
        self.faults.delay().await;
        let send = |(body, attributes): &(String, BTreeMap<String, String>)| {
            if self.faults.strike() {
                return Err(self.refused("SendMessageBatch", "InternalError"));
            }
            self.put(body.clone(), attributes.clone());
            Ok(())
        };
        messages.iter().map(send).collect()
    }

    async fn answers(&self) -> bool {
        true
    }
}
