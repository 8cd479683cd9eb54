//! How long to wait before the next try.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

/// Exponential growth with full jitter over the upper half: a crowd that failed together does
/// not come back together, and nobody comes back at once.
pub(super) struct Backoff {
    first: Duration,
    max: Duration,
}

impl Backoff {
    /// Transient failures, in place.
    pub(super) const RETRY: Backoff =
        Backoff { first: Duration::from_millis(200), max: Duration::from_secs(10) };
    /// Another importer holds the object.
    pub(super) const BUSY: Backoff =
        Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) };
    /// Visibility of a message given back, by receive count.
    pub(super) const RELEASE: Backoff =
        Backoff { first: Duration::from_secs(5), max: Duration::from_secs(900) };
    /// Probes of a dependency that is away. The longest wait bounds how late its return is seen.
    pub(super) const PROBE: Backoff =
        Backoff { first: Duration::from_millis(500), max: Duration::from_secs(5) };

    /// The wait after the `count`th failure, counted from one.
    pub(super) fn after(&self, count: u32, rng: &mut SmallRng) -> Duration {
        let factor = 1u32 << count.saturating_sub(1).min(20);
        let full = self.first.saturating_mul(factor).min(self.max);
        full / 2 + (full / 2).mul_f64(rng.random::<f64>())
    }
}
