//! The terminal, or what stands in for one: results on standard output, everything about the
//! way there (progress, warnings, questions) on standard error, so that results can be piped.

use std::io::{self, IsTerminal, Write};

use crate::text::Paint;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// Results are one JSON document (or JSON lines) instead of text.
    pub(crate) json: bool,
    pub(crate) paint: Paint,
    interactive: bool,
}

impl Screen {
    pub(crate) fn new(json: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen {
            json,
            paint: Paint { colour: wanted && !json && io::stdout().is_terminal() },
            interactive: io::stdin().is_terminal() && io::stderr().is_terminal(),
        }
    }

    /// A result. A reader that went away (`weirgate dlq list | head`) is no error.
    pub(crate) fn result(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        match write!(out, "{text}{newline}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    pub(crate) fn json(&self, value: &impl serde::Serialize) -> io::Result<()> {
        self.result(&serde_json::to_string_pretty(value)?)
    }

    /// Something to know that is not the result. There is nobody to tell when this fails.
    pub(crate) fn note(&self, text: &str) {
        self.clear_progress();
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// One line that is overwritten by the next; nothing unless somebody watches.
    pub(crate) fn progress(&self, text: &str) {
        if self.interactive {
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }

    pub(crate) fn clear_progress(&self) {
        if self.interactive {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    /// `None` when there is nobody to ask.
    pub(crate) fn ask(&self, question: &str) -> io::Result<Option<bool>> {
        if !self.interactive || self.json {
            return Ok(None);
        }
        self.clear_progress();
        write!(io::stderr(), "{question} [y/N] ")?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(Some(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")))
    }
}
