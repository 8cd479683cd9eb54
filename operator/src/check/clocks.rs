//! Clocks that disagree make freshness wrong, and AWS refuse signatures. Pure.

use std::time::Duration;

use weirgate_common::clock::Timestamp;

use super::finding::Finding;
use crate::text::span;

/// Freshness is measured in seconds: this much is lost in the noise.
const SKEW_FINE: Duration = Duration::from_secs(2);

/// AWS refuses requests that are 15 minutes off; leases of the ledger are shorter than this.
const SKEW_MAX: Duration = Duration::from_secs(60);

/// Compares a clock that was read between `before` and `after` of ours.
pub(super) fn compare(
    check: &'static str,
    whose: &str,
    theirs: Timestamp,
    before: Timestamp,
    after: Timestamp,
) -> Finding {
    // One of the two is zero, unless our clock jumped.
    let (ahead, behind) = (theirs.since(after), before.since(theirs));
    let skew = ahead.max(behind);
    if skew <= SKEW_FINE {
        return Finding::ok(check, format!("{whose} agrees with ours"));
    }
    let word = if ahead > behind { "ahead of" } else { "behind" };
    let what = format!("{whose} is {} {word} ours", span(skew));
    let remedy = "synchronise the clocks (chrony or the Amazon Time Sync Service): freshness is \
                  wrong by as much";
    if skew <= SKEW_MAX {
        Finding::warn(check, what, remedy)
    } else {
        Finding::fail(check, what, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_slow_answer_is_no_skew() {
        let at = |seconds: i64| Timestamp::from_unix_ms(seconds * 1_000);
        for (theirs, level) in [
            (at(100), Level::Ok),
            (at(130), Level::Ok),
            (at(99), Level::Ok),
            (at(140), Level::Warn),
            (at(85), Level::Warn),
            (at(300), Level::Fail),
            (at(1), Level::Fail),
        ] {
            assert_eq!(compare("c", "theirs", theirs, at(100), at(130)).level, level, "{theirs}");
        }
        let finding = compare("c", "the database's clock", at(85), at(100), at(130));
        assert_eq!(finding.what, "the database's clock is 15s behind ours");
    }
}
