//! `weirgate check`: the configuration, then the world it speaks of.
//!
//! ```text
//! finding     what a check says, and how it is shown
//! overlap     can two object patterns take the same object?
//! clocks      do two clocks agree?
//! database  queues  buckets  instances     one part of the world each
//! ```

mod finding;

mod overlap;

mod clocks;

mod database;

mod queues;

mod buckets;

mod instances;

use std::path::Path;

use anyhow::Result;
use weirgate_common::config::{Config, ConfigError};
use weirgate_common::fault::chain;

use crate::screen::Screen;
use crate::text::plural;
use crate::world::World;
use finding::{Finding, Report, Section};
use overlap::overlap;

/// True when nothing fails.
pub(crate) async fn check(world: &World, screen: &Screen, fleet: Option<&str>) -> Result<bool> {
    let fleets = world.fleets(fleet)?;
    let mut sections = vec![configuration(&world.config, &world.config_path)];
    screen.progress("looking at the database");
    sections.extend(database::check(world).await);
    for (name, settings) in fleets {
        screen.progress(&format!("looking at fleet {name}"));
        sections.extend(queues::check(world, name, settings).await);
        sections.extend(instances::check(world, name, settings).await);
    }
    screen.progress("looking at the buckets");
    sections.extend(buckets::check(world, fleet).await);
    screen.clear_progress();
    print(screen, &Report::new(sections))
}

/// A configuration that cannot be used, in the same form as everything else that is wrong.
pub(crate) fn refused(screen: &Screen, path: &Path, error: &ConfigError) -> Result<()> {
    let findings = match error {
        ConfigError::Read { .. } => {
            vec![Finding { remedy: None, ..Finding::fail("configuration", chain(error), "") }]
        }
        ConfigError::Invalid { problems, .. } => problems
            .iter()
            .map(|problem| Finding {
                remedy: None,
                ..Finding::fail("configuration", problem.display(path), "")
            })
            .collect(),
    };
    let subject = format!("configuration {}", path.display());
    print(screen, &Report::new(vec![Section::new(subject, findings)])).map(drop)
}

fn print(screen: &Screen, report: &Report) -> Result<bool> {
    if screen.json {
        screen.json(report)?;
    } else {
        screen.result(&report.render(screen.paint))?;
    }
    Ok(report.ok)
}

/// What a valid file can still mean by mistake.
fn configuration(config: &Config, path: &str) -> Section {
    let mut findings = vec![Finding::ok(
        "configuration",
        format!(
            "valid: {}, {}",
            plural(config.fleets.len(), "fleet"),
            plural(config.feeds.len(), "feed")
        ),
    )];
    let mut fleets = config.fleets.iter();
    while let Some((name, fleet)) = fleets.next() {
        for (other, _) in fleets.clone().filter(|(_, other)| other.queue == fleet.queue) {
            findings.push(Finding::fail(
                "shared_queue",
                format!("fleets {name} and {other} work the same queue: each dead-letters the other's objects"),
                "give each fleet a queue of its own, or make them one fleet",
            ));
        }
        if !config.feeds.values().any(|feed| &feed.fleet == name) {
            findings.push(Finding::warn(
                "idle_fleet",
                format!("fleet {name} has no feed: every object it hears of is dead-lettered"),
                format!("add a [feed.NAME] with fleet = \"{name}\""),
            ));
        }
    }
    let mut feeds = config.feeds.iter();
    while let Some((name, feed)) = feeds.next() {
        let shares = |other: &weirgate_common::config::Feed| {
            overlap(&feed.objects.to_string(), &other.objects.to_string())
        };
        for (other_name, other) in feeds.clone().filter(|(_, other)| shares(other)) {
            findings.push(match feed.table == other.table {
                true => Finding::fail(
                    "overlapping_feeds",
                    format!("feeds {name} and {other_name} load the same objects into the same table {}, twice", feed.table),
                    "make their `objects` disjoint, or remove one",
                ),
                false => Finding::warn(
                    "overlapping_feeds",
                    format!("feeds {name} and {other_name} can take the same objects"),
                    "nothing to do if both tables shall have them, else make their `objects` disjoint",
                ),
            });
        }
    }
    Section::new(format!("configuration {path}"), findings)
}

#[cfg(test)]
mod tests {
    use super::finding::Level;
    use super::*;

    #[test]
    fn mistakes_a_valid_file_can_hold() {
        let text = "database = \"sqlite://w.db\"
            [fleet.ads]
            queue = \"https://sqs.eu-west-1.amazonaws.com/1/ads\"
            [fleet.bids]
            queue = \"https://sqs.eu-west-1.amazonaws.com/1/ads\"
            [feed.a]
            fleet = \"ads\"
            objects = \"s3://b/imp/**.avro\"
            table = \"imp\"
            [feed.b]
            fleet = \"ads\"
            objects = \"s3://b/imp/dt={dt}/*.avro\"
            table = \"imp\"
            [feed.c]
            fleet = \"ads\"
            objects = \"s3://b/**.avro\"
            table = \"all\"";
        let config = Config::parse(text, &Default::default()).unwrap();
        let found: Vec<_> = configuration(&config, "weirgate.toml")
            .findings
            .into_iter()
            .map(|finding| (finding.level, finding.check))
            .collect();
        assert_eq!(
            found,
            [
                (Level::Ok, "configuration"),
                (Level::Fail, "shared_queue"),
                (Level::Warn, "idle_fleet"),
                (Level::Fail, "overlapping_feeds"),
                (Level::Warn, "overlapping_feeds"),
                (Level::Warn, "overlapping_feeds"),
            ]
        );
    }
}
