//! What the benchmarks share: the data.

mod data;

pub use data::Set;
