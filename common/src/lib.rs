//! What the programs of Weirgate must agree on: the contract between the data plane
//! (`importer`), the control plane (`scaler`) and the people (`operator`).
//!
//! ```text
//! clock   fault          time and failure classes: every other file uses them
//!   └─▶ config           weirgate.toml, parsed once into typed values
//!         └─▶ aws        clients, made one way
//!               └─▶ queue        the SQS contract
//!                     └─▶ dead_letter   what a dead letter carries
//!         └─▶ table      the DDL from a feed's table to what a schema wants of it
//!               └─▶ ledger     what was imported, by whom, and what went wrong
//!   └─▶ telemetry        logs, metrics, health
//! ```
//!
//! Nothing lives here that only one program needs.

pub mod clock;
pub mod fault;

pub mod config;

pub mod aws;

pub mod queue;

pub mod dead_letter;

pub mod table;

pub mod ledger;

pub mod telemetry;
