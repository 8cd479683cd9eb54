//! Time, read at the edges only. Cores take it as an argument; `clippy.toml` bans every
//! other way to ask for it.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// A point on the wall clock, in whole milliseconds since the Unix epoch.
///
/// Displayed, and stored in SQLite, as ISO 8601 in UTC with exactly three fractional digits,
/// so that text order is time order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

const ISO_MILLIS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Years 0000 to 9999: what [`ISO_MILLIS`] and PostgreSQL both hold.
const MIN_UNIX_MS: i64 = -62_167_219_200_000;
const MAX_UNIX_MS: i64 = 253_402_300_799_999;

impl Timestamp {
    /// From milliseconds since the Unix epoch, clamped to the years 0 to 9999.
    pub fn from_unix_ms(ms: i64) -> Self {
        Timestamp(ms.clamp(MIN_UNIX_MS, MAX_UNIX_MS))
    }

    pub fn unix_ms(self) -> i64 {
        self.0
    }

    /// Parses RFC 3339, the form of `eventTime` in S3 events.
    pub fn parse(text: &str) -> Option<Self> {
        OffsetDateTime::parse(text, &Rfc3339).ok().map(Self::from)
    }

    /// Zero when `earlier` is in fact later: clocks of different machines disagree.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub fn after(self, span: Duration) -> Self {
        Self::from_unix_ms(
            self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    pub fn before(self, span: Duration) -> Self {
        Self::from_unix_ms(
            self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(at: OffsetDateTime) -> Self {
        let ms = at.unix_timestamp_nanos().div_euclid(1_000_000);
        Self::from_unix_ms(i64::try_from(ms).unwrap_or(MAX_UNIX_MS))
    }
}

impl From<Timestamp> for OffsetDateTime {
    fn from(at: Timestamp) -> Self {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000)
            .expect("a Timestamp lies between the years 0 and 9999")
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from(*self).format(ISO_MILLIS).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Timestamp::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not an RFC 3339 time")))
    }
}

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks")]
pub fn now() -> Timestamp {
    Timestamp::from(OffsetDateTime::now_utc())
}

/// Time since this process first asked, from the monotonic clock: what leases and backoff are
/// measured with, since the wall clock may jump.
///
/// It follows tokio's clock, so a test on a paused runtime moves it.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks")]
pub fn monotonic() -> Duration {
    static START: OnceLock<tokio::time::Instant> = OnceLock::new();
    let now = tokio::time::Instant::now();
    now.saturating_duration_since(*START.get_or_init(|| now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_order_is_time_order_and_round_trips() {
        for (text, shown) in [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            ("2026-03-01T12:00:00.5Z", "2026-03-01T12:00:00.500Z"),
            ("2026-03-01T14:00:00.123456+02:00", "2026-03-01T12:00:00.123Z"),
        ] {
            let at = Timestamp::parse(text).unwrap();
            assert_eq!(at.to_string(), shown);
            assert_eq!(Timestamp::parse(shown), Some(at));
        }
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    #[test]
    fn spans_never_go_negative() {
        let early = Timestamp::from_unix_ms(1_000);
        let late = early.after(Duration::from_secs(2));
        assert_eq!(late.since(early), Duration::from_secs(2));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late.before(Duration::from_secs(2)), early);
        assert!(Timestamp::from_unix_ms(i64::MAX).to_string().starts_with("9999-12-31"));
    }
}
