//! What goes wrong, drawn from a seed: each occasion asks whether it does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weirgate_common::clock;

/// Shared by all that a seed stands for.
#[derive(Clone)]
pub struct Faults(Arc<Mutex<State>>);

struct State {
    rng: SmallRng,
    rate: f64,
    /// From here on nothing goes wrong any more.
    healed_at: Duration,
}

impl Faults {
    /// Nothing ever goes wrong.
    pub fn none() -> Self {
        Self::until(0, 0.0, Duration::ZERO)
    }

    /// Each occasion is taken with probability `rate`, by the clock of [`clock::monotonic`].
    pub fn until(seed: u64, rate: f64, healed_at: Duration) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Faults(Arc::new(Mutex::new(State { rng, rate, healed_at })))
    }

    /// Whether this is an occasion on which something goes wrong.
    pub(super) fn strike(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = state.rate;
        rate > 0.0 && clock::monotonic() < state.healed_at && state.rng.random_bool(rate)
    }

    /// One of so many kinds.
    pub(super) fn kind(&self, count: usize) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rng.random_range(0..count)
    }

    /// The time that an answer takes; none where nothing goes wrong.
    pub(super) async fn delay(&self) {
        let wait = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match state.rate > 0.0 {
                true => Duration::from_millis(state.rng.random_range(1..50)),
                false => return,
            }
        };
        tokio::time::sleep(wait).await;
    }
}
