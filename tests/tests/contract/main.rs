//! What every program relies on, asked of the real things: the ledger on both databases, the
//! queue on LocalStack. What the worker relies on is asked of its stand-ins as well.

mod ports;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::config::Database;
use weirgate_common::fault::{Dependency, Fault};
use weirgate_common::ledger::{
    Failure, Ledger, LedgerError, PlanRecord, Resolution, WorkerReport, WorkerState,
};
use weirgate_common::queue::Queue;
use weirgate_local::fleet::Tuning;
use weirgate_tests::{DatabaseKind, System, run};

async fn system(name: &str, database: DatabaseKind) -> Result<System> {
    let programs = env!("CARGO_BIN_EXE_weirgate-programs");
    System::start(programs, "test-contract", name, database, Tuning::default()).await
}

async fn ledger(system: &System) -> Result<Ledger> {
    let database = Database::parse(&system.fleet.database).map_err(anyhow::Error::msg)?;
    Ok(Ledger::open(&database, 4).await?)
}

#[test]
fn the_ledger_on_sqlite() -> Result<()> {
    run(ledger_contract("ledger-s", DatabaseKind::Sqlite))
}

#[test]
fn the_ledger_on_postgres() -> Result<()> {
    run(ledger_contract("ledger-p", DatabaseKind::Postgres))
}

async fn ledger_contract(name: &str, database: DatabaseKind) -> Result<()> {
    let system = system(name, database).await?;
    // Everybody migrates at the same time; one does it.
    let opened = tokio::join!(ledger(&system), ledger(&system), ledger(&system));
    let (ledger, other) = (opened.0?, opened.1?);
    opened.2?;
    assert_eq!(ledger.version().await?, Ledger::version_known());
    ledger.ping().await?;

    lease(&ledger, &other).await?;
    reports(&ledger).await?;
    plans(&ledger).await?;
    failures(&ledger, &system).await?;

    let summary = ledger.feed_summary("impressions", Timestamp::from_unix_ms(0)).await?;
    assert_eq!((summary.objects, summary.rows, summary.last_commit_at), (0, 0, None));

    refuses_a_newer_ledger(&ledger, &system).await
}

async fn lease(ledger: &Ledger, other: &Ledger) -> Result<()> {
    let (now, span) = (clock::now(), Duration::from_secs(30));
    assert!(ledger.hold_lease("fleet", "a", now, span).await?, "free");
    assert!(ledger.hold_lease("fleet", "a", now, span).await?, "renewed");
    assert!(!other.hold_lease("fleet", "b", now, span).await?, "held by another");
    assert!(other.hold_lease("other-fleet", "b", now, span).await?, "another lease");
    let later = now.after(span);
    assert!(other.hold_lease("fleet", "b", later, span).await?, "expired");
    assert!(!ledger.hold_lease("fleet", "a", later, span).await?, "taken over");
    ledger.release_lease("fleet", "a").await?;
    assert!(!ledger.hold_lease("fleet", "a", later, span).await?, "only its holder releases it");
    other.release_lease("fleet", "b").await?;
    assert!(ledger.hold_lease("fleet", "a", later, span).await?, "released");
    // Two at the same moment: one of them.
    ledger.release_lease("fleet", "a").await?;
    let (a, b) = tokio::join!(
        ledger.hold_lease("fleet", "a", later, span),
        other.hold_lease("fleet", "b", later, span),
    );
    assert!(a? != b?, "exactly one holds a lease");
    Ok(())
}

async fn reports(ledger: &Ledger) -> Result<()> {
    let now = clock::now();
    let report = WorkerReport {
        worker: "i-1".to_owned(),
        fleet: "ads".to_owned(),
        state: WorkerState::Running,
        slots: 4,
        busy: 2,
        done: 10,
        service_ms: 120,
        oldest_message_at: Some(now),
        started_at: now,
        reported_at: now,
    };
    ledger.report_worker(&report).await?;
    assert_eq!(ledger.workers("ads", now).await?, std::slice::from_ref(&report));
    let later = now.after(Duration::from_secs(5));
    let newer = WorkerReport {
        state: WorkerState::Draining,
        busy: 0,
        oldest_message_at: None,
        reported_at: later,
        ..report
    };
    ledger.report_worker(&newer).await?;
    assert_eq!(ledger.workers("ads", later).await?, [newer]);
    assert_eq!(ledger.workers("ads", later.after(Duration::from_secs(1))).await?, []);
    assert_eq!(ledger.workers("others", now).await?, []);
    Ok(())
}

async fn plans(ledger: &Ledger) -> Result<()> {
    assert_eq!(ledger.latest_plan("ads").await?, None);
    let now = clock::now();
    for desired in [3, 5] {
        let report = format!("{{\"desired\": {desired}}}");
        let plan = PlanRecord { fleet: "ads".to_owned(), at: now, desired, report };
        ledger.record_plan(&plan).await?;
        assert_eq!(ledger.latest_plan("ads").await?, Some(plan));
    }
    Ok(())
}

async fn failures(ledger: &Ledger, system: &System) -> Result<()> {
    let failure = Failure {
        message_id: "m".to_owned(),
        object: "s3://b/k.avro".to_owned(),
        fleet: "ads".to_owned(),
        feed: "impressions".to_owned(),
        class: "permanent".to_owned(),
        reason: "corrupt_object".to_owned(),
        // PostgreSQL holds no NUL; a message from a hostile file may.
        detail: "s3://b/k.avro: \0 at byte 9".to_owned(),
        attempts: 1,
        at: clock::now(),
        resolution: Resolution::DeadLettered,
    };
    ledger.record_failure(&failure).await?;
    let again = Failure { attempts: 2, ..failure.clone() };
    ledger.record_failure(&again).await?;
    let from = Timestamp::from_unix_ms(0);
    let counts = ledger.failure_counts("impressions", from).await?;
    assert_eq!(counts, [("corrupt_object".to_owned(), 1)], "one row for one message and object");
    assert_eq!(system.number("SELECT attempts FROM weirgate.failure").await?, 2);
    Ok(())
}

async fn refuses_a_newer_ledger(ledger: &Ledger, system: &System) -> Result<()> {
    let newer = ledger.sql("INSERT INTO weirgate.migration VALUES (999)").into_owned();
    let inserted = match ledger {
        Ledger::Postgres(pool) => sqlx::query(&newer).execute(pool).await?.rows_affected(),
        Ledger::Sqlite(pool) => sqlx::query(&newer).execute(pool).await?.rows_affected(),
    };
    assert_eq!(inserted, 1);
    let database = Database::parse(&system.fleet.database).map_err(anyhow::Error::msg)?;
    let error = Ledger::open(&database, 1).await.expect_err("999 is newer than this program");
    assert!(matches!(error, LedgerError::TooNew { found: 999, .. }), "{error}");
    assert!(error.to_string().contains("deploy the newer release"), "{error}");
    Ok(())
}

#[test]
fn the_queue() -> Result<()> {
    run(async {
        let system = system("queue", DatabaseKind::Sqlite).await?;
        let queue = system.queue();
        let settings = queue.settings().await?;
        assert_eq!(settings.redrive.expect("the template sets it").receives_max, 5);
        let dead_letters = queue.dead_letter_queue().await?;
        assert_eq!(dead_letters.url(), system.fleet.data_plane.dead_letter_queue_url);

        ports::queue(&dead_letters).await?;
        Ok(())
    })
}

#[test]
fn a_queue_that_is_away_or_not_there() -> Result<()> {
    run(async {
        let system = system("no-queue", DatabaseKind::Sqlite).await?;
        let url = format!("{}-gone", system.fleet.data_plane.queue_url);
        let gone = Queue::new(system.clients.sqs.clone(), url);
        let error = gone.depth().await.expect_err("there is no such queue");
        assert_eq!(error.fault(), Fault::Outage(Dependency::Queue));
        assert!(error.to_string().contains("-gone"), "{error}");
        assert!(error.code().is_some_and(|code| code.contains("NonExistentQueue")), "{error}");
        let refused = gone.send(&[("x".to_owned(), BTreeMap::new())]).await;
        assert!(refused.len() == 1 && refused[0].is_err());
        // A queue without a redrive policy: the dead-letter queue itself.
        let bare = system.dead_letter_queue().dead_letter_queue().await;
        assert!(bare.expect_err("it has none").to_string().contains("RedrivePolicy"));
        Ok(())
    })
}
