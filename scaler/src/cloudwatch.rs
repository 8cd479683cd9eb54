//! CloudWatch: a second opinion on the age of the oldest message, and where the fleet's own series
//! go, so that alarms and dashboards need no Prometheus.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum, StandardUnit, Statistic};
use weirgate_common::clock::Timestamp;
use weirgate_common::fault::chain;

/// Where the series go; the importers' role and the scaler's may write to it and nothing else.
const NAMESPACE: &str = "Weirgate";

/// CloudWatch keeps one point per minute of what it is told here, and bills each question.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Older points say nothing about the present. SQS publishes one to two minutes late.
const AGE_MAX: Duration = Duration::from_secs(300);

/// The port to the monitoring of one fleet.
pub trait Monitor: Send + Sync {
    /// The newest point of the last minutes; `None` where there is none, as for idle queues.
    fn oldest(
        &self,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Aged>, MonitorError>> + Send;

    fn publish(
        &self,
        at: Timestamp,
        series: &[Series],
    ) -> impl Future<Output = Result<(), MonitorError>> + Send;
}

/// How long the oldest message had waited in the minute that began `at`, at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged {
    pub at: Timestamp,
    pub age: Duration,
}

/// One value of one series. What is unknown is not published: alarms know missing data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Series {
    /// Messages waiting, in flight and delayed.
    Backlog(u64),
    /// What the oldest message has waited.
    Freshness(Duration),
    Desired(u32),
    InService(u32),
}

#[derive(Debug, thiserror::Error)]
#[error("{call} failed: {detail}")]
pub struct MonitorError {
    call: &'static str,
    detail: String,
}

/// The real thing.
#[derive(Debug)]
pub struct CloudWatch {
    client: Client,
    fleet: String,
    queue: String,
    /// The latest answer and when it was asked for.
    latest: Mutex<Option<(Timestamp, Option<Aged>)>>,
}

impl CloudWatch {
    /// `queue_url` ends with the queue's name, as all queue URLs do.
    pub fn new(client: Client, fleet: &str, queue_url: &str) -> Self {
        let queue = queue_url.rsplit('/').next().unwrap_or(queue_url).to_owned();
        CloudWatch { client, fleet: fleet.to_owned(), queue, latest: Mutex::new(None) }
    }
}

impl Monitor for CloudWatch {
    async fn oldest(&self, now: Timestamp) -> Result<Option<Aged>, MonitorError> {
        let latest = *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked_at, answer)) = latest
            && now.since(asked_at) < PERIOD
        {
            return Ok(answer.filter(|aged| now.since(aged.at) <= AGE_MAX));
        }
        let answer = self
            .client
            .get_metric_statistics()
            .namespace("AWS/SQS")
            .metric_name("ApproximateAgeOfOldestMessage")
            .dimensions(dimension("QueueName", &self.queue))
            .start_time(DateTime::from_millis(now.before(AGE_MAX).unix_ms()))
            .end_time(DateTime::from_millis(now.unix_ms()))
            .period(60)
            .statistics(Statistic::Maximum)
            .send()
            .await
            .map_err(|error| failure("GetMetricStatistics", &error))?;
        let newest = answer
            .datapoints()
            .iter()
            .filter_map(|point| Some((point.timestamp()?.to_millis().ok()?, point.maximum()?)))
            .max_by_key(|(at_ms, _)| *at_ms);
        let aged = newest.and_then(|(at_ms, age_s)| {
            let age = Duration::try_from_secs_f64(age_s).ok()?;
            Some(Aged { at: Timestamp::from_unix_ms(at_ms), age })
        });
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, aged));
        Ok(aged)
    }

    async fn publish(&self, at: Timestamp, series: &[Series]) -> Result<(), MonitorError> {
        let data = series.iter().map(|value| {
            let (name, unit, value) = match value {
                Series::Backlog(count) => ("BacklogMessages", StandardUnit::Count, *count as f64),
                Series::Freshness(age) => {
                    ("OldestMessageAge", StandardUnit::Seconds, age.as_secs_f64())
                }
                Series::Desired(count) => {
                    ("DesiredInstances", StandardUnit::Count, f64::from(*count))
                }
                Series::InService(count) => {
                    ("InstancesInService", StandardUnit::Count, f64::from(*count))
                }
            };
            MetricDatum::builder()
                .metric_name(name)
                .dimensions(dimension("Fleet", &self.fleet))
                .timestamp(DateTime::from_millis(at.unix_ms()))
                .unit(unit)
                .value(value)
                .build()
        });
        self.client
            .put_metric_data()
            .namespace(NAMESPACE)
            .set_metric_data(Some(data.collect()))
            .send()
            .await
            .map(drop)
            .map_err(|error| failure("PutMetricData", &error))
    }
}

fn dimension(name: &str, value: &str) -> Dimension {
    Dimension::builder().name(name).value(value).build()
}

fn failure<E>(call: &'static str, error: &SdkError<E>) -> MonitorError
where
    SdkError<E>: ProvideErrorMetadata,
    E: std::error::Error + 'static,
{
    let detail = match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => chain(error),
    };
    MonitorError { call, detail }
}
