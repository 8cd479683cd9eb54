//! Reading what was imported. Writing it is the import transaction's business alone.

use std::time::Duration;

use sqlx::Row;

use super::{Ledger, LedgerError, on_pool};
use crate::clock::Timestamp;

/// What a feed has loaded so far.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct FeedSummary {
    pub feed: String,
    /// Objects whose rows are in the table now.
    pub objects: u64,
    pub rows: u64,
    pub rejected_rows: u64,
    pub last_commit_at: Option<Timestamp>,
    /// Commit time minus object creation time over the window asked for, sorted ascending.
    #[serde(skip)]
    pub freshness: Vec<Duration>,
}

impl FeedSummary {
    /// The nearest-rank percentile of freshness, `q` in 0..=1; `None` when nothing was
    /// committed in the window.
    pub fn freshness_at(&self, q: f64) -> Option<Duration> {
        let rank = (q * self.freshness.len() as f64).ceil() as usize;
        self.freshness.get(rank.max(1) - 1).copied()
    }
}

impl Ledger {
    /// Totals of one feed, and the freshness of its commits since `window_start`.
    pub async fn feed_summary(
        &self,
        feed: &str,
        window_start: Timestamp,
    ) -> Result<FeedSummary, LedgerError> {
        let failed = |source| LedgerError::Statement { what: "reading the feed's totals", source };
        let totals = self.sql(
            "SELECT count(*), CAST(coalesce(sum(rows), 0) AS bigint),
                    CAST(coalesce(sum(rejected_rows), 0) AS bigint), max(committed_at)
             FROM weirgate.object WHERE feed = $1 AND state = 'committed'",
        );
        let recent = self.sql(
            "SELECT event_at, committed_at FROM weirgate.object
             WHERE feed = $1 AND committed_at >= $2 AND event_at IS NOT NULL",
        );
        on_pool!(self, pool => {
            let row = sqlx::query(&totals).bind(feed).fetch_one(pool).await.map_err(failed)?;
            let times = sqlx::query_as::<_, (Timestamp, Timestamp)>(&recent)
                .bind(feed)
                .bind(window_start)
                .fetch_all(pool)
                .await
                .map_err(failed)?;
            let mut freshness: Vec<Duration> =
                times.into_iter().map(|(event, commit)| commit.since(event)).collect();
            freshness.sort_unstable();
            Ok(FeedSummary {
                feed: feed.to_owned(),
                objects: unsigned(row.try_get(0).map_err(failed)?),
                rows: unsigned(row.try_get(1).map_err(failed)?),
                rejected_rows: unsigned(row.try_get(2).map_err(failed)?),
                last_commit_at: row.try_get(3).map_err(failed)?,
                freshness,
            })
        })
    }
}

/// Counts are never negative; SQL just has no unsigned type.
pub(super) fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut summary = FeedSummary {
            feed: "f".into(),
            objects: 0,
            rows: 0,
            rejected_rows: 0,
            last_commit_at: None,
            freshness: Vec::new(),
        };
        assert_eq!(summary.freshness_at(0.5), None);
        summary.freshness = (1..=10).map(Duration::from_secs).collect();
        assert_eq!(summary.freshness_at(0.0), Some(Duration::from_secs(1)));
        assert_eq!(summary.freshness_at(0.5), Some(Duration::from_secs(5)));
        assert_eq!(summary.freshness_at(0.95), Some(Duration::from_secs(10)));
    }
}
