//! Honest lines about long work: what is being done, and how long the previous step took.

use std::io::Write as _;
use std::time::Duration;

use weirgate_common::clock;

/// Where progress goes. Cheap to clone; every step is one line on stderr, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// For tests and other callers that have their own way to tell.
    Quiet,
    Stderr,
}

/// A step under way. Say how it ended with [`Step::done`].
#[derive(Debug)]
#[must_use]
pub struct Step {
    progress: Progress,
    what: String,
    started: Duration,
}

impl Progress {
    /// A step that takes long enough to be announced before it is done.
    pub fn begin(self, what: impl Into<String>) -> Step {
        let what = what.into();
        self.line(&format!("{what} …"));
        self.quietly(what)
    }

    /// A step that is only told once it is done.
    pub fn quietly(self, what: impl Into<String>) -> Step {
        Step { progress: self, what: what.into(), started: clock::monotonic() }
    }

    pub fn line(self, text: &str) {
        match self {
            Progress::Quiet => {}
            // A closed stderr is no reason to fail the work it was told about.
            Progress::Stderr => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }
}

impl Step {
    pub fn done(self) {
        let took = clock::monotonic().saturating_sub(self.started);
        self.progress.line(&format!("{}: done in {:.1} s", self.what, took.as_secs_f64()));
    }
}
