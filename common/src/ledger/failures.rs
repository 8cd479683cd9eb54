//! What went wrong, kept after the message is gone.

use sqlx::Row;

use super::{Ledger, LedgerError, on_pool};
use crate::clock::Timestamp;
use crate::dead_letter;

/// One message's or object's failure.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    pub message_id: String,
    /// `s3://bucket/key`, or empty when the message never got that far.
    pub object: String,
    pub fleet: String,
    /// Empty when no feed takes the object.
    pub feed: String,
    pub class: String,
    /// Short stable code; see the dead-letter attribute of the same name.
    pub reason: String,
    pub detail: String,
    pub attempts: u32,
    pub at: Timestamp,
    pub resolution: Resolution,
}

/// Where the failed message is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    DeadLettered,
    Replayed,
    /// Given up by an operator.
    Discarded,
}

impl Resolution {
    fn as_str(self) -> &'static str {
        match self {
            Resolution::DeadLettered => "dead_lettered",
            Resolution::Replayed => "replayed",
            Resolution::Discarded => "discarded",
        }
    }
}

impl Failure {
    /// See [`dead_letter::fingerprint`].
    pub fn fingerprint(&self) -> String {
        dead_letter::fingerprint(&self.reason, &self.detail, &self.object)
    }
}

impl Ledger {
    /// Adds the failure, or brings the known one of this message and object up to date.
    pub async fn record_failure(&self, failure: &Failure) -> Result<(), LedgerError> {
        let statement = self.sql(
            "INSERT INTO weirgate.failure AS f (message_id, object, fleet, feed, class, reason,
                detail, fingerprint, attempts, first_seen, last_seen, resolution)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11)
             ON CONFLICT (message_id, object) DO UPDATE SET
                class = excluded.class, reason = excluded.reason, detail = excluded.detail,
                fingerprint = excluded.fingerprint, attempts = excluded.attempts,
                last_seen = excluded.last_seen, resolution = excluded.resolution",
        );
        on_pool!(self, pool => sqlx::query(&statement)
            .bind(&failure.message_id)
            .bind(&failure.object)
            .bind(&failure.fleet)
            .bind(&failure.feed)
            .bind(&failure.class)
            .bind(&failure.reason)
            .bind(storable(&failure.detail))
            .bind(storable(&failure.fingerprint()))
            .bind(i64::from(failure.attempts))
            .bind(failure.at)
            .bind(failure.resolution.as_str())
            .execute(pool)
            .await
            .map(drop))
        .map_err(|source| LedgerError::Statement { what: "recording a failure", source })
    }

    /// Failures of a feed by reason since `from`, most frequent first: `(reason, count)`.
    pub async fn failure_counts(
        &self,
        feed: &str,
        from: Timestamp,
    ) -> Result<Vec<(String, u64)>, LedgerError> {
        let failed = |source| LedgerError::Statement { what: "reading failures", source };
        let statement = self.sql(
            "SELECT reason, count(*) FROM weirgate.failure
             WHERE feed = $1 AND last_seen >= $2 AND resolution = 'dead_lettered'
             GROUP BY reason ORDER BY 2 DESC, 1",
        );
        on_pool!(self, pool => {
            let rows = sqlx::query(&statement).bind(feed).bind(from).fetch_all(pool).await;
            rows.map_err(failed)?
                .into_iter()
                .map(|row| Ok((row.try_get(0)?, super::objects::unsigned(row.try_get(1)?))))
                .collect::<Result<_, sqlx::Error>>()
                .map_err(failed)
        })
    }

    /// Moves the failures of an object from one resolution to another, as far as they were seen
    /// until `failed_until`: one that has failed again since, while a replay was under way, is a
    /// dead letter still.
    pub async fn resolve_failures(
        &self,
        object: &str,
        failed_until: Timestamp,
        from: Resolution,
        to: Resolution,
    ) -> Result<(), LedgerError> {
        let statement = self.sql(
            "UPDATE weirgate.failure SET resolution = $4
             WHERE object = $1 AND last_seen <= $2 AND resolution = $3",
        );
        on_pool!(self, pool => {
            sqlx::query(&statement)
                .bind(object)
                .bind(failed_until)
                .bind(from.as_str())
                .bind(to.as_str())
                .execute(pool)
                .await
                .map(drop)
        })
        .map_err(|source| LedgerError::Statement { what: "resolving failures", source })
    }
}

/// PostgreSQL text holds no NUL; error texts may quote one from a hostile file.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
