//! The service's loop on a real ledger: growth, one acting scaler, outages, stopping.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use weirgate_common::config::Database;
use weirgate_common::ledger::Ledger;
use weirgate_common::telemetry::Health;
use weirgate_scaler::cloudwatch::Series;
use weirgate_scaler::group::Group;
use weirgate_scaler::policy::Objective;
use weirgate_scaler::service::{Keeper, Readiness};

use crate::fake::World;

/// Short, but long enough that a machine busy with other tests does not cost a live scaler its
/// lease of one and a half.
const PERIOD: Duration = Duration::from_millis(400);

/// Far more than any of the waits below needs, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

struct Scaler {
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

fn start(world: &World, ledger: &Ledger, holder: &str) -> Scaler {
    let keeper = Keeper {
        fleet: "ads".to_owned(),
        feeds: vec!["clicks".to_owned()],
        objective: Objective {
            freshness: Duration::from_secs(300),
            instances_min: 0,
            instances_max: 5,
            slots: 4,
            period: PERIOD,
            settle: Duration::from_millis(1_000),
        },
        gauge: world.clone(),
        group: world.clone(),
        monitor: world.clone(),
        ledger: ledger.clone(),
        holder: holder.to_owned(),
        dry_run: false,
    };
    let (stop, told) = watch::channel(false);
    let readiness = Readiness::new(&["ads".to_owned()], Health::default());
    Scaler { stop, running: tokio::spawn(keeper.run(told, readiness)) }
}

async fn ledger() -> (tempfile::TempDir, Ledger) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite { path: folder.path().join("weirgate.db") };
    (folder, Ledger::open(&database, 4).await.unwrap())
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(PERIOD / 10).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never saw: {what}"));
}

#[tokio::test]
async fn a_fleet_grows_with_its_queue_and_shrinks_to_zero_after_it() {
    let (_folder, ledger) = ledger().await;
    let world = World::new(0, 0, 10);
    world.lock().depth.visible = 1_000;
    let scaler = start(&world, &ledger, "one");
    until("three instances", async || world.desired() == 3).await;

    // Recorded after it was carried out.
    until("its reason", async || {
        let plan = ledger.latest_plan("ads").await.unwrap();
        plan.is_some_and(|plan| plan.report.contains("\"winner\":\"drain\""))
    })
    .await;

    // In flight is work too: nothing shrinks although nothing waits.
    world.lock().depth.visible = 0;
    world.lock().depth.in_flight = 1;
    tokio::time::sleep(PERIOD * 8).await;
    assert_eq!(world.desired(), 3);
    world.lock().depth.in_flight = 0;
    until("no instances", async || world.desired() == 0).await;

    scaler.stop.send_replace(true);
    scaler.running.await.unwrap();
    assert_eq!(world.lock().writes.len(), 4, "{:?}", world.lock().writes);
}

#[tokio::test]
async fn a_size_changed_by_somebody_else_is_recorded_and_planned_from() {
    let (_folder, ledger) = ledger().await;
    let world = World::new(0, 0, 10);
    world.lock().depth.visible = 500;
    let _scaler = start(&world, &ledger, "one");
    until("two instances", async || world.desired() == 2).await;
    until("its series", async || {
        let published = world.lock().published.clone();
        [Series::Backlog(500), Series::Desired(2)].iter().all(|value| published.contains(value))
    })
    .await;
    // Only the size we saw after our own step can be changed by others.
    tokio::time::sleep(PERIOD * 4).await;
    world.set_desired(1).await.unwrap();
    let records = async |what: &str| {
        let plan = ledger.latest_plan("ads").await.unwrap();
        plan.is_some_and(|plan| plan.report.contains(what))
    };
    until("the change", async || records("\"changed_from\":2").await).await;
    until("two instances again", async || world.desired() == 2).await;
}

#[tokio::test]
async fn an_outage_shrinks_nothing_and_ends_nothing() {
    let (_folder, ledger) = ledger().await;
    let world = World::new(2, 0, 10);
    world.lock().away = true;
    let scaler = start(&world, &ledger, "one");
    tokio::time::sleep(PERIOD * 8).await;
    assert_eq!(world.desired(), 2);
    assert!(!scaler.running.is_finished());
    world.lock().away = false;
    until("no instances", async || world.desired() == 0).await;
}

#[tokio::test]
async fn one_scaler_acts_and_the_standby_takes_over() {
    let (_folder, ledger) = ledger().await;
    let world = World::new(0, 0, 10);
    let acting = start(&world, &ledger, "one");
    until("a plan", async || ledger.latest_plan("ads").await.unwrap().is_some()).await;
    let standby = start(&world, &ledger, "two");
    let scaler_of = async || {
        let plan = ledger.latest_plan("ads").await.unwrap().unwrap();
        plan.report.contains("\"scaler\":\"two\"")
    };

    world.lock().depth.visible = 4;
    until("one instance", async || world.desired() == 1).await;
    assert!(!scaler_of().await);
    assert_eq!(world.lock().writes, ["set 1"]);

    // Crashed, the lease runs out; nothing releases it.
    acting.running.abort();
    world.lock().depth.visible = 500;
    until("two instances", async || world.desired() == 2).await;
    until("its record", scaler_of).await;

    // Stopped, the lease is free at once.
    standby.stop.send_replace(true);
    standby.running.await.unwrap();
    let now = weirgate_common::clock::now();
    assert!(ledger.hold_lease("scaler/ads", "three", now, PERIOD).await.unwrap());
}
