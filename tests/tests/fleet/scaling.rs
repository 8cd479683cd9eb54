//! The scaler, its standby, and importers as instances, while things happen to all of them. One
//! story, since growing and shrinking is what takes the time.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum};
use rustix::process::Signal;
use sqlx::Connection as _;
use weirgate_common::clock;
use weirgate_local::fleet::Tuning;
use weirgate_local::launcher::{Launcher, Limits};
use weirgate_tests::{System, run};

use crate::{hold_up, in_flight, moments, put, rows_are, start};

struct Story {
    system: System,
    launcher: Launcher,
    /// Objects uploaded so far.
    objects: u64,
}

#[test]
fn a_fleet_grows_and_shrinks_whatever_happens_to_it() -> Result<()> {
    run(async {
        // A machine that is busy with other tests must not cost a live scaler its lease of one
        // and a half periods.
        let (period, settle) = (Duration::from_secs(2), Duration::from_secs(4));
        let tuning = Tuning { scaler_period: period, scaler_settle: settle, ..Tuning::default() };
        let system = start("scaled", tuning).await?;
        let limits = Limits::new(Duration::from_millis(300), Duration::from_secs(15));
        let launcher = system.launcher(limits).await?;
        let mut story = Story { system, launcher, objects: 0 };
        an_old_message_is_known_to_cloudwatch(&story.system).await?;

        let mut first = story.system.scaler("scaler-1")?;
        let leads = async || Ok(holder(&story.system).await?.is_some());
        story.system.until("the first scaler leads", leads).await?;
        let leader = holder(&story.system).await?;
        let second = story.system.scaler("scaler-2")?;
        story.upload(40).await?;
        story.grows_to(4).await?;
        rows_are(&story.system, story.objects).await?;

        story.a_busy_instance_is_terminated().await?;
        story.the_queue_is_away().await?;
        assert_eq!(holder(&story.system).await?, leader, "the standby acted");
        assert_eq!(scalers(&story.system).await?, 1, "two scalers acted");

        // Killed between its first victim and its last, or at least before the fleet is gone: the
        // standby ends what it began.
        story.system.until("it shrinks", async || Ok(story.desired().await? < 4)).await?;
        first.child.kill();
        let takes_over = async || {
            let now = holder(&story.system).await?;
            Ok(now.is_some() && now != leader)
        };
        story.system.until("the standby leads", takes_over).await?;
        story.grows_to(0).await?;
        let first = story.system.scaler("scaler-1")?;

        story.the_maximum_is_lowered().await?;
        story.launches_are_suspended().await?;

        story.grows_to(0).await?;
        story.no_importer_runs().await?;
        story.system.assert_rows(story.objects * crate::ROWS).await?;
        assert_eq!(story.system.dead_letters().await?.len(), 0);
        assert!(told(&story.system, "%\"queue_oldest_ms\":23000,%").await?, "no second opinion");
        its_series_are_in_cloudwatch(&story.system).await?;
        // The query of the documentation, by which users replay their own history.
        let page = include_str!("../../../docs/scaling.md");
        let query = page.split("```sql").nth(1).and_then(|rest| rest.split("```").next());
        let sum = format!("SELECT sum(arrivals)::bigint FROM ({}) AS t", query.context("a query")?);
        assert_eq!(story.system.number(&sum).await?, i64::try_from(story.objects)?);
        for scaler in [first, second] {
            scaler.stop().await;
        }
        story.launcher.stop().await;
        Ok(())
    })
}

impl Story {
    async fn upload(&mut self, count: u64) -> Result<()> {
        for object in self.objects..self.objects + count {
            put(&self.system, &format!("o{object}")).await?;
        }
        self.objects += count;
        Ok(())
    }

    async fn desired(&self) -> Result<i32> {
        let groups = self.system.clients.auto_scaling.describe_auto_scaling_groups();
        let groups = groups.auto_scaling_group_names(&self.system.fleet.group).send().await?;
        let groups = groups.auto_scaling_groups.unwrap_or_default();
        groups.first().and_then(|group| group.desired_capacity()).context("the group is there")
    }

    async fn grows_to(&self, desired: i32) -> Result<()> {
        let what = format!("the group asks for {desired}");
        self.system.until(&what, async || Ok(self.desired().await? == desired)).await
    }

    async fn no_importer_runs(&self) -> Result<()> {
        let gone = async || Ok(self.launcher.instances().is_empty());
        self.system.until("no importer runs", gone).await
    }

    /// By somebody else, who does not look whether it works.
    async fn a_busy_instance_is_terminated(&mut self) -> Result<()> {
        let slow_database = hold_up(&self.system).await?;
        self.upload(16).await?;
        in_flight(&self.system, 16).await?;
        let victim = self.launcher.instances().into_keys().next().context("one runs")?;
        self.system
            .clients
            .auto_scaling
            .terminate_instance_in_auto_scaling_group()
            .instance_id(&victim)
            .should_decrement_desired_capacity(false)
            .send()
            .await?;
        let draining = async || {
            let report = format!(
                "SELECT count(*) FROM weirgate.worker
                 WHERE worker = '{victim}' AND state = 'draining' AND busy > 0"
            );
            Ok(self.system.number(&report).await? == 1)
        };
        self.system.until("it drains what it holds", draining).await?;
        slow_database.close().await?;
        rows_are(&self.system, self.objects).await
    }

    /// For several times as long as an empty queue must be empty before the fleet goes.
    async fn the_queue_is_away(&mut self) -> Result<()> {
        self.grows_to(4).await?;
        self.system.signal_localstack(Signal::STOP).await?;
        let began = clock::monotonic();
        while clock::monotonic().saturating_sub(began) < Duration::from_secs(15) {
            assert_eq!(self.desired().await?, 4, "the fleet shrank on what it could not see");
            moments(1).await;
        }
        self.system.signal_localstack(Signal::CONT).await?;
        self.upload(4).await?;
        rows_are(&self.system, self.objects).await
    }

    /// Under instances at work, and below what the backlog asks for.
    async fn the_maximum_is_lowered(&mut self) -> Result<()> {
        let slow_database = hold_up(&self.system).await?;
        self.upload(4).await?;
        // What nobody holds yet would wait until the maximum rises.
        in_flight(&self.system, 4).await?;
        self.maximum(0).await?;
        self.grows_to(0).await?;
        slow_database.close().await?;
        rows_are(&self.system, self.objects).await?;
        // One that still drains would take what is uploaded.
        self.no_importer_runs().await?;
        self.upload(4).await?;
        let clamped = async || told(&self.system, "%\"bound\":\"group max\"%").await;
        self.system.until("the report says that the group's maximum bites", clamped).await?;
        assert_eq!(self.desired().await?, 0);
        self.maximum(4).await?;
        rows_are(&self.system, self.objects).await?;
        self.grows_to(0).await
    }

    async fn launches_are_suspended(&mut self) -> Result<()> {
        // One that still drains would take what is uploaded.
        self.no_importer_runs().await?;
        let suspended = || ["Launch".to_owned()];
        let client = self.system.clients.auto_scaling.clone();
        let group = self.system.fleet.group.clone();
        let call = client.suspend_processes().auto_scaling_group_name(&group);
        call.set_scaling_processes(Some(suspended().into())).send().await?;
        self.upload(4).await?;
        let held = async || told(&self.system, "%\"hold\":\"launch_suspended\"%").await;
        self.system.until("the report says what holds it", held).await?;
        assert_eq!(self.desired().await?, 0);
        let call = client.resume_processes().auto_scaling_group_name(&group);
        call.set_scaling_processes(Some(suspended().into())).send().await?;
        rows_are(&self.system, self.objects).await
    }

    async fn maximum(&self, max: i32) -> Result<()> {
        let call = self.system.clients.auto_scaling.update_auto_scaling_group();
        call.auto_scaling_group_name(&self.system.fleet.group).max_size(max).send().await?;
        Ok(())
    }
}

/// LocalStack publishes no age of the oldest message; what AWS would publish is put there, for a
/// minute that is over: an answer ends before the second in which it is asked for, and is kept for
/// a minute, which is as long as this story may take.
async fn an_old_message_is_known_to_cloudwatch(system: &System) -> Result<()> {
    let queue = system.fleet.data_plane.queue_url.rsplit('/').next().context("it has a name")?;
    let minute_ago = clock::now().before(Duration::from_secs(60)).unix_ms();
    let age = MetricDatum::builder()
        .metric_name("ApproximateAgeOfOldestMessage")
        .dimensions(Dimension::builder().name("QueueName").value(queue).build())
        .timestamp(aws_sdk_cloudwatch::primitives::DateTime::from_millis(minute_ago))
        .value(23.0)
        .build();
    let call = system.clients.cloudwatch.put_metric_data();
    call.namespace("AWS/SQS").metric_data(age).send().await?;
    Ok(())
}

async fn its_series_are_in_cloudwatch(system: &System) -> Result<()> {
    for (name, most) in [("BacklogMessages", 1e9), ("DesiredInstances", 4.0)] {
        let now = clock::now().unix_ms();
        let time = |ms| aws_sdk_cloudwatch::primitives::DateTime::from_millis(ms);
        let answer = system
            .clients
            .cloudwatch
            .get_metric_statistics()
            .namespace("Weirgate")
            .metric_name(name)
            .dimensions(Dimension::builder().name("Fleet").value(&system.fleet.name).build())
            .start_time(time(now - 600_000))
            .end_time(time(now + 60_000))
            .period(60)
            .statistics(aws_sdk_cloudwatch::types::Statistic::Maximum)
            .send()
            .await?;
        let points: Vec<f64> = answer.datapoints().iter().filter_map(|p| p.maximum()).collect();
        assert!(!points.is_empty() && points.iter().all(|p| *p <= most), "{name}: {points:?}");
    }
    Ok(())
}

async fn holder(system: &System) -> Result<Option<String>> {
    let mut connection = sqlx::PgConnection::connect(&system.fleet.database).await?;
    let query = "SELECT holder FROM weirgate.lease WHERE expires_at > $1";
    let holder = sqlx::query_scalar(query).bind(clock::now()).fetch_optional(&mut connection);
    let holder = holder.await;
    connection.close().await?;
    match holder {
        Err(error) if error.to_string().contains("does not exist") => Ok(None),
        other => Ok(other?),
    }
}

/// How many scalers have recorded plans.
async fn scalers(system: &System) -> Result<i64> {
    system.number("SELECT count(DISTINCT report::json->>'scaler') FROM weirgate.plan").await
}

/// Whether any plan's report is like that.
async fn told(system: &System, pattern: &str) -> Result<bool> {
    let plans = format!("SELECT count(*) FROM weirgate.plan WHERE report LIKE '{pattern}'");
    Ok(system.number(&plans).await? > 0)
}
