//! The live view: a block that is redrawn on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use super::database;
use super::producer::Record;
use super::proof::Check;
use crate::look::{Depth, Group};

/// Between two lines where nothing can be redrawn.
const LINE_PERIOD: Duration = Duration::from_secs(2);

/// One look at the whole line. `None`: not known at the moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) at: Duration,
    pub(super) uploaded: usize,
    pub(super) planned: u64,
    pub(super) queue: Option<Depth>,
    pub(super) dead_letters: Option<u64>,
    pub(super) group: Option<Group>,
    pub(super) running: usize,
    pub(super) booting: usize,
    pub(super) draining: usize,
    pub(super) database: Option<database::Progress>,
    pub(super) rows_expected: u64,
}

#[derive(Debug)]
pub(super) struct View {
    redraws: bool,
    /// Lines on the screen that the next block replaces.
    drawn: usize,
    last_line: Option<Duration>,
}

impl View {
    pub(super) fn new() -> Self {
        Self { redraws: std::io::stdout().is_terminal(), drawn: 0, last_line: None }
    }

    /// Something worth keeping on the screen.
    pub(super) fn event(&mut self, at: Duration, text: &str) {
        let line = format!("{:6.1} s  {text}\n", at.as_secs_f64());
        self.replace(&line, 0);
    }

    pub(super) fn show(&mut self, snapshot: &Snapshot) {
        if self.redraws {
            let block = block(snapshot);
            let lines = block.lines().count();
            self.replace(&block, lines);
            return;
        }
        let due = self.last_line.is_none_or(|last| snapshot.at >= last + LINE_PERIOD);
        if due {
            self.last_line = Some(snapshot.at);
            self.replace(&line(snapshot), 0);
        }
    }

    /// The last block stays on the screen.
    pub(super) fn finish(&mut self) {
        self.drawn = 0;
    }

    /// A reader that went away, such as `head`, is no reason to stop the demo.
    fn replace(&mut self, text: &str, lines: usize) {
        let mut out = std::io::stdout().lock();
        if self.drawn > 0 {
            drop(write!(out, "\x1b[{}F\x1b[J", self.drawn));
        }
        drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
        self.drawn = lines;
    }
}

fn block(s: &Snapshot) -> String {
    let queue = match s.queue {
        Some(q) => {
            format!(
                "{:>6} waiting  {:>5} in flight  {:>4} delayed",
                q.visible, q.in_flight, q.delayed
            )
        }
        None => "   unknown".to_owned(),
    };
    let share = s.database.map_or(0, |d| d.rows) as f64 / s.rows_expected.max(1) as f64;
    let filled = (share.min(1.0) * 30.0) as usize;
    let bar = format!("{}{}", "█".repeat(filled), "░".repeat(30 - filled));
    let (objects, rows, freshness) = database_texts(s);
    format!(
        "\n  {:>5.0} s\n  uploaded    {:>6} of {} objects\n  queue       {queue}\n  dead        {:>6}\n  \
         instances   {:>6} wanted  {:>6} running  {:>4} booting  {} draining\n  committed   {objects:>6} objects  \
         {rows:>8} rows  {bar}\n  freshness   {freshness}\n",
        s.at.as_secs_f64(),
        s.uploaded,
        s.planned,
        unknown(s.dead_letters),
        unknown(s.group.as_ref().map(|g| g.desired)),
        s.running,
        s.booting,
        s.draining,
    )
}

fn line(s: &Snapshot) -> String {
    let queue = match s.queue {
        Some(q) => format!("{}+{}", q.visible, q.in_flight),
        None => "unknown".to_owned(),
    };
    let (objects, rows, freshness) = database_texts(s);
    format!(
        "{:6.1} s  uploaded {}  queue {queue}  dead {}  instances {}/{}  objects {objects}  rows {rows}  \
         freshness {freshness}\n",
        s.at.as_secs_f64(),
        s.uploaded,
        unknown(s.dead_letters),
        s.running,
        unknown(s.group.as_ref().map(|g| g.desired)),
    )
}

fn database_texts(s: &Snapshot) -> (String, String, String) {
    let Some(d) = s.database else { return ("0".to_owned(), "0".to_owned(), "-".to_owned()) };
    let freshness = match (d.freshness_median_ms, d.freshness_max_ms) {
        (Some(median), Some(max)) => {
            format!("{:.1} s median, {:.1} s worst", median / 1e3, max / 1e3)
        }
        _ => "-".to_owned(),
    };
    (d.objects.to_string(), d.rows.to_string(), freshness)
}

fn unknown(value: Option<u64>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}

pub(super) fn planned(record: &Record) -> String {
    format!(
        "{} objects, {} rows; {} overwritten, {} notified twice, {} empty, {} corrupt",
        record.uploads.len(),
        record.rows(),
        record.overwritten,
        record.notified_twice,
        record.empty(),
        record.dead_letters().count()
    )
}

pub(super) fn verdict(checks: &[Check]) -> String {
    let mut text = format!("\n  {:<44} {:>22} {:>22}\n", "the proof", "expected", "found");
    for check in checks {
        let mark = if check.holds { "ok" } else { "NOT SO" };
        text.push_str(&format!(
            "  {:<44} {:>22} {:>22}  {mark}\n",
            check.what, check.expected, check.found
        ));
    }
    text
}
