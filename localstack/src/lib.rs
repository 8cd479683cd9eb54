//! The whole of Weirgate on one machine, without Docker, root or an AWS account.
//!
//! ```text
//! layout ─▶ process ─▶ progress ─▶ python      where things live, what runs, what is installed
//!   └─▶ programs ─▶ emulators                  LocalStack, moto, PostgreSQL as child processes
//!         └─▶ stack ─▶ fleet ─▶ world          the templates of infra/, deployed to them
//!               └─▶ launcher, service        processes for the group's instances, and the scaler
//!                     └─▶ demo ─▶ cli         up, down, status, reset, env, demo
//! ```
//!
//! What is tested against a world is what ships: queue, topic, bucket and group come from the
//! CloudFormation templates in `infra/`, and instances are real importer processes.

pub mod layout;
pub mod process;
pub mod progress;

pub mod python;

pub mod programs;

pub mod emulators;

pub mod stack;

pub mod fleet;

pub mod look;

pub mod world;

pub mod launcher;
pub mod service;

pub mod demo;

pub mod cli;
