//! A queue in memory that behaves like SQS where it hurts: receipts go stale in silence, hidden
//! messages come back, batches fail per entry. And what the tools must make of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use weirgate_common::clock::monotonic;
use weirgate_common::dead_letter::{MESSAGE, REASON, REPLAYS};
use weirgate_common::queue::{BATCH_MAX, EntryResults, Message, QueueError};

use super::hold::{Held, LEASE, Stop};
use super::letter::tests::{config, message};
use super::letter::{Letter, Selection};
use super::port::Letterbox;
use super::replay::{Fate, replay};

#[derive(Debug, Default)]
struct FakeQueue {
    messages: RefCell<Vec<Stored>>,
    receipts: Cell<u64>,
    /// Answers without a message, before any with.
    empty_answers: Cell<u32>,
    /// Bodies that this queue refuses to take.
    refused_body: Option<String>,
    /// Deletes that fail before one works.
    delete_failures: Cell<u32>,
    /// What each send took.
    batches: RefCell<Vec<usize>>,
}

#[derive(Debug)]
struct Stored {
    message: Message,
    hidden_until: Duration,
}

impl FakeQueue {
    fn of(messages: impl IntoIterator<Item = Message>) -> Self {
        let queue = FakeQueue::default();
        for message in messages {
            queue.messages.borrow_mut().push(Stored { message, hidden_until: Duration::ZERO });
        }
        queue
    }

    fn visible(&self) -> usize {
        let now = monotonic();
        self.messages.borrow().iter().filter(|stored| stored.hidden_until <= now).count()
    }

    fn bodies(&self) -> Vec<String> {
        self.messages.borrow().iter().map(|stored| stored.message.body.clone()).collect()
    }

    fn refusal() -> QueueError {
        QueueError::Entry {
            url: "fake".into(),
            call: "SendMessageBatch",
            code: "InternalError".into(),
            detail: "try again".into(),
            sender_fault: false,
        }
    }
}

impl Letterbox for FakeQueue {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let empty_count = self.empty_answers.get();
        if empty_count > 0 {
            self.empty_answers.set(empty_count - 1);
            tokio::time::sleep(wait).await;
            return Ok(Vec::new());
        }
        let now = monotonic();
        let mut received = Vec::new();
        for stored in self.messages.borrow_mut().iter_mut() {
            if stored.hidden_until <= now && received.len() < BATCH_MAX {
                self.receipts.set(self.receipts.get() + 1);
                stored.message.receipt = format!("receipt {}", self.receipts.get());
                stored.message.receive_count += 1;
                stored.hidden_until = now + visibility;
                received.push(stored.message.clone());
            }
        }
        if received.is_empty() {
            tokio::time::sleep(wait).await;
        }
        Ok(received)
    }

    async fn change_visibility(&self, receipts: &[(String, Duration)]) -> EntryResults {
        let now = monotonic();
        for (receipt, span) in receipts {
            let mut messages = self.messages.borrow_mut();
            if let Some(stored) = messages.iter_mut().find(|s| s.message.receipt == *receipt) {
                stored.hidden_until = now + *span;
            }
        }
        receipts.iter().map(|_| Ok(())).collect()
    }

    async fn delete(&self, receipts: &[String]) -> EntryResults {
        let failures = self.delete_failures.get();
        if failures > 0 {
            self.delete_failures.set(failures - 1);
            return receipts.iter().map(|_| Err(Self::refusal())).collect();
        }
        // A stale receipt deletes nothing, and says it did.
        self.messages.borrow_mut().retain(|stored| !receipts.contains(&stored.message.receipt));
        receipts.iter().map(|_| Ok(())).collect()
    }

    async fn send(&self, messages: &[(String, BTreeMap<String, String>)]) -> EntryResults {
        self.batches.borrow_mut().push(messages.len());
        let send = |(body, attributes): &(String, BTreeMap<String, String>)| {
            if self.refused_body.as_ref() == Some(body) {
                return Err(Self::refusal());
            }
            let id = format!("new {}", self.messages.borrow().len());
            let attributes: Vec<_> =
                attributes.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let message = message(&id, body, &attributes);
            self.messages.borrow_mut().push(Stored { message, hidden_until: Duration::ZERO });
            Ok(())
        };
        messages.iter().map(send).collect()
    }
}

fn letters(count: usize) -> FakeQueue {
    FakeQueue::of((0..count).map(|n| {
        let attributes = [(REASON, "corrupt_object"), ("traceparent", "00-1")];
        message(&format!("m-{n:03}"), &format!("body {n}"), &attributes)
    }))
}

async fn gather<'q>(queue: &'q FakeQueue, stop: &Stop) -> Held<'q, FakeQueue> {
    let read = |message| Letter::read(message, &config(), "ads");
    let visible = queue.visible() as u64;
    Held::gather(queue, visible, stop, read, |_| {}).await.unwrap()
}

fn all(held: &Held<'_, FakeQueue>) -> Vec<usize> {
    Selection::default().pick(held.letters())
}

#[tokio::test(start_paused = true)]
async fn looking_gives_everything_back() {
    let queue = letters(25);
    queue.empty_answers.set(2);
    let mut held = gather(&queue, &Stop::default()).await;
    assert_eq!(held.letters().count(), 25);
    assert_eq!(queue.visible(), 0);
    held.release_all().await;
    assert_eq!(queue.visible(), 25);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_look_gives_everything_back() {
    let queue = letters(25);
    let stop = Stop::default();
    let read = |message| Letter::read(message, &config(), "ads");
    let mut held = Held::gather(&queue, 25, &stop, read, |_| stop.request()).await.unwrap();
    assert_eq!(held.letters().count(), 10);
    held.release_all().await;
    assert_eq!(queue.visible(), 25);
}

#[tokio::test(start_paused = true)]
async fn a_letter_seen_twice_is_one_letter_with_the_fresh_receipt() {
    let queue = letters(1);
    let mut held = gather(&queue, &Stop::default()).await;
    // The lease ran out, and a second look at the same queue receives the letter again.
    tokio::time::advance(LEASE * 2).await;
    let fresh = queue.receive(Duration::ZERO, LEASE).await.unwrap().remove(0);
    assert_ne!(held.letter(0).message.receipt, fresh.receipt);
    let stale = held.delete(&[0]).await;
    assert!(stale[0].is_ok() && queue.bodies().len() == 1, "SQS says yes and keeps it");
    let mut held = {
        tokio::time::advance(LEASE * 2).await;
        gather(&queue, &Stop::default()).await
    };
    assert!(held.delete(&[0]).await[0].is_ok());
    assert!(queue.bodies().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_replay_moves_what_was_chosen_and_counts_it() {
    let (queue, destination) = (letters(25), FakeQueue::default());
    let stop = Stop::default();
    let mut held = gather(&queue, &stop).await;
    let chosen: Vec<usize> = all(&held).into_iter().take(12).collect();
    let recorded = Cell::new(0);
    let fates = replay(
        &mut held,
        &chosen,
        &destination,
        None,
        &stop,
        async |_: &Letter| {
            recorded.set(recorded.get() + 1);
            Ok(())
        },
        |_| {},
    )
    .await;
    held.release_all().await;
    assert!(fates.iter().all(|fate| *fate == Fate::Replayed), "{fates:?}");
    assert_eq!(recorded.get(), 12);
    assert_eq!(destination.bodies().len(), 12);
    assert_eq!((queue.bodies().len(), queue.visible()), (13, 13));
    let arrived = destination.receive(Duration::ZERO, LEASE).await.unwrap();
    let expected = [("traceparent", "00-1"), (MESSAGE, "m-000"), (REPLAYS, "1")];
    assert_eq!(arrived[0].attributes, expected.map(|(k, v)| (k.into(), v.into())).into());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_sent_is_not_deleted() {
    let queue = letters(3);
    let destination = FakeQueue { refused_body: Some("body 1".into()), ..FakeQueue::default() };
    let stop = Stop::default();
    let mut held = gather(&queue, &stop).await;
    let chosen = all(&held);
    let fates =
        replay(&mut held, &chosen, &destination, None, &stop, async |_: &Letter| Ok(()), |_| {})
            .await;
    held.release_all().await;
    assert!(matches!(fates[..], [Fate::Replayed, Fate::NotSent(_), Fate::Replayed]), "{fates:?}");
    assert_eq!(queue.bodies(), ["body 1"]);
    assert_eq!(queue.visible(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_delete_is_tried_again_then_told() {
    let none = async |_: &Letter| Ok(());
    for (failures, left) in [(2, 0), (9, 2)] {
        let (queue, destination) = (letters(2), FakeQueue::default());
        queue.delete_failures.set(failures);
        let stop = Stop::default();
        let mut held = gather(&queue, &stop).await;
        let chosen = all(&held);
        let fates = replay(&mut held, &chosen, &destination, None, &stop, none, |_| {}).await;
        assert_eq!(destination.bodies().len(), 2, "sent once, whatever becomes of the delete");
        assert_eq!(queue.bodies().len(), left);
        let told = fates.iter().all(|fate| matches!(fate, Fate::SentNotDeleted(_)));
        assert_eq!(told, left > 0, "{fates:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_ledger_does_not_keep_a_sent_letter() {
    let (queue, destination) = (letters(1), FakeQueue::default());
    let stop = Stop::default();
    let mut held = gather(&queue, &stop).await;
    let away = async |_: &Letter| Err("away".to_owned());
    let fates = replay(&mut held, &[0], &destination, None, &stop, away, |_| {}).await;
    assert_eq!(fates, [Fate::ReplayedUnrecorded("away".into())]);
    assert!(queue.bodies().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_replay_keeps_its_leases_and_can_be_interrupted() {
    let (queue, destination) = (letters(20), FakeQueue::default());
    let stop = Stop::default();
    let mut held = gather(&queue, &stop).await;
    let chosen = all(&held);
    // One in 30 seconds would be slower than the lease; one a second over 200 letters is too.
    let rate = std::num::NonZeroU32::new(1);
    let asked = stop.clone();
    let seen = Cell::new(0);
    let started = monotonic();
    let fates = replay(
        &mut held,
        &chosen,
        &destination,
        rate,
        &stop,
        async |_: &Letter| {
            // Slow work in between: three batches outlast a lease.
            tokio::time::sleep(LEASE / 3).await;
            Ok(())
        },
        |done| {
            seen.set(queue.visible());
            if done == 12 {
                asked.request();
            }
        },
    )
    .await;
    held.release_all().await;
    assert!(monotonic() - started > LEASE * 3, "the test must outlast leases");
    assert_eq!(seen.get(), 0, "nothing became visible while it was held");
    assert_eq!(fates.iter().filter(|fate| **fate == Fate::Replayed).count(), 12);
    assert_eq!(fates.iter().filter(|fate| **fate == Fate::Interrupted).count(), 8);
    assert_eq!((queue.visible(), destination.bodies().len()), (8, 12));
    assert!(destination.batches.borrow().iter().all(|&size| size == 1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_left_to_whoever_has_it() {
    let (queue, destination) = (letters(1), FakeQueue::default());
    let stop = Stop::default();
    let mut held = gather(&queue, &stop).await;
    held.release(&[0]).await;
    let fates =
        replay(&mut held, &[0], &destination, None, &stop, async |_: &Letter| Ok(()), |_| {}).await;
    assert_eq!(fates, [Fate::LeaseLost]);
    assert!(destination.bodies().is_empty());
}

#[tokio::test(start_paused = true)]
async fn large_bodies_are_sent_in_small_batches() {
    let large = |n: usize| message(&format!("m-{n}"), &"x".repeat(100 * 1024), &[]);
    let (queue, destination) = (FakeQueue::of((0..5).map(large)), FakeQueue::default());
    let stop = Stop::default();
    let mut held = gather(&queue, &stop).await;
    let chosen = all(&held);
    replay(&mut held, &chosen, &destination, None, &stop, async |_: &Letter| Ok(()), |_| {}).await;
    assert_eq!(*destination.batches.borrow(), [2, 2, 1]);
}
