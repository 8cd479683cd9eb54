//! A classified failure, as it travels from where it happened to the dead-letter queue.

use weirgate_common::fault::Fault;

/// Why an event could not be imported, and what that asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub fault: Fault,
    /// Short and stable, the same for all failures of a kind; operators group and filter by it.
    pub code: &'static str,
    /// What, where, and what to do, for a person.
    pub detail: String,
}

impl Failure {
    pub fn new(fault: Fault, code: &'static str, detail: impl Into<String>) -> Self {
        Failure { fault, code, detail: detail.into() }
    }

    pub fn permanent(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Fault::Permanent, code, detail)
    }
}
