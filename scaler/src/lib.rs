//! The control plane: keeps each fleet of importers at the size its freshness objective asks
//! for.
//!
//! ```text
//! group, cloudwatch   the Auto Scaling group and the two ways to change its size; second opinions
//!   └─▶ observe     queue, group and workers at one moment; what fails is unknown, not zero
//!         └─▶ saturation  whether more workers have settled more
//!         └─▶ history     what past observations say that the latest does not
//!         └─▶ report      the account of a decision
//!               └─▶ policy      plan(objective, history, observation, now): the decision, pure
//!                     └─▶ act         carries it out, or finds that it no longer applies
//!                           └─▶ service     one loop per fleet: lease, observe, plan, act, record
//!                                 └─▶ cli         what a person types
//!                     └─▶ simulate    the same plan, and others' rules, in a simulated world
//! ```
//!
//! A file uses only files above it. `saturation`, `history`, `report` and `policy` neither know the time nor ask
//! the network; the same `plan` decides in the service, the simulator and the tests. The law and
//! its figures: `docs/scaling.md`.

pub mod group;

pub mod cloudwatch;

pub mod observe;

pub mod saturation;

pub mod history;

pub mod report;

pub mod policy;

pub mod act;

pub mod service;

pub mod simulate;

pub mod cli;
