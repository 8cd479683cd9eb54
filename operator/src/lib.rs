//! The operator's tool: everything a person does with a Weirgate system, from outside of it.
//!
//! ```text
//! text  screen  address        how things are shown and named
//!   └─▶ world                  the configuration, and clients made from it
//!         └─▶ group            the Auto Scaling group, read
//!         └─▶ dlq              dead letters: look, understand, replay
//!         └─▶ check            is everything set up so that it can work?
//!         └─▶ status           does it work, and how well?
//!         └─▶ publish          files to S3
//!               └─▶ cli        the command line over all of them
//! ```
//!
//! A file imports only from files above it. Commands gather what they need into plain values and
//! render those, as text or as JSON; nothing is decided while printing.

mod text;

mod screen;

mod address;

mod world;

mod group;

mod dlq;

mod check;

mod status;

mod publish;

pub mod cli;
