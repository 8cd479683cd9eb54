//! Avro to rows: container → schema → plan → the sink's wire format.
//!
//! ```text
//! bytes ─▶ container ─▶ codec ─▶ plan ─┬─▶ copy   (PostgreSQL binary COPY tuples)
//!            │ header   (envelope) ─┘  └─▶ cells  (SQLite bindings)
//!            └▶ schema ─▶ table, evolve (DDL)
//! ```
//!
//! A schema pair and a table are compiled once into a [`plan::Plan`]; blocks then go through it in
//! one pass, without intermediate values. Pure code: no I/O, no clock, no panic on any input.

// In reading order: each file uses only those before it. Blank lines keep rustfmt from sorting.
pub mod limits;

mod wire;

pub mod schema;

mod fingerprint;

pub mod container;

pub mod codec;

mod calendar;

pub mod table;

pub mod evolve;

pub mod fault;

mod text;

mod numeric;

mod default;

mod node;

mod resolve;

mod json;

mod mask;

pub mod cells;

pub mod copy;

pub mod constants;

mod step;

pub mod envelope;

pub mod plan;

mod changes;

pub mod rows;

pub mod inline;

pub use resolve::ResolveError;
pub use wire::Flaw;
