//! The control plane against fakes of its ports, and the policy against stories and properties.
//! What needs the emulators is tested by the `tests` crate.

mod acting;
mod command;
mod fake;
mod keeping;
mod properties;
mod scenarios;
