//! Looking at a queue without losing sight of anything: inspecting *is* receiving, so letters are
//! held under a lease while they are looked at, and given back in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weirgate_common::clock::monotonic;
use weirgate_common::queue::{Message, QueueError};

use super::letter::Letter;
use super::port::Letterbox;

/// How long letters are hidden while they are held. Leases are renewed at half of it, so only a
/// killed program leaves letters hidden, and not for longer than this.
pub(crate) const LEASE: Duration = Duration::from_secs(120);

/// Any wait makes SQS ask all its servers, so a short one finds letters as surely as a long one.
const WAIT: Duration = Duration::from_secs(1);

/// Answers without a letter, after which the queue counts as read: SQS gives empty answers with
/// letters present.
const EMPTY_MAX: u32 = 3;

/// Answers with known letters only, after which the queue counts as read.
const REPEATED_MAX: u32 = 5;

/// Letters held at once: at 64 KiB each the largest memory this tool takes is 640 MiB, and SQS
/// allows 120,000 in flight.
pub(crate) const LETTERS_MAX: usize = 10_000;

/// Set when the user interrupts. Receives are never cancelled; loops ask between two calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Turns Ctrl-C and SIGTERM into an orderly end: what is held is given back.
    pub(crate) fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let stop = Stop::default();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let flag = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            flag.request();
        });
        Ok(stop)
    }

    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Letters held under a lease, in the order they were first seen.
#[derive(Debug)]
pub(crate) struct Held<'b, B> {
    letterbox: &'b B,
    entries: Vec<Entry>,
    index: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Entry {
    letter: Letter,
    /// On the monotonic clock; `None` once given back, deleted or lost.
    hidden_until: Option<Duration>,
}

impl<'b, B: Letterbox> Held<'b, B> {
    /// Receives until the queue has nothing new. On an error everything is given back first.
    pub(crate) async fn gather(
        letterbox: &'b B,
        visible_count: u64,
        stop: &Stop,
        read: impl Fn(Message) -> Letter,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, QueueError> {
        let mut held = Held { letterbox, entries: Vec::new(), index: BTreeMap::new() };
        let (mut empty_count, mut repeated_count) = (0, 0);
        while !stop.requested() && held.entries.len() < LETTERS_MAX {
            // The clock is read before the call: the lease starts within it, never earlier.
            let hidden_until = monotonic() + LEASE;
            let messages = match letterbox.receive(WAIT, LEASE).await {
                Ok(messages) => messages,
                Err(error) => {
                    held.release_all().await;
                    return Err(error);
                }
            };
            if messages.is_empty() {
                empty_count += 1;
                let all_seen = held.entries.len() as u64 >= visible_count;
                if empty_count >= EMPTY_MAX || all_seen {
                    break;
                }
                continue;
            }
            let mut news = false;
            for message in messages {
                news |= held.add(read(message), hidden_until);
            }
            repeated_count = if news { 0 } else { repeated_count + 1 };
            if repeated_count >= REPEATED_MAX {
                break;
            }
            progress(held.entries.len());
            held.renew().await;
        }
        Ok(held)
    }

    /// True when the letter was not known. A known one brings a fresh receipt: the old is stale.
    fn add(&mut self, letter: Letter, hidden_until: Duration) -> bool {
        let entry = Entry { letter, hidden_until: Some(hidden_until) };
        match self.index.get(entry.letter.id()) {
            Some(&known) => {
                self.entries[known] = entry;
                false
            }
            None => {
                self.index.insert(entry.letter.id().to_owned(), self.entries.len());
                self.entries.push(entry);
                true
            }
        }
    }

    pub(crate) fn letters(&self) -> impl Iterator<Item = &Letter> {
        self.entries.iter().map(|entry| &entry.letter)
    }

    pub(crate) fn letter(&self, index: usize) -> &Letter {
        &self.entries[index].letter
    }

    /// Whether we are sure to hold it for a while longer.
    pub(crate) fn holds(&self, index: usize) -> bool {
        self.entries[index].hidden_until.is_some_and(|until| until > monotonic() + LEASE / 4)
    }

    /// Renews the leases that are past their half. One that cannot be renewed is left to end.
    pub(crate) async fn renew(&mut self) {
        let due = monotonic() + LEASE / 2;
        let indexes: Vec<usize> = (0..self.entries.len())
            .filter(|&index| self.entries[index].hidden_until.is_some_and(|until| until < due))
            .collect();
        let hidden_until = monotonic() + LEASE;
        for (index, renewed) in self.change(&indexes, LEASE).await {
            if renewed {
                self.entries[index].hidden_until = Some(hidden_until);
            }
        }
    }

    /// Gives the letters back at once.
    pub(crate) async fn release(&mut self, indexes: &[usize]) {
        // A letter that cannot be given back now comes back when its lease ends.
        self.change(indexes, Duration::ZERO).await;
        for &index in indexes {
            self.entries[index].hidden_until = None;
        }
    }

    pub(crate) async fn release_all(&mut self) {
        let indexes: Vec<usize> = (0..self.entries.len())
            .filter(|&index| self.entries[index].hidden_until.is_some())
            .collect();
        self.release(&indexes).await;
    }

    /// Deletes the letters by their receipts; the results are in the order of the indexes.
    pub(crate) async fn delete(&mut self, indexes: &[usize]) -> Vec<Result<(), QueueError>> {
        let receipts: Vec<String> = indexes.iter().map(|&index| self.receipt(index)).collect();
        let results = self.letterbox.delete(&receipts).await;
        for (&index, result) in indexes.iter().zip(&results) {
            if result.is_ok() {
                self.entries[index].hidden_until = None;
            }
        }
        results
    }

    async fn change(&self, indexes: &[usize], span: Duration) -> Vec<(usize, bool)> {
        let receipts: Vec<(String, Duration)> =
            indexes.iter().map(|&index| (self.receipt(index), span)).collect();
        let results = self.letterbox.change_visibility(&receipts).await;
        indexes.iter().copied().zip(results.iter().map(Result::is_ok)).collect()
    }

    fn receipt(&self, index: usize) -> String {
        self.entries[index].letter.message.receipt.clone()
    }
}
