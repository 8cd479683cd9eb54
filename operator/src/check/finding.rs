//! What a check found, and how it is shown. Pure.

use crate::text::{Paint, one_line, plural};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    Ok,
    /// Works, but not as well as it could, or could not be looked at.
    Warn,
    /// Does not work, or loses something.
    Fail,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at: a program may key on it.
    pub(super) check: &'static str,
    pub(super) what: String,
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Finding { level: Level::Ok, check, what: what.into(), remedy: None }
    }

    pub(super) fn warn(
        check: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Finding { level: Level::Warn, check, what: what.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn fail(
        check: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Finding { level: Level::Fail, check, what: what.into(), remedy: Some(remedy.into()) }
    }
}

/// The findings about one thing: the database, a queue, a bucket.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Section {
    pub(super) subject: String,
    pub(super) findings: Vec<Finding>,
}

impl Section {
    pub(super) fn new(subject: impl Into<String>, findings: Vec<Finding>) -> Self {
        Section { subject: subject.into(), findings }
    }
}

#[derive(Debug, serde::Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    pub(super) warnings: usize,
    pub(super) failures: usize,
    pub(super) sections: Vec<Section>,
}

impl Report {
    pub(super) fn new(sections: Vec<Section>) -> Self {
        let of = |level| {
            let findings = sections.iter().flat_map(|section| &section.findings);
            findings.filter(|finding| finding.level == level).count()
        };
        let (warnings, failures) = (of(Level::Warn), of(Level::Fail));
        Report { ok: failures == 0, warnings, failures, sections }
    }

    pub(super) fn render(&self, paint: Paint) -> String {
        let mut text = String::new();
        for section in &self.sections {
            text.push_str(&paint.bold(&one_line(&section.subject)));
            text.push('\n');
            for finding in &section.findings {
                let level = match finding.level {
                    Level::Ok => paint.green("ok  "),
                    Level::Warn => paint.yellow("warn"),
                    Level::Fail => paint.red("FAIL"),
                };
                text.push_str(&format!("  {level}  {}\n", one_line(&finding.what)));
                if let Some(remedy) = &finding.remedy {
                    text.push_str(&format!("        → {}\n", one_line(remedy)));
                }
            }
        }
        let verdict = match (self.failures, self.warnings) {
            (0, 0) => paint.green("all is well"),
            (0, warnings) => paint.yellow(&plural(warnings, "warning")),
            (failures, 0) => paint.red(&plural(failures, "failure")),
            (failures, warnings) => paint.red(&format!(
                "{}, {}",
                plural(failures, "failure"),
                plural(warnings, "warning")
            )),
        };
        text.push_str(&verdict);
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_like_this() {
        let report = Report::new(vec![
            Section::new("database sqlite://w.db", vec![Finding::ok("reachable", "reachable")]),
            Section::new(
                "queue ads",
                vec![
                    Finding::warn("region", "no region\nknown", "set AWS_REGION"),
                    Finding::fail("redrive", "no redrive policy", "add one"),
                ],
            ),
        ]);
        assert!(!report.ok);
        assert_eq!(
            report.render(Paint { colour: false }),
            "\
database sqlite://w.db
  ok    reachable
queue ads
  warn  no region known
        → set AWS_REGION
  FAIL  no redrive policy
        → add one
1 failure, 1 warning
"
        );
    }
}
