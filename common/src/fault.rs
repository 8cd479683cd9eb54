//! The classes of failure, and what each one asks of whoever meets it.

use std::fmt;

/// How a failure must be treated. Every error that crosses a port maps to exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// May succeed if tried again: retry in place with backoff, then release the message.
    Transient,
    /// Somebody else is working on the same thing. Nobody is at fault: wait and look again.
    Busy,
    /// Will fail the same way every time: dead-letter with the reason, at once.
    Permanent,
    /// A dependency is away. Says nothing about the message: stop receiving, keep leases, probe.
    Outage(Dependency),
}

/// What the data plane depends on; each has its own circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dependency {
    Database,
    ObjectStore,
    Queue,
}

impl Fault {
    /// The word used in logs, metric labels and the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Transient => "transient",
            Fault::Busy => "busy",
            Fault::Permanent => "permanent",
            Fault::Outage(_) => "outage",
        }
    }
}

impl Dependency {
    pub fn as_str(self) -> &'static str {
        match self {
            Dependency::Database => "database",
            Dependency::ObjectStore => "object_store",
            Dependency::Queue => "queue",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error and all it was caused by, on one line: `Display` of our errors never repeats its
/// source, so whoever prints one prints the chain.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Foreign errors do repeat their source; saying it once is enough.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
