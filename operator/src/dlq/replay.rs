//! Sending dead letters back to work: send, record, delete, in that order, so that a failure
//! anywhere leaves a letter twice rather than nowhere. The importers' ledger makes twice harmless.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use weirgate_common::clock::monotonic;
use weirgate_common::queue::BATCH_MAX;

use super::hold::{Held, Stop};
use super::letter::Letter;
use super::port::Letterbox;

/// Replays after which a letter is parked: it keeps failing, and each round hides that nothing
/// was fixed.
pub(crate) const REPLAYS_MAX: u32 = 3;

/// Bytes of one send, attributes included. Queues made before 2025 take no more than 256 KiB per
/// call; the rest is room for names and framing.
const BATCH_BYTES_MAX: usize = 240 * 1024;

/// Tries of a delete that SQS refuses in passing.
const DELETE_ATTEMPTS: u32 = 3;

/// What became of one letter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "fate", content = "why")]
pub(crate) enum Fate {
    Replayed,
    /// Back at work, but the ledger does not know.
    ReplayedUnrecorded(String),
    /// Back at work and still in the dead-letter queue.
    SentNotDeleted(String),
    NotSent(String),
    /// Our lease ended before its turn: somebody else may be working on it.
    LeaseLost,
    Interrupted,
}

impl Fate {
    pub(crate) fn is_sent(&self) -> bool {
        match self {
            Fate::Replayed | Fate::ReplayedUnrecorded(_) | Fate::SentNotDeleted(_) => true,
            Fate::NotSent(_) | Fate::LeaseLost | Fate::Interrupted => false,
        }
    }
}

/// Replays the held letters of the given indexes; the fates are in the same order. Letters that
/// were not sent stay held: the caller gives them back.
pub(crate) async fn replay<B: Letterbox>(
    held: &mut Held<'_, B>,
    indexes: &[usize],
    destination: &B,
    rate_max: Option<NonZeroU32>,
    stop: &Stop,
    record: impl AsyncFn(&Letter) -> Result<(), String>,
    mut progress: impl FnMut(usize),
) -> Vec<Fate> {
    let mut fates: BTreeMap<usize, Fate> = BTreeMap::new();
    let mut waiting = indexes;
    while !waiting.is_empty() && !stop.requested() {
        let started = monotonic();
        let (batch, rest) = waiting.split_at(batch_length(held, waiting, rate_max));
        waiting = rest;
        held.renew().await;
        replay_batch(held, batch, destination, &record, &mut fates).await;
        progress(fates.len());
        if let Some(rate) = rate_max
            && !waiting.is_empty()
        {
            let due = Duration::from_secs_f64(batch.len() as f64 / f64::from(rate.get()));
            tokio::time::sleep(due.saturating_sub(monotonic() - started)).await;
        }
    }
    indexes.iter().map(|index| fates.remove(index).unwrap_or(Fate::Interrupted)).collect()
}

/// As many as one call takes, and at least one.
fn batch_length<B: Letterbox>(
    held: &Held<'_, B>,
    waiting: &[usize],
    rate_max: Option<NonZeroU32>,
) -> usize {
    let by_rate = rate_max.map_or(BATCH_MAX, |rate| rate.get() as usize);
    let messages = waiting.iter().take(by_rate).map(|&index| &held.letter(index).message);
    fitting(messages.map(|message| (&message.body, &message.attributes)))
}

/// How many of the messages fit into one call, at least one.
pub(super) fn fitting<'m>(
    messages: impl Iterator<Item = (&'m String, &'m BTreeMap<String, String>)>,
) -> usize {
    let mut bytes = 0;
    let fit = messages.take(BATCH_MAX).take_while(|(body, attributes)| {
        let attributes = attributes.iter().map(|(name, value)| name.len() + value.len());
        bytes += body.len() + attributes.sum::<usize>();
        bytes <= BATCH_BYTES_MAX
    });
    fit.count().max(1)
}

async fn replay_batch<B: Letterbox>(
    held: &mut Held<'_, B>,
    batch: &[usize],
    destination: &B,
    record: &impl AsyncFn(&Letter) -> Result<(), String>,
    fates: &mut BTreeMap<usize, Fate>,
) {
    let (ours, lost): (Vec<usize>, Vec<usize>) =
        batch.iter().partition(|&&index| held.holds(index));
    fates.extend(lost.into_iter().map(|index| (index, Fate::LeaseLost)));

    let messages: Vec<_> = ours
        .iter()
        .map(|&index| held.letter(index))
        .map(|letter| (letter.message.body.clone(), letter.attributes_for_replay()))
        .collect();
    let mut sent = Vec::new();
    for (index, result) in ours.into_iter().zip(destination.send(&messages).await) {
        match result {
            Ok(()) => sent.push(index),
            Err(error) => {
                fates.insert(index, Fate::NotSent(error.to_string()));
            }
        }
    }
    for &index in &sent {
        let fate = match record(held.letter(index)).await {
            Ok(()) => Fate::Replayed,
            Err(error) => Fate::ReplayedUnrecorded(error),
        };
        fates.insert(index, fate);
    }
    for (index, error) in delete(held, sent).await {
        fates.insert(index, Fate::SentNotDeleted(error));
    }
}

/// Deletes with a few tries; returns what could not be deleted, and why.
pub(crate) async fn delete<B: Letterbox>(
    held: &mut Held<'_, B>,
    mut indexes: Vec<usize>,
) -> Vec<(usize, String)> {
    let mut failed = Vec::new();
    for attempt in 0..DELETE_ATTEMPTS {
        if indexes.is_empty() {
            return Vec::new();
        }
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(200) * attempt).await;
        }
        let results = held.delete(&indexes).await;
        failed = indexes
            .iter()
            .zip(results)
            .filter_map(|(&index, result)| Some((index, result.err()?.to_string())))
            .collect();
        indexes = failed.iter().map(|(index, _)| *index).collect();
    }
    failed
}
