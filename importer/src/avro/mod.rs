//! Avro to rows: container → schema → plan → the sink's wire format.
//!
//! ```text
//! bytes ─▶ container ─▶ codec ─▶ plan ─┬─▶ copy   (PostgreSQL binary COPY tuples)
//!            │ header                  └─▶ cells  (SQLite bindings)
//!            └▶ schema ─▶ table, evolve (DDL)
//! ```
//!
//! A schema pair and a table are compiled once into a [`plan::Plan`]; blocks then go through it in
//! one pass, without intermediate values. Pure code: no I/O, no clock, no panic on any input.

pub mod limits;
mod wire;

mod fingerprint;
pub mod schema;

pub mod codec;
pub mod container;

mod calendar;
pub mod evolve;
pub mod table;

pub mod fault;
mod numeric;
mod text;

mod default;
mod node;
mod resolve;

mod json;
mod mask;

pub mod cells;
pub mod copy;
pub mod plan;

pub use resolve::ResolveError;
pub use wire::Flaw;
