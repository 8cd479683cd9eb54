//! The buckets of the feeds: readable, in the right region, and announcing their objects.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use weirgate_common::aws;
use weirgate_common::clock::{self, Timestamp};

use super::clocks;
use super::finding::{Finding, Section};
use crate::world::World;

/// Each bucket once, whatever the number of feeds that read it.
pub(super) async fn check(world: &World, fleet: Option<&str>) -> Vec<Section> {
    let mut sections = Vec::new();
    let client = aws::s3(&world.sdk);
    let feeds = world.config.feeds.values();
    let mut buckets: Vec<(&str, &str)> = feeds
        .filter(|feed| fleet.is_none_or(|name| feed.fleet == name))
        .filter(|feed| !feed.objects.is_messages())
        .map(|feed| (feed.objects.bucket(), feed.objects.prefix()))
        .collect();
    buckets.sort_unstable();
    buckets.dedup_by_key(|(bucket, _)| *bucket);
    for (bucket, prefix) in buckets {
        let findings = check_bucket(&client, bucket, prefix).await;
        sections.push(Section::new(format!("bucket {bucket}"), findings));
    }
    sections
}

async fn check_bucket(client: &Client, bucket: &str, prefix: &str) -> Vec<Finding> {
    let date = DateHeader::default();
    let before = clock::now();
    let listed = client
        .list_objects_v2()
        .bucket(bucket)
        .prefix(prefix)
        .max_keys(1)
        .customize()
        .interceptor(date.clone())
        .send()
        .await;
    let after = clock::now();
    let mut findings = Vec::new();
    match listed {
        Ok(answer) => {
            let what = match answer.contents().is_empty() {
                true => format!("can be listed; nothing lies under s3://{bucket}/{prefix} yet"),
                false => "can be listed".to_owned(),
            };
            findings.push(Finding::ok("bucket_readable", what));
        }
        Err(error) => {
            findings.push(unreadable(bucket, &error));
            return findings;
        }
    }
    if let Some(theirs) = date.read() {
        findings.push(clocks::compare("aws_clock", "the clock of S3", theirs, before, after));
    }
    findings.push(notifications(client, bucket).await);
    findings
}

fn unreadable<E>(bucket: &str, error: &SdkError<E>) -> Finding
where
    SdkError<E>: ProvideErrorMetadata,
    E: std::error::Error + 'static,
{
    let code = error.code().unwrap_or_default();
    let remedy = match code {
        "NoSuchBucket" => {
            "create it (infra/data-plane.yaml), or correct `objects` of the feed".to_owned()
        }
        "AccessDenied" => format!(
            "allow s3:ListBucket on arn:aws:s3:::{bucket} and s3:GetObject, s3:GetObjectVersion on \
             arn:aws:s3:::{bucket}/*: without the first, a missing object looks forbidden (403, not 404)"
        ),
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => {
            "the bucket is in another region: notifications need bucket, topic and queue in one"
                .to_owned()
        }
        _ => "check network, region (AWS_REGION), credentials and AWS_ENDPOINT_URL".to_owned(),
    };
    Finding::fail("bucket_readable", aws::describe(error), remedy)
}

/// Objects of a silent bucket are never heard of.
async fn notifications(client: &Client, bucket: &str) -> Finding {
    let check = "bucket_notifications";
    let answer = match client.get_bucket_notification_configuration().bucket(bucket).send().await {
        Ok(answer) => answer,
        Err(error) => {
            return Finding::warn(
                check,
                format!("notifications are unknown: {}", aws::describe(&error)),
                "allow s3:GetBucketNotification to have them checked; importers do not need it",
            );
        }
    };
    let created = |events: &[aws_sdk_s3::types::Event]| {
        events.iter().any(|event| event.as_str().starts_with("s3:ObjectCreated:"))
    };
    let targets: Vec<&str> = answer
        .topic_configurations()
        .iter()
        .filter(|topic| created(topic.events()))
        .map(|topic| topic.topic_arn())
        .chain(
            answer
                .queue_configurations()
                .iter()
                .filter(|queue| created(queue.events()))
                .map(|queue| queue.queue_arn()),
        )
        .chain(answer.event_bridge_configuration().map(|_| "EventBridge"))
        .collect();
    match targets.is_empty() {
        true => Finding::warn(
            check,
            "announces new objects to nobody: importers will not hear of them",
            "send its s3:ObjectCreated:* notifications to the topic (infra/data-plane.yaml does)",
        ),
        false => Finding::ok(check, format!("announces new objects to {}", targets.join(", "))),
    }
}

/// Catches the `Date` of an answer, which the SDK does not hand out.
#[derive(Clone, Debug, Default)]
struct DateHeader(Arc<Mutex<Option<String>>>);

impl DateHeader {
    fn read(&self) -> Option<Timestamp> {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        // RFC 9110 calls the zone GMT; RFC 2822 spells the same date with it.
        OffsetDateTime::parse(&text, &Rfc2822).ok().map(Timestamp::from)
    }
}

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "DateHeader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").map(str::to_owned);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_are_understood() {
        let header = DateHeader::default();
        assert_eq!(header.read(), None);
        *header.0.lock().unwrap() = Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned());
        assert_eq!(header.read(), Timestamp::parse("1994-11-06T08:49:37Z"));
    }
}
