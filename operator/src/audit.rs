//! `weirgate audit`: S3 against the ledger against the tables. The proof that every object's rows
//! are in the table exactly once, or that it is dead-lettered, visibly.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use weirgate_common::clock;
use weirgate_common::config::Feed;
use weirgate_common::{aws, ledger::Ledger};

use crate::address::Address;
use crate::inventory::{self, Mismatch, TableReading};
use crate::screen::Screen;
use crate::standing::{Standing, standing};
use crate::text::{Paint, count, one_line, plural};
use crate::world::World;

/// Objects named per kind of finding; JSON has all of them.
const NAMED_MAX: usize = 20;

#[derive(Debug, serde::Serialize)]
struct Audit {
    ok: bool,
    feeds: Vec<FeedAudit>,
    tables: Vec<TableAudit>,
}

#[derive(Debug, Default, serde::Serialize)]
struct FeedAudit {
    feed: String,
    listed: usize,
    settled: usize,
    dead_lettered: Vec<String>,
    discarded: Vec<String>,
    pending: Vec<String>,
    stale: Vec<String>,
    missing: Vec<String>,
}

#[derive(Debug, serde::Serialize)]
struct TableAudit {
    table: String,
    #[serde(flatten)]
    holds: Holds,
}

#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "audit")]
enum Holds {
    Absent,
    WithoutLineage,
    Compared {
        objects: u64,
        rows: u64,
        /// Rows that are missing cannot be told from rows that were written over or deleted.
        by_key: bool,
        mismatches: Vec<Mismatch>,
    },
}

/// True when nothing is missing, extra or different. Feeds of other fleets are left out when one
/// is named.
pub(crate) async fn audit(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    grace: Option<Duration>,
) -> Result<bool> {
    world.fleets(fleet)?;
    let ledger = world.ledger().await?;
    let chosen =
        world.config.feeds.iter().filter(|(_, feed)| fleet.is_none_or(|f| feed.fleet == f));
    let mut feeds = Vec::new();
    let mut tables = BTreeMap::new();
    for (name, feed) in chosen {
        tables.insert(&feed.table, feed.write.is_keyed());
        if feed.objects.is_messages() {
            // Nothing is left of a message to compare the ledger with.
            continue;
        }
        screen.progress(&format!("auditing feed {name}"));
        let grace = grace.unwrap_or_else(|| world.config.fleets[&feed.fleet].freshness);
        feeds.push(audit_feed(world, &ledger, name, feed, grace).await?);
    }
    let mut table_audits = Vec::new();
    for (table, by_key) in tables {
        screen.progress(&format!("auditing table {table}"));
        let holds = match inventory::table_books(&ledger, table, by_key).await? {
            TableReading::Absent => Holds::Absent,
            TableReading::WithoutLineage => Holds::WithoutLineage,
            TableReading::Read(books) => Holds::Compared {
                objects: books.objects,
                rows: books.rows,
                by_key,
                mismatches: books.mismatches,
            },
        };
        table_audits.push(TableAudit { table: table.to_string(), holds });
    }
    ledger.close().await;
    screen.clear_progress();
    let ok = feeds.iter().all(|feed| feed.missing.is_empty() && feed.stale.is_empty())
        && table_audits.iter().all(|table| match &table.holds {
            Holds::Compared { mismatches, .. } => mismatches.is_empty(),
            Holds::Absent | Holds::WithoutLineage => true,
        });
    let audit = Audit { ok, feeds, tables: table_audits };
    if screen.json {
        screen.json(&audit)?;
    } else {
        screen.result(&render(&audit, screen.paint))?;
    }
    Ok(ok)
}

/// The listing comes first: what is committed while it is read is then found in the ledger.
async fn audit_feed(
    world: &World,
    ledger: &Ledger,
    name: &str,
    feed: &Feed,
    grace: Duration,
) -> Result<FeedAudit> {
    let address =
        Address { bucket: feed.objects.bucket().into(), key: feed.objects.prefix().into() };
    let listed = inventory::list(&aws::s3(&world.sdk), &address).await?;
    let books = inventory::books(ledger, name, &address.bucket, &address.key).await?;
    let now = clock::now();
    let mut audit = FeedAudit { feed: name.to_owned(), ..FeedAudit::default() };
    for object in listed {
        if !feed.objects.matches(&address.bucket, &object.key) {
            continue;
        }
        audit.listed += 1;
        let objects = match standing(&object, &address.bucket, &books, now, grace) {
            Standing::Settled => {
                audit.settled += 1;
                continue;
            }
            Standing::DeadLettered => &mut audit.dead_lettered,
            Standing::Discarded => &mut audit.discarded,
            Standing::Pending => &mut audit.pending,
            Standing::Stale => &mut audit.stale,
            Standing::Missing => &mut audit.missing,
        };
        objects.push(format!("s3://{}/{}", address.bucket, object.key));
    }
    Ok(audit)
}

fn render(audit: &Audit, paint: Paint) -> String {
    let mut text = String::new();
    for feed in &audit.feeds {
        let _ = writeln!(
            text,
            "{} {} in S3, {} loaded",
            paint.bold(&format!("feed {}:", feed.feed)),
            plural(feed.listed, "object"),
            count(feed.settled as u64)
        );
        for (objects, what, wrong) in [
            (&feed.missing, "missing: in S3, not in the ledger", true),
            (&feed.stale, "stale: the table holds an older version", true),
            (&feed.dead_lettered, "dead-lettered, see `weirgate dlq list`", false),
            (&feed.discarded, "given up by an operator", false),
            (&feed.pending, "too young to be missing", false),
        ] {
            let lines = objects.iter().map(String::as_str);
            list(&mut text, lines, objects.len(), what, wrong, paint);
        }
    }
    for table in &audit.tables {
        let name = paint.bold(&format!("table {}:", table.table));
        match &table.holds {
            Holds::Absent => {
                let _ = writeln!(text, "{name} nothing was committed to it yet");
            }
            Holds::WithoutLineage => {
                let _ = writeln!(text, "{name} has no column _object, its rows cannot be compared");
            }
            Holds::Compared { objects, rows, by_key, mismatches } => {
                let _ = writeln!(
                    text,
                    "{name} {} with {} in the ledger{}",
                    plural(usize::try_from(*objects).unwrap_or(usize::MAX), "object"),
                    plural(usize::try_from(*rows).unwrap_or(usize::MAX), "row"),
                    match by_key {
                        true =>
                            ", written by key: what is missing cannot be told from what was written over",
                        false => "",
                    }
                );
                let lines: Vec<String> = mismatches.iter().map(describe).collect();
                let what = "different from the ledger";
                list(&mut text, lines.iter().map(String::as_str), lines.len(), what, true, paint);
            }
        }
    }
    text.push_str(&match audit.ok {
        true => paint.green("nothing is missing, extra or different\n"),
        false => paint.red("something is wrong: see above\n"),
    });
    text
}

fn list<'t>(
    text: &mut String,
    lines: impl Iterator<Item = &'t str>,
    total: usize,
    what: &str,
    wrong: bool,
    paint: Paint,
) {
    if total == 0 {
        return;
    }
    let head = format!("  {} {what}", count(total as u64));
    let _ = writeln!(text, "{}", if wrong { paint.red(&head) } else { paint.yellow(&head) });
    for line in lines.take(NAMED_MAX) {
        let _ = writeln!(text, "    {}", one_line(line));
    }
    if total > NAMED_MAX {
        let _ =
            writeln!(text, "    … and {} more (--json has all)", count((total - NAMED_MAX) as u64));
    }
}

fn describe(mismatch: &Mismatch) -> String {
    let Mismatch { id, object, rows_expected, rows_found } = mismatch;
    match object {
        Some(object) => format!(
            "{object} (_object {id}): {} expected, {} found",
            count(*rows_expected),
            count(*rows_found)
        ),
        None => format!("_object {id}: {} of no committed object", count(*rows_found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_reads_like_this() {
        let feed = FeedAudit {
            feed: "imp".into(),
            listed: 1_203,
            settled: 1_200,
            dead_lettered: vec!["s3://b/bad.avro".into()],
            missing: vec!["s3://b/1.avro".into(), "s3://b/2.avro".into()],
            ..FeedAudit::default()
        };
        let mismatches = vec![
            Mismatch {
                id: 7,
                object: Some("s3://b/3.avro".into()),
                rows_expected: 200,
                rows_found: 400,
            },
            Mismatch { id: 9, object: None, rows_expected: 0, rows_found: 5 },
        ];
        let holds = Holds::Compared { objects: 1_200, rows: 240_000, by_key: false, mismatches };
        let tables = vec![
            TableAudit { table: "ads.imp".into(), holds },
            TableAudit {
                table: "ads.user".into(),
                holds: Holds::Compared {
                    objects: 1,
                    rows: 2,
                    by_key: true,
                    mismatches: Vec::new(),
                },
            },
            TableAudit { table: "own".into(), holds: Holds::WithoutLineage },
        ];
        let audit = Audit { ok: false, feeds: vec![feed], tables };
        assert_eq!(
            render(&audit, Paint { colour: false }),
            "\
feed imp: 1,203 objects in S3, 1,200 loaded
  2 missing: in S3, not in the ledger
    s3://b/1.avro
    s3://b/2.avro
  1 dead-lettered, see `weirgate dlq list`
    s3://b/bad.avro
table ads.imp: 1,200 objects with 240,000 rows in the ledger
  2 different from the ledger
    s3://b/3.avro (_object 7): 200 expected, 400 found
    _object 9: 5 of no committed object
table ads.user: 1 object with 2 rows in the ledger, written by key: what is missing cannot be told \
from what was written over
table own: has no column _object, its rows cannot be compared
something is wrong: see above
"
        );
    }
}
