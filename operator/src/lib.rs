//! The operator's tool: everything a person does with a Weirgate system, from outside of it.
//!
//! ```text
//! text  screen  address        how things are shown and named
//! standing                     where an object stands: loaded, waiting, refused, missing
//!   └─▶ world                  the configuration, and clients made from it
//!         └─▶ group            the Auto Scaling group, read
//!         └─▶ inventory        what lies in S3, in the ledger, in the tables
//!               └─▶ check      is everything set up so that it can work?
//!               └─▶ status     does it work, and how well?
//!               └─▶ publish    files to S3
//!               └─▶ wait       until everything under a prefix is loaded
//!               └─▶ schema   the DDL a file's schema would run
//!               └─▶ audit      is everything loaded, exactly once?
//!               └─▶ dlq        dead letters: look, understand, replay
//!                     └─▶ cli  the command line over all of them
//! ```
//!
//! A file imports only from files above it. Commands gather what they need into plain values and
//! render those, as text or as JSON; nothing is decided while printing.

mod text;

mod screen;

mod address;

mod standing;

mod world;

mod group;

mod inventory;

mod check;

mod status;

mod publish;

mod wait;

mod schema;

mod audit;

mod dlq;

pub mod cli;
