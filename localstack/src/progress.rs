//! Honest lines about long work: what is being done, and how long the previous step took.

use std::io::Write as _;
use std::sync::mpsc;
use std::time::Duration;

use weirgate_common::clock;

/// Where progress goes. Cheap to clone; every step is one line.
#[derive(Clone, Debug)]
pub enum Progress {
    /// For tests and other callers that have their own way to tell.
    Quiet,
    Stderr,
    /// For a live view, which must not be written into: when it was said, and what.
    Lines(mpsc::Sender<(Duration, String)>),
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
    pub fn begin(&self, what: impl Into<String>) -> Step {
        let what = what.into();
        self.line(&format!("{what} …"));
        self.quietly(what)
    }

    /// A step that is only told once it is done.
    pub fn quietly(&self, what: impl Into<String>) -> Step {
        Step { progress: self.clone(), what: what.into(), started: clock::monotonic() }
    }

    pub fn line(&self, text: &str) {
        match self {
            Progress::Quiet => {}
            // A closed stderr is no reason to fail the work it was told about.
            Progress::Stderr => drop(writeln!(std::io::stderr(), "{text}")),
            Progress::Lines(lines) => drop(lines.send((clock::monotonic(), text.to_owned()))),
        }
    }
}

impl Step {
    pub fn done(self) {
        let took = clock::monotonic().saturating_sub(self.started);
        self.progress.line(&format!("{}: done in {:.1} s", self.what, took.as_secs_f64()));
    }
}

/// To standard output. A reader that closes the pipe early, such as `head`, has what it wanted.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
