//! An importer on an instance that is to go.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use sqlx::Connection as _;
use weirgate_local::fleet::Tuning;
use weirgate_tests::instance::Instance;
use weirgate_tests::run;

use crate::{hold_up, in_flight, moments, put, rows_are, start};

#[test]
fn an_instance_that_is_terminated_finishes_and_lets_the_group_go_on() -> Result<()> {
    run(async {
        let tuning = Tuning { drain_grace: Duration::from_secs(40), ..Tuning::default() };
        let system = start("hook", tuning).await?;
        let instance = Instance::start("i-hook").await?;
        let mut importer = system.importer_with("i-hook", &instance.environment())?;
        put(&system, "before").await?;
        rows_are(&system, 1).await?;

        let slow_database = hold_up(&system).await?;
        put(&system, "held").await?;
        in_flight(&system, 1).await?;
        instance.terminate();
        system.until("it drains", async || Ok(importer.log().contains("draining"))).await?;
        let beats = async || Ok(instance.heard("RecordLifecycleActionHeartbeat") >= 2);
        system.until("the group is asked to wait on", beats).await?;
        assert_eq!(instance.heard("CompleteLifecycleAction"), 0);
        put(&system, "after").await?;
        slow_database.close().await?;
        let completed = async || Ok(instance.heard("CompleteLifecycleAction") == 1);
        system.until("the group may go on", completed).await?;
        rows_are(&system, 2).await?;

        // It neither takes what comes after nor ends before it is told to, which would make its
        // container start another.
        moments(2).await;
        assert!(importer.child.exited().is_none(), "{}", importer.log());
        assert_eq!(system.rows().await?, 100);
        let status = importer.child.stop(Signal::TERM, Duration::from_secs(10)).await;
        assert!(status.success(), "{status}: {}", importer.log());

        let other = system.importer("i-other")?;
        rows_are(&system, 3).await?;
        system.drained().await?;
        system.assert_rows(150).await?;
        other.stop().await;
        Ok(())
    })
}

#[test]
fn an_instance_that_is_taken_back_gives_back_what_it_cannot_finish() -> Result<()> {
    run(async {
        // The grace would be longer than the instance has.
        let tuning = Tuning { drain_grace: Duration::from_secs(600), ..Tuning::default() };
        let system = start("spot", tuning).await?;
        let instance = Instance::start("i-spot").await?;
        let importer = system.importer_with("i-spot", &instance.environment())?;
        put(&system, "before").await?;
        rows_are(&system, 1).await?;
        let slow_database = hold_up(&system).await?;
        put(&system, "held").await?;
        in_flight(&system, 1).await?;

        let soon = weirgate_common::clock::now().after(Duration::from_secs(25));
        instance.take_back(&soon.to_string());
        system
            .until("it has drained", async || {
                Ok(importer.log().contains("drained") || importer.log().contains("stopped with"))
            })
            .await?;
        assert!(weirgate_common::clock::now() < soon, "{}", importer.log());
        slow_database.close().await?;
        let other = system.importer("i-other")?;
        rows_are(&system, 2).await?;
        system.drained().await?;
        system.assert_rows(100).await?;
        assert_eq!(system.dead_letters().await?.len(), 0);
        other.stop().await;
        importer.stop().await;
        Ok(())
    })
}
