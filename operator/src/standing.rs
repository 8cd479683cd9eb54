//! How an object in S3 stands: loaded, waiting, refused, or missing. The pure question that
//! `wait` and `audit` share.

use std::collections::BTreeMap;
use std::time::Duration;

use weirgate_common::clock::Timestamp;

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) key: String,
    /// Without quotes, as events and the ledger spell it.
    pub(crate) etag: String,
    pub(crate) modified_at: Timestamp,
}

/// A version of an object as the ledger knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) etag: String,
    pub(crate) state: EntryState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryState {
    Committed,
    Replaced,
    /// Taken out on purpose.
    Retracted,
}

/// What is known about the objects of one feed.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) entries: BTreeMap<String, Vec<Entry>>,
    /// Dead letters that were not replayed, by the object's address as the importer wrote it.
    pub(crate) refusals: BTreeMap<String, Refusal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    pub(crate) last_seen: Timestamp,
    /// Given up by an operator: the letter is not in the queue any more.
    pub(crate) discarded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Its rows are in the table, or were, until a newer version or a retraction took them out.
    Settled,
    /// In the dead-letter queue, with its reason.
    DeadLettered,
    /// Was dead-lettered, then given up by an operator.
    Discarded,
    /// Not loaded, but young enough to be on its way.
    Pending,
    /// An older version is in the table; this one is not, and should be.
    Stale,
    Missing,
}

/// Where the object stands, `grace` being the time that loading may take.
pub(crate) fn standing(
    object: &Listed,
    bucket: &str,
    books: &Books,
    now: Timestamp,
    grace: Duration,
) -> Standing {
    let entries = books.entries.get(&object.key).map_or(&[][..], Vec::as_slice);
    // A replaced version that is listed was overwritten after the listing was made.
    if entries.iter().any(|entry| entry.etag == object.etag) {
        return Standing::Settled;
    }
    match refusal(object, bucket, books) {
        Some(refusal) if refusal.discarded => return Standing::Discarded,
        Some(_) => return Standing::DeadLettered,
        None => {}
    }
    if now.since(object.modified_at) < grace {
        return Standing::Pending;
    }
    match entries.iter().any(|entry| entry.state == EntryState::Committed) {
        true => Standing::Stale,
        false => Standing::Missing,
    }
}

/// The latest refusal; one older than the object was of an earlier version of it.
fn refusal(object: &Listed, bucket: &str, books: &Books) -> Option<Refusal> {
    let address = format!("s3://{bucket}/{}", object.key);
    let names = books.refusals.range(address.clone()..);
    names
        .take_while(|(name, _)| name.starts_with(&address))
        // The importer adds `#version` where the event named one.
        .filter(|(name, _)| matches!(name.as_bytes().get(address.len()), None | Some(b'#')))
        .map(|(_, refusal)| *refusal)
        .filter(|refusal| refusal.last_seen >= object.modified_at)
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_ms(seconds * 1_000)
    }

    fn books(entries: &[(&str, &str, EntryState)], refusals: &[(&str, i64)]) -> Books {
        let mut books = Books::default();
        for (key, etag, state) in entries {
            let entry = Entry { key: (*key).into(), etag: (*etag).into(), state: *state };
            books.entries.entry(entry.key.clone()).or_default().push(entry);
        }
        for (object, seen) in refusals {
            let discarded = object.ends_with("#given-up");
            let refusal = Refusal { last_seen: at(*seen), discarded };
            books.refusals.insert((*object).into(), refusal);
        }
        books
    }

    #[test]
    fn every_standing() {
        use EntryState::{Committed, Replaced, Retracted};
        for (books, now, expected) in [
            (books(&[("k", "2", Committed)], &[]), 1_000, Standing::Settled),
            (books(&[("k", "2", Retracted)], &[]), 1_000, Standing::Settled),
            (books(&[("k", "2", Replaced), ("k", "3", Committed)], &[]), 1_000, Standing::Settled),
            (books(&[("k", "1", Committed)], &[]), 1_000, Standing::Stale),
            (books(&[("k", "1", Replaced)], &[]), 1_000, Standing::Missing),
            (books(&[], &[]), 1_000, Standing::Missing),
            (books(&[], &[]), 110, Standing::Pending),
            (books(&[], &[("s3://b/k", 101)]), 1_000, Standing::DeadLettered),
            (books(&[], &[("s3://b/k#v1", 101)]), 110, Standing::DeadLettered),
            (books(&[], &[("s3://b/k#given-up", 101)]), 1_000, Standing::Discarded),
            (
                books(&[], &[("s3://b/k#given-up", 101), ("s3://b/k", 102)]),
                1_000,
                Standing::DeadLettered,
            ),
            (books(&[], &[("s3://b/k", 99)]), 1_000, Standing::Missing),
            (books(&[], &[("s3://b/k2", 101)]), 1_000, Standing::Missing),
            (books(&[("k", "1", Committed)], &[("s3://b/k", 101)]), 110, Standing::DeadLettered),
        ] {
            let object = Listed { key: "k".into(), etag: "2".into(), modified_at: at(100) };
            assert_eq!(standing(&object, "b", &books, at(now), GRACE), expected, "{books:?}");
        }
    }
}
