//! Which of two objects is the newer one, as text whose byte order is the order of time.
//!
//! ```text
//! 2026-03-01T12:00:00.000Z/9f86d081884c7d65/0055AED6DCD90281E5
//! time                     bucket and key   sequencer
//! ```
//!
//! Objects are ordered by their time, those of the same millisecond by bucket and key, which means
//! nothing but gives every importer the same order. S3 orders the versions of one key itself: by
//! sequencer, whatever the clocks of its machines said.

use sha2::{Digest, Sha256};
use weirgate_common::clock::Timestamp;
use weirgate_common::config::WriteMode;

use super::Job;
use super::admission::{LedgerRow, is_newer};

/// The version of the object's rows. `ledger` has the rows of the object's bucket and key. An
/// object whose time nobody knows counts as made when it was received.
pub(super) fn version(job: &Job<'_>, ledger: &[LedgerRow]) -> String {
    let object = job.object;
    let sequencer = object.sequencer.as_deref();
    let mut at = object.at.unwrap_or(job.received_at);
    let older = ledger.iter().filter(|row| is_newer(sequencer, row.sequencer.as_deref()));
    let newer = ledger.iter().filter(|row| is_newer(row.sequencer.as_deref(), sequencer));
    // The same time is enough: sequencers then decide.
    at = older.filter_map(|row| row.event_at).fold(at, Timestamp::max);
    at = newer.filter_map(|row| row.event_at).fold(at, Timestamp::min);
    let mut key = Sha256::new();
    key.update(&object.bucket);
    key.update("/");
    key.update(&object.key);
    let key: String = key.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    // Zeros on the right mean nothing; see `sequencer_cmp`.
    let sequencer = sequencer.unwrap_or_default().to_ascii_uppercase();
    format!("{at}/{key}/{}", sequencer.trim_end_matches('0'))
}

/// A version that the ledger knows better: rows are made before the ledger is read.
pub(super) struct Bent {
    pub(super) from: String,
    pub(super) to: String,
}

/// The versions of upserted objects that other versions of their keys bend: hardly ever any.
pub(super) fn bent(jobs: &[Job<'_>], ledger: &[Vec<LedgerRow>]) -> Vec<Bent> {
    let upserts = jobs.iter().zip(ledger).filter(|(job, _)| job.feed.write == WriteMode::Upsert);
    upserts
        .map(|(job, rows)| Bent { from: version(job, &[]), to: version(job, rows) })
        .filter(|bent| bent.from != bent.to)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weirgate_common::config::Config;

    use super::super::admission::RowState;
    use super::*;
    use crate::event::ObjectCreated;

    fn object(key: &str, at: &str, sequencer: &str) -> ObjectCreated {
        ObjectCreated {
            bucket: "b".to_owned(),
            key: key.to_owned(),
            etag: String::new(),
            version_id: None,
            size: None,
            sequencer: (!sequencer.is_empty()).then(|| sequencer.to_owned()),
            at: Timestamp::parse(at),
            content: None,
        }
    }

    fn row(at: &str, sequencer: &str) -> LedgerRow {
        LedgerRow {
            id: 1,
            etag: String::new(),
            sequencer: Some(sequencer.to_owned()),
            state: RowState::Committed,
            event_at: Timestamp::parse(at),
        }
    }

    const NOON: &str = "2026-03-01T12:00:00Z";
    const LATER: &str = "2026-03-01T12:00:00.001Z";

    fn of(object: &ObjectCreated, ledger: &[LedgerRow]) -> String {
        let text = "database = \"sqlite://w.db\"\n\
             [fleet.f]\nqueue = \"https://sqs.eu-west-1.amazonaws.com/1/f\"\n\
             [feed.a]\nfleet = \"f\"\nobjects = \"s3://b/**\"\ntable = \"a\"\n\
             write = \"upsert\"\nkey = [\"id\"]\n";
        let config = Config::parse(text, &BTreeMap::new()).unwrap();
        let job = Job {
            feed_name: "a",
            feed: &config.feeds["a"],
            object,
            object_name: "",
            received_at: Timestamp::from_unix_ms(0),
            worker: "",
        };
        let bent = bent(&[job], &[ledger.to_vec()]);
        let made = version(&job, &[]);
        bent.iter().find(|bent| bent.from == made).map_or(made, |bent| bent.to.clone())
    }

    #[test]
    fn time_orders_objects_and_sequencers_those_of_one_key() {
        let first = of(&object("a", NOON, "0A"), &[]);
        for newer in [object("b", LATER, "01"), object("a", LATER, "0B"), object("a", NOON, "0B")] {
            assert!(of(&newer, &[]) > first, "{newer:?}");
        }
        assert_eq!(of(&object("a", NOON, "0a00"), &[]), first);
        assert!(of(&object("a", "", ""), &[]).starts_with("1970-01-01T00:00:00.000Z/"));
    }

    #[test]
    fn clocks_do_not_overrule_sequencers() {
        // The newer one by sequencer has the older time, and either comes first.
        let (old, new) = (object("a", LATER, "0A"), object("a", NOON, "0B"));
        assert!(of(&new, &[row(LATER, "0A")]) > of(&old, &[]));
        assert!(of(&new, &[]) > of(&old, &[row(NOON, "0B")]));
    }
}
