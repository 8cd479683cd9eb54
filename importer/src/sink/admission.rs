//! The pure decision inside the import transaction: what the ledger says about an object that is
//! about to be imported.

use std::cmp::Ordering;

use weirgate_common::clock::Timestamp;
use weirgate_common::config::WriteMode;

/// A ledger row of the object's feed, bucket and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    pub id: i64,
    pub etag: String,
    pub sequencer: Option<String>,
    pub state: RowState,
    pub event_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    Committed,
    Replaced,
    Retracted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The rows are in the table. The ledger row learns the newer sequencer, when there is one:
    /// else a version between the two could still replace this one.
    AlreadyCommitted { advance_sequencer: Option<i64> },
    /// A newer version of the key is in the table.
    Superseded,
    /// Write the rows in the place of those of the ledger rows named.
    Import { replaces: Vec<i64> },
}

/// Decides from what the ledger holds for the same feed, bucket and key.
pub fn admit(
    mode: WriteMode,
    etag: &str,
    sequencer: Option<&str>,
    ledger: &[LedgerRow],
) -> Admission {
    let committed = || ledger.iter().filter(|row| row.state == RowState::Committed);
    if let Some(row) = committed().find(|row| row.etag == etag) {
        let newer = is_newer(sequencer, row.sequencer.as_deref());
        // A, B, A: what is written again is the newest again, and other objects' rows may have
        // taken the place of its own since.
        if newer && mode == WriteMode::Upsert {
            return Admission::Import { replaces: vec![row.id] };
        }
        return Admission::AlreadyCommitted { advance_sequencer: newer.then_some(row.id) };
    }
    match mode {
        // Append keeps every version once, whichever came first. Among versions written by key the
        // rows themselves tell which is newer.
        WriteMode::Append | WriteMode::Upsert | WriteMode::Cdc => {
            Admission::Import { replaces: Vec::new() }
        }
        WriteMode::Replace => {
            let outdated = |row: &LedgerRow| is_newer(row.sequencer.as_deref(), sequencer);
            // The event of a version that was replaced already, delivered once more. Without
            // sequencers on the newer row (it came from a listing) this is the only sign.
            let replayed = ledger.iter().any(|row| {
                row.state == RowState::Replaced
                    && row.etag == etag
                    && sequencer.is_some()
                    && row.sequencer.as_deref() == sequencer
            });
            if replayed || committed().any(outdated) {
                return Admission::Superseded;
            }
            Admission::Import { replaces: committed().map(|row| row.id).collect() }
        }
    }
}

/// Whether `a` is known to be newer than `b`: unknown is never newer.
pub(super) fn is_newer(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => sequencer_cmp(a, b) == Ordering::Greater,
        (Some(_), None) | (None, _) => false,
    }
}

/// The order S3 defines for sequencers of one key: hexadecimal, the shorter padded with zeros on
/// the right, compared as text ("Event message structure", Amazon S3 User Guide).
pub fn sequencer_cmp(a: &str, b: &str) -> Ordering {
    let length = a.len().max(b.len());
    let padded = |text: &str| {
        let digits = text.bytes().map(|byte| byte.to_ascii_uppercase());
        digits.chain(std::iter::repeat(b'0')).take(length).collect::<Vec<_>>()
    };
    padded(a).cmp(&padded(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, etag: &str, sequencer: Option<&str>, state: RowState) -> LedgerRow {
        LedgerRow {
            id,
            etag: etag.into(),
            sequencer: sequencer.map(str::to_owned),
            state,
            event_at: None,
        }
    }

    #[test]
    fn sequencers_are_padded_on_the_right() {
        for (a, b, order) in [
            ("0A", "0B", Ordering::Less),
            ("0A", "0A00", Ordering::Equal),
            ("0A1", "0A", Ordering::Greater),
            ("0b", "0A", Ordering::Greater),
            ("1", "0FFF", Ordering::Greater),
        ] {
            assert_eq!(sequencer_cmp(a, b), order, "{a} {b}");
            assert_eq!(sequencer_cmp(b, a), order.reverse(), "{b} {a}");
        }
    }

    #[test]
    fn every_case() {
        use Admission::{AlreadyCommitted, Import, Superseded};
        use RowState::{Committed, Replaced, Retracted};
        let import = |replaces: &[i64]| Import { replaces: replaces.to_vec() };
        let known = |advance_sequencer| AlreadyCommitted { advance_sequencer };
        let (replace, append, upsert) = (WriteMode::Replace, WriteMode::Append, WriteMode::Upsert);
        let a1 = row(1, "a", Some("01"), Committed);
        let b2 = row(2, "b", Some("02"), Committed);
        let a1_gone = row(1, "a", Some("01"), Replaced);
        let listed = row(3, "b", None, Committed);
        for (name, mode, etag, sequencer, ledger, expected) in [
            ("first", replace, "a", Some("01"), vec![], import(&[])),
            ("redelivery", replace, "a", Some("01"), vec![a1.clone()], known(None)),
            ("overwrite", replace, "b", Some("02"), vec![a1.clone()], import(&[1])),
            ("late old version", replace, "a", Some("01"), vec![b2.clone()], Superseded),
            (
                "A, B, then A again is a third version",
                replace,
                "a",
                Some("03"),
                vec![a1_gone.clone(), b2.clone()],
                import(&[2]),
            ),
            (
                "a redelivered first A is not",
                replace,
                "a",
                Some("01"),
                vec![a1_gone.clone(), b2.clone()],
                Superseded,
            ),
            (
                "the same content written again",
                replace,
                "a",
                Some("03"),
                vec![a1.clone()],
                known(Some(1)),
            ),
            ("listing of a new version", replace, "b", None, vec![a1.clone()], import(&[1])),
            (
                "redelivery of what a listed version replaced",
                replace,
                "a",
                Some("01"),
                vec![a1_gone, listed],
                Superseded,
            ),
            (
                "retracted, then backfilled",
                replace,
                "a",
                Some("01"),
                vec![row(1, "a", Some("01"), Retracted)],
                import(&[]),
            ),
            ("append keeps both", append, "b", Some("02"), vec![a1.clone()], import(&[])),
            ("append, old one late", append, "a", Some("01"), vec![b2.clone()], import(&[])),
            ("append, redelivery", append, "a", Some("01"), vec![a1.clone()], known(None)),
            ("upsert, old one late", upsert, "a", Some("01"), vec![b2.clone()], import(&[])),
            ("upsert, redelivery", upsert, "a", Some("01"), vec![a1.clone()], known(None)),
            ("upsert, listed again", upsert, "a", None, vec![a1.clone()], known(None)),
            ("upsert, A, B, A", upsert, "a", Some("03"), vec![a1, b2], import(&[1])),
        ] {
            assert_eq!(admit(mode, etag, sequencer, &ledger), expected, "{name}");
        }
    }
}
