//! `weirgate status`: how fresh the tables are, what waits, who works. Each part is asked for on
//! its own, and what cannot be learned is shown as unknown: unknown is not zero.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use weirgate_common::aws;
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::config::{Feed, Fleet};
use weirgate_common::fault::chain;
use weirgate_common::ledger::{FeedSummary, Ledger, PlanRecord, WorkerReport, WorkerState};
use weirgate_common::queue::Depth;

use crate::group::{self, Group};
use crate::screen::Screen;
use crate::text::{Align, Columns, Paint, count, one_line, plural, span};
use crate::world::World;

/// Workers report every few seconds; one that has been silent this long is gone.
const WORKER_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Something asked of the outside.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Reading<T> {
    Known(T),
    /// Why.
    Unknown(String),
}

impl<T> Reading<T> {
    fn of<E: std::fmt::Display>(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Reading::Known(value),
            Err(why) => Reading::Unknown(why.to_string()),
        }
    }

    fn is_known(&self) -> bool {
        matches!(self, Reading::Known(_))
    }
}

#[derive(Debug, serde::Serialize)]
struct Status {
    at: Timestamp,
    /// Freshness is over the commits of this long.
    window_seconds: u64,
    /// The version of the ledger that all but queues and instances are read from.
    ledger: Reading<i64>,
    fleets: Vec<FleetStatus>,
}

#[derive(Debug, serde::Serialize)]
struct FleetStatus {
    fleet: String,
    objective_seconds: f64,
    backlog: Reading<Depth>,
    dead_letters: Reading<u64>,
    /// `null` when the fleet has no Auto Scaling group.
    instances: Option<Reading<Group>>,
    workers: Reading<Vec<WorkerReport>>,
    plan: Reading<Option<PlanRecord>>,
    feeds: Vec<FeedStatus>,
}

#[derive(Debug, serde::Serialize)]
struct FeedStatus {
    feed: String,
    table: String,
    loaded: Reading<Loaded>,
}

#[derive(Debug, PartialEq, serde::Serialize)]
struct Loaded {
    objects: u64,
    rows: u64,
    rejected_rows: u64,
    last_commit_at: Option<Timestamp>,
    /// `null` when nothing was committed in the window.
    freshness_p50_seconds: Option<f64>,
    freshness_p95_seconds: Option<f64>,
    /// Whether 95 of 100 objects were in time; `null` when nothing was committed in the window.
    objective_met: Option<bool>,
    /// Dead letters not yet replayed, by reason, seen in the window.
    failures: Vec<(String, u64)>,
}

/// True when everything could be read.
pub(crate) async fn status(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    window: Duration,
) -> Result<bool> {
    let now = clock::now();
    let opened = world.ledger().await.map_err(|error| chain(error.as_ref()));
    let reading = Reading::of(opened.as_ref().map(|_| Ledger::version_known()));
    // Told once, not by every part that hangs on it.
    let ledger = opened.map_err(|_| "the ledger cannot be read".to_owned());
    let mut fleets = Vec::new();
    for (name, fleet) in world.fleets(fleet)? {
        fleets.push(fleet_status(world, name, fleet, &ledger, now, window).await);
    }
    let status = Status { at: now, window_seconds: window.as_secs(), ledger: reading, fleets };
    if screen.json {
        screen.json(&status)?;
    } else {
        screen.result(&render(&status, screen.paint))?;
    }
    Ok(status.ledger.is_known() && status.fleets.iter().all(all_known))
}

fn all_known(fleet: &FleetStatus) -> bool {
    fleet.backlog.is_known()
        && fleet.dead_letters.is_known()
        && fleet.instances.as_ref().is_none_or(Reading::is_known)
        && fleet.workers.is_known()
        && fleet.plan.is_known()
        && fleet.feeds.iter().all(|feed| feed.loaded.is_known())
}

async fn fleet_status(
    world: &World,
    name: &str,
    fleet: &Fleet,
    ledger: &Result<Ledger, String>,
    now: Timestamp,
    window: Duration,
) -> FleetStatus {
    let queue = world.queue(fleet);
    let instances = match &fleet.auto_scaling_group {
        Some(group) => {
            let client = aws::auto_scaling(&world.sdk);
            Some(Reading::of(group::describe(&client, group).await))
        }
        None => None,
    };
    let dead_letters = async {
        let letters = queue.dead_letter_queue().await?;
        letters.depth().await.map(Depth::total)
    };
    let since = now.before(WORKER_SILENCE_MAX);
    let (workers, plan) = match ledger {
        Ok(ledger) => (
            Reading::of(ledger.workers(name, since).await.map_err(|e| chain(&e))),
            Reading::of(ledger.latest_plan(name).await.map_err(|e| chain(&e))),
        ),
        Err(why) => (Reading::Unknown(why.clone()), Reading::Unknown(why.clone())),
    };
    let mut feeds = Vec::new();
    for (feed_name, feed) in world.feeds_of(name) {
        feeds.push(feed_status(feed_name, feed, fleet, ledger, now, window).await);
    }
    FleetStatus {
        fleet: name.to_owned(),
        objective_seconds: fleet.freshness.as_secs_f64(),
        backlog: Reading::of(queue.depth().await),
        dead_letters: Reading::of(dead_letters.await),
        instances,
        workers,
        plan,
        feeds,
    }
}

async fn feed_status(
    name: &str,
    feed: &Feed,
    fleet: &Fleet,
    ledger: &Result<Ledger, String>,
    now: Timestamp,
    window: Duration,
) -> FeedStatus {
    let loaded = match ledger {
        Err(why) => Reading::Unknown(why.clone()),
        Ok(ledger) => {
            let from = now.before(window);
            let summary = ledger.feed_summary(name, from).await;
            let failures = ledger.failure_counts(name, from).await;
            match (summary, failures) {
                (Ok(summary), Ok(failures)) => {
                    Reading::Known(loaded(&summary, failures, fleet.freshness))
                }
                (Err(error), _) | (_, Err(error)) => Reading::Unknown(chain(&error)),
            }
        }
    };
    FeedStatus { feed: name.to_owned(), table: feed.table.to_string(), loaded }
}

fn loaded(summary: &FeedSummary, failures: Vec<(String, u64)>, objective: Duration) -> Loaded {
    let p95 = summary.freshness_at(0.95);
    Loaded {
        objects: summary.objects,
        rows: summary.rows,
        rejected_rows: summary.rejected_rows,
        last_commit_at: summary.last_commit_at,
        freshness_p50_seconds: summary.freshness_at(0.5).map(|span| span.as_secs_f64()),
        freshness_p95_seconds: p95.map(|span| span.as_secs_f64()),
        objective_met: p95.map(|span| span <= objective),
        failures,
    }
}

fn render(status: &Status, paint: Paint) -> String {
    let mut text = String::new();
    if let Reading::Unknown(why) = &status.ledger {
        let _ = writeln!(
            text,
            "{}\n",
            paint.red(&format!("the ledger cannot be read: {}", one_line(why)))
        );
    }
    for (index, fleet) in status.fleets.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        render_fleet(&mut text, fleet, status, paint);
    }
    text
}

fn render_fleet(text: &mut String, fleet: &FleetStatus, status: &Status, paint: Paint) {
    let objective = Duration::from_secs_f64(fleet.objective_seconds);
    let _ = writeln!(
        text,
        "{}, objective: queryable within {}",
        paint.bold(&format!("fleet {}", fleet.fleet)),
        span(objective)
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<13} {value}");
    };
    line(
        "backlog",
        show(&fleet.backlog, paint, |depth| {
            format!(
                "{} waiting, {} in flight, {} delayed",
                count(depth.visible),
                count(depth.in_flight),
                count(depth.delayed)
            )
        }),
    );
    line(
        "dead letters",
        show(&fleet.dead_letters, paint, |letters| match letters {
            0 => paint.green("0"),
            letters => paint.red(&format!("{}  see `weirgate dlq list`", count(*letters))),
        }),
    );
    if let Some(instances) = &fleet.instances {
        line("instances", show(instances, paint, render_group));
    }
    line("workers", show(&fleet.workers, paint, |workers| render_workers(workers)));
    line(
        "latest plan",
        show(&fleet.plan, paint, |plan| match plan {
            Some(plan) => {
                let ago = span(status.at.since(plan.at));
                format!("{}, {ago} ago", plural(plan.desired as usize, "instance"))
            }
            None => "none: no scaler has decided yet".to_owned(),
        }),
    );
    text.push('\n');
    text.push_str(&render_feeds(fleet, status, paint));
}

fn show<T>(reading: &Reading<T>, paint: Paint, known: impl FnOnce(&T) -> String) -> String {
    match reading {
        Reading::Known(value) => known(value),
        Reading::Unknown(why) => paint.yellow(&format!("unknown: {}", one_line(why))),
    }
}

fn render_group(group: &Group) -> String {
    let mut text = format!("{} in service of {} desired", group.in_service, group.desired);
    for (number, word) in [(group.pending, "starting"), (group.terminating, "draining")] {
        if number > 0 {
            let _ = write!(text, ", {number} {word}");
        }
    }
    let _ = write!(text, " (group allows {} to {})", group.min, group.max);
    text
}

fn render_workers(workers: &[WorkerReport]) -> String {
    let live: Vec<&WorkerReport> =
        workers.iter().filter(|worker| worker.state != WorkerState::Stopped).collect();
    if live.is_empty() {
        return format!("none has reported in the last {}", span(WORKER_SILENCE_MAX));
    }
    let (busy, slots) = live
        .iter()
        .fold((0, 0), |(busy, slots), worker| (busy + worker.busy, slots + worker.slots));
    let mut text =
        format!("{}, {} of {} slots busy", plural(live.len(), "worker"), count(busy), count(slots));
    for state in [WorkerState::Waiting, WorkerState::Draining] {
        let number = live.iter().filter(|worker| worker.state == state).count();
        if number > 0 {
            let _ = write!(text, ", {number} {}", state.as_str());
        }
    }
    text
}

fn render_feeds(fleet: &FleetStatus, status: &Status, paint: Paint) -> String {
    let window = span(Duration::from_secs(status.window_seconds));
    let mut columns = Columns::new(&[
        ("FEED", Align::Left),
        ("TABLE", Align::Left),
        ("OBJECTS", Align::Right),
        ("ROWS", Align::Right),
        ("REJECTED", Align::Right),
        ("LAST COMMIT", Align::Right),
        ("FRESH p50", Align::Right),
        ("p95", Align::Right),
        ("OBJECTIVE", Align::Left),
    ]);
    let mut notes = String::new();
    for feed in &fleet.feeds {
        let mut cells = vec![feed.feed.clone(), feed.table.clone()];
        match &feed.loaded {
            Reading::Unknown(why) => {
                cells.extend((0..6).map(|_| "?".to_owned()));
                cells.push("unknown".to_owned());
                let why = format!("  {}: unknown: {}\n", feed.feed, one_line(why));
                notes.push_str(&paint.yellow(&why));
            }
            Reading::Known(loaded) => {
                let seconds = |seconds: Option<f64>| {
                    seconds.map_or("-".to_owned(), |s| span(Duration::from_secs_f64(s)))
                };
                let ago = loaded.last_commit_at.map(|at| span(status.at.since(at)) + " ago");
                cells.extend([
                    count(loaded.objects),
                    count(loaded.rows),
                    count(loaded.rejected_rows),
                    ago.unwrap_or("never".to_owned()),
                    seconds(loaded.freshness_p50_seconds),
                    seconds(loaded.freshness_p95_seconds),
                    match loaded.objective_met {
                        Some(true) => "met".to_owned(),
                        Some(false) => "MISSED".to_owned(),
                        None => format!("no commits in {window}"),
                    },
                ]);
                for (reason, number) in &loaded.failures {
                    let line = format!(
                        "  {}: {} with {reason}\n",
                        feed.feed,
                        plural(*number as usize, "dead letter")
                    );
                    notes.push_str(&paint.red(&line));
                }
            }
        }
        columns.row(cells);
    }
    let mut text = String::new();
    for line in columns.render(paint).lines() {
        let _ = writeln!(text, "  {line}");
    }
    text + &notes
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Paint = Paint { colour: false };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_ms(seconds * 1_000)
    }

    fn worker(state: WorkerState, busy: u64) -> WorkerReport {
        WorkerReport {
            worker: "i-1".into(),
            fleet: "ads".into(),
            state,
            slots: 4,
            busy,
            done: 10,
            service_ms: 20,
            oldest_message_at: None,
            started_at: at(0),
            reported_at: at(99),
        }
    }

    fn feed(name: &str, loaded: Reading<Loaded>) -> FeedStatus {
        FeedStatus { feed: name.into(), table: "ads.imp".into(), loaded }
    }

    fn known() -> FleetStatus {
        let summary = FeedSummary {
            feed: "imp".into(),
            objects: 1_200,
            rows: 240_000,
            rejected_rows: 0,
            last_commit_at: Some(at(96)),
            freshness: (1..=20).map(|n| Duration::from_millis(n * 200)).collect(),
        };
        let failures = vec![("corrupt_object".to_owned(), 1)];
        FleetStatus {
            fleet: "ads".into(),
            objective_seconds: 300.0,
            backlog: Reading::Known(Depth { visible: 1_042, in_flight: 8, delayed: 0 }),
            dead_letters: Reading::Known(1),
            instances: Some(Reading::Known(Group {
                min: 0,
                max: 40,
                desired: 3,
                in_service: 2,
                pending: 1,
                terminating: 0,
            })),
            workers: Reading::Known(vec![
                worker(WorkerState::Running, 4),
                worker(WorkerState::Draining, 1),
                worker(WorkerState::Stopped, 0),
            ]),
            plan: Reading::Known(Some(PlanRecord {
                fleet: "ads".into(),
                at: at(90),
                desired: 3,
                report: "{}".into(),
            })),
            feeds: vec![feed(
                "imp",
                Reading::Known(loaded(&summary, failures, Duration::from_secs(300))),
            )],
        }
    }

    #[test]
    fn a_working_fleet_reads_like_this() {
        let status = Status {
            at: at(100),
            window_seconds: 3_600,
            ledger: Reading::Known(1),
            fleets: vec![known()],
        };
        assert_eq!(
            render(&status, PLAIN),
            "\
fleet ads, objective: queryable within 5m
  backlog       1,042 waiting, 8 in flight, 0 delayed
  dead letters  1  see `weirgate dlq list`
  instances     2 in service of 3 desired, 1 starting (group allows 0 to 40)
  workers       2 workers, 5 of 8 slots busy, 1 draining
  latest plan   3 instances, 10s ago

  FEED  TABLE    OBJECTS     ROWS  REJECTED  LAST COMMIT  FRESH p50   p95  OBJECTIVE
  imp   ads.imp    1,200  240,000         0       4s ago         2s  3.8s  met
  imp: 1 dead letter with corrupt_object
"
        );
        assert!(all_known(&status.fleets[0]));
    }

    #[test]
    fn unknown_is_never_shown_as_zero() {
        let away = || "cannot connect".to_owned();
        let fleet = FleetStatus {
            backlog: Reading::Unknown(away()),
            dead_letters: Reading::Unknown(away()),
            instances: Some(Reading::Unknown(away())),
            workers: Reading::Unknown(away()),
            plan: Reading::Unknown(away()),
            feeds: vec![feed("imp", Reading::Unknown(away()))],
            ..known()
        };
        assert!(!all_known(&fleet));
        let ledger = Reading::Unknown("no route".into());
        let status = Status { at: at(100), window_seconds: 3_600, ledger, fleets: vec![fleet] };
        let text = render(&status, PLAIN);
        assert!(text.starts_with("the ledger cannot be read: no route\n"), "{text}");
        assert_eq!(text.matches("unknown: cannot connect").count(), 6, "{text}");
        assert!(!text.contains(" 0"), "{text}");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["fleets"][0]["backlog"]["unknown"], "cannot connect");
    }

    #[test]
    fn an_idle_feed_has_no_freshness() {
        let summary = FeedSummary {
            feed: "imp".into(),
            objects: 0,
            rows: 0,
            rejected_rows: 0,
            last_commit_at: None,
            freshness: Vec::new(),
        };
        let loaded = loaded(&summary, Vec::new(), Duration::from_secs(300));
        assert_eq!((loaded.objective_met, loaded.freshness_p95_seconds), (None, None));
        let fleet = FleetStatus { feeds: vec![feed("imp", Reading::Known(loaded))], ..known() };
        let status = Status {
            at: at(100),
            window_seconds: 3_600,
            ledger: Reading::Known(1),
            fleets: vec![fleet],
        };
        let text = render(&status, PLAIN);
        assert!(text.contains("never") && text.contains("no commits in 1h"), "{text}");
    }
}
