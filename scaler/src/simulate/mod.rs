//! `scaler simulate`: policies, ours and others', on the same simulated world.
//!
//! ```text
//! chance      seeded draws
//!   └─▶ workload    what arrives: built-in kinds and recorded traces
//!         └─▶ plant       queue, group, database, event by event; late and noisy readings
//!               ├─▶ bound       what a clairvoyant could not beat
//!               └─▶ ours, baselines   who decides
//!                     └─▶ judge       one run and its score
//!                           └─▶ suite       many runs, medians, tables
//!                                 └─▶ plot        pictures
//! ```

mod baselines;
mod bound;
mod chance;
mod judge;
mod ours;
mod plant;
mod plot;
mod suite;
mod workload;

pub use baselines::Baseline;
pub use judge::{Drawn, Moment, Policy, Score, Trial};
pub use plot::{pareto, timeline};
pub use suite::{Row, Suite, render};
pub use workload::{Kind, SERVICE_MEAN_MS, SLOTS, Trace, TraceError};
