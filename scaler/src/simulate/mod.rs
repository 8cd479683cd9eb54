//! `scaler simulate`: policies, ours and others', on the same simulated world.
//!
//! ```text
//! chance      seeded draws
//! export      a queue's history as CloudWatch tells it
//!   └─▶ workload    what arrives: built-in kinds and recorded traces
//!         └─▶ plant       queue, group, database, event by event; late and noisy readings
//!               ├─▶ bound       what a clairvoyant could not beat
//!               └─▶ ours, baselines   who decides
//!                     └─▶ judge       one run and its score
//!                           └─▶ suite       many runs, medians
//!                                 ├─▶ tuning      the others at their best
//!                                 │     └─▶ table       text
//!                                 └─▶ plot        pictures
//! ```

mod baselines;
mod bound;
mod chance;
mod export;
mod judge;
mod ours;
mod plant;
mod plot;
mod suite;
mod table;
mod tuning;
mod workload;

pub use baselines::Baseline;
pub use judge::{Drawn, Moment, Policy, Score, Trial};
pub use plot::{pareto, timeline};
pub use suite::{Row, Suite};
pub use table::render;
pub use tuning::tuned;
pub use workload::{Kind, SERVICE_MEAN_MS, SLOTS, Trace, TraceError};
