//! PostgreSQL goes away with a full queue, and comes back.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use apache_avro::Codec;
use weirgate_common::clock;
use weirgate_local::fleet::Tuning;

use crate::avro::file;
use crate::system::{DatabaseKind, System};

const ROWS: u64 = 200;

/// Long enough to even out what one long poll brings.
const WINDOW: Duration = Duration::from_secs(1);

/// What may be left to do when the database is back.
const RECOVERY_MAX: Duration = Duration::from_secs(300);

pub struct Report {
    objects: u64,
    away: Duration,
    /// Messages that lay in the queue at the outage's end, and had not been received by anybody.
    untouched: usize,
    /// From the return of the database to the next commit.
    resumed_after: Duration,
    /// Objects per second at best, before the outage and in the ten seconds after it.
    rate_before: f64,
    rate_after: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { objects, away, untouched, resumed_after, rate_before, rate_after } = self;
        writeln!(f, "objects               {objects}, all there once, none dead-lettered")?;
        writeln!(f, "database away         {} s", away.as_secs())?;
        writeln!(f, "waiting meanwhile     {untouched} messages, none of them ever received")?;
        writeln!(f, "first commit          {:.1} s after its return", resumed_after.as_secs_f64())?;
        write!(
            f,
            "objects per second    {rate_before:.0} before, {rate_after:.0} within 10 s after"
        )
    }
}

/// How many objects were committed, at what times.
type Timeline = Vec<(Duration, i64)>;

/// The database crashes under two importers and stays away.
pub async fn run(programs: &str, world: &str, away: Duration, objects: u64) -> Result<Report> {
    let (database, tuning) = (DatabaseKind::Postgres, Tuning::default());
    let system = System::start(programs, world, "outage", database, tuning).await?;
    for object in 0..objects {
        let name = format!("o{object}");
        let key = format!("impressions/dt=2026-03-01/{name}.avro");
        system.put(&key, file(&name, ROWS, Codec::Snappy)).await?;
    }
    let importers = [system.importer("i-1")?, system.importer("i-2")?];
    let before = watch(&system, |_, count| count * 20 > objects).await?;
    let outage = system.crash_postgres(away);
    let untouched = async {
        tokio::time::sleep(away.saturating_sub(Duration::from_secs(2))).await;
        untouched(&system).await
    };
    let (returned, untouched) = tokio::join!(outage, untouched);
    returned?;
    let untouched = untouched?;
    let returned = clock::monotonic();
    let crashed_with = before.last().map_or(0, |(_, count)| *count);
    let after = watch(&system, |now, count| {
        count >= objects || now.saturating_sub(returned) > Duration::from_secs(10)
    })
    .await?;
    let resumed = after.iter().find(|(_, count)| *count > crashed_with);
    let resumed_after = resumed.map_or(Duration::MAX, |(at, _)| at.saturating_sub(returned));
    system.drained_within(RECOVERY_MAX).await?;
    system.assert_rows(objects * ROWS).await?;
    let letters = system.dead_letters().await?.len();
    ensure!(letters == 0, "{letters} messages were dead-lettered");
    let logs = importers.map(|importer| importer.log()).concat();
    ensure!(logs.contains("database_away"), "no importer noticed the outage:\n{logs}");
    ensure!(logs.contains("back dependency=database"), "nobody saw it return:\n{logs}");
    let (rate_before, rate_after) = (best_rate(&before), best_rate(&after));
    Ok(Report { objects, away, untouched, resumed_after, rate_before, rate_after })
}

/// Looks at the ledger until told that it has seen enough.
async fn watch(system: &System, enough: impl Fn(Duration, u64) -> bool) -> Result<Timeline> {
    let mut timeline = Timeline::new();
    let committed = "SELECT count(*) FROM weirgate.object WHERE state = 'committed'";
    let started = clock::monotonic();
    loop {
        // Before the first import there is no ledger.
        let count = system.number(committed).await.unwrap_or_default();
        let now = clock::monotonic();
        timeline.push((now, count));
        if enough(now, count.unsigned_abs()) {
            return Ok(timeline);
        }
        ensure!(
            now.saturating_sub(started) < RECOVERY_MAX,
            "{count} objects after {:?}",
            now - started
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn best_rate(timeline: &Timeline) -> f64 {
    let rates = timeline.iter().filter_map(|(from, before)| {
        let (to, after) = timeline.iter().find(|(at, _)| *at >= *from + WINDOW)?;
        Some((after - before) as f64 / (*to - *from).as_secs_f64())
    });
    rates.fold(0.0, f64::max)
}

/// The visible messages, of which none may have been received before.
async fn untouched(system: &System) -> Result<usize> {
    let mut seen = BTreeMap::new();
    loop {
        // Back before the importers ask for them again.
        let visibility = Duration::from_secs(5);
        let received = system.queue().receive(10, Duration::ZERO, visibility).await?;
        if received.is_empty() {
            break;
        }
        for message in received {
            seen.entry(message.message_id).or_insert(message.receive_count);
        }
    }
    let touched = seen.values().filter(|receives| **receives > 1).count();
    ensure!(!seen.is_empty(), "the queue was empty during the outage");
    ensure!(touched == 0, "{touched} of {} waiting messages had been received", seen.len());
    Ok(seen.len())
}
