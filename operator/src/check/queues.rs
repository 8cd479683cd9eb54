//! A fleet's queue and the dead-letter queue behind it.

use std::time::Duration;

use weirgate_common::aws;
use weirgate_common::config::{Fleet, Importer};
use weirgate_common::queue::{Queue, QueueError, Settings};

use super::finding::{Finding, Section};
use crate::text::{count, plural, span};
use crate::world::World;

/// Fewer receives than this, and one restart at the wrong time dead-letters healthy messages.
const RECEIVES_MIN: u32 = 3;

/// More receives than this, and a message that crashes importers crashes very many.
const RECEIVES_MAX: u32 = 50;

pub(super) async fn check(world: &World, name: &str, fleet: &Fleet) -> Vec<Section> {
    let client = aws::sqs(&world.sdk);
    let region = world.sdk.region().map(|region| region.as_ref().to_owned());
    let queue = Queue::new(client, fleet.queue.clone());
    let mut findings = vec![judge_region(&fleet.queue, region.as_deref())];
    let mut sections = Vec::new();
    let subject = format!("fleet {name}: queue {}", fleet.queue);
    let settings = match queue.settings().await {
        Ok(settings) => settings,
        Err(error) => {
            findings.push(unreachable("queue_reachable", &error, "sqs:GetQueueAttributes"));
            return vec![Section::new(subject, findings)];
        }
    };
    findings.extend(judge_source(&settings, &world.config.importer));
    if settings.redrive.is_some() {
        let letters = match queue.dead_letter_queue().await {
            Ok(letters) => letters.settings().await.map(|found| (letters.url().to_owned(), found)),
            Err(error) => Err(error),
        };
        let (subject, findings) = match &letters {
            Ok((url, found)) => (url.clone(), judge_letters(&settings, found)),
            Err(error) => (
                settings.redrive.as_ref().map_or(String::new(), |r| r.dead_letter_arn.clone()),
                vec![unreachable(
                    "dead_letter_queue_reachable",
                    error,
                    "sqs:GetQueueUrl, sqs:GetQueueAttributes and sqs:SendMessage",
                )],
            ),
        };
        sections.push(Section::new(format!("fleet {name}: dead-letter queue {subject}"), findings));
    }
    sections.insert(0, Section::new(subject, findings));
    sections
}

fn unreachable(check: &'static str, error: &QueueError, actions: &str) -> Finding {
    let code = error.code().unwrap_or_default();
    let remedy = if code.contains("NonExistentQueue") || code.contains("QueueDoesNotExist") {
        "create it (infra/data-plane.yaml), or correct the queue's URL, account and region"
            .to_owned()
    } else if code.contains("AccessDenied") {
        format!("allow {actions} on it")
    } else if code.is_empty() {
        "check network, region (AWS_REGION), credentials and AWS_ENDPOINT_URL".to_owned()
    } else {
        "check credentials and region; AWS says above what it refused".to_owned()
    };
    Finding::fail(check, error.to_string(), remedy)
}

/// The region that a queue URL names: `https://sqs.REGION.amazonaws.com/…`, the older
/// `https://REGION.queue.amazonaws.com/…`, or the path form of emulators `…/queue/REGION/…`.
fn region_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let mut parts = rest.split('/');
    let host = parts.next()?;
    if parts.next() == Some("queue") {
        return parts.next();
    }
    let mut labels = host.split('.');
    match (labels.next()?, labels.next()?) {
        ("sqs", region) if host.contains("amazonaws") => Some(region),
        (region, "queue") => Some(region),
        _ => None,
    }
}

fn judge_region(url: &str, configured: Option<&str>) -> Finding {
    match (region_of(url), configured) {
        (_, None) => Finding::fail(
            "region",
            "no AWS region is configured",
            "set AWS_REGION, or `region` in the AWS profile",
        ),
        (Some(named), Some(configured)) if named != configured => Finding::fail(
            "region",
            format!("the queue's URL names {named}, but the configured region is {configured}"),
            format!("set AWS_REGION={named}, or correct the queue's URL"),
        ),
        (_, Some(configured)) => Finding::ok("region", format!("region {configured}")),
    }
}

fn judge_source(settings: &Settings, importer: &Importer) -> Vec<Finding> {
    let depth = settings.depth;
    let mut findings = vec![Finding::ok(
        "queue_reachable",
        format!(
            "reachable; {} waiting, {} in flight, {} delayed",
            count(depth.visible),
            count(depth.in_flight),
            count(depth.delayed)
        ),
    )];
    findings.push(match &settings.redrive {
        None => Finding::fail(
            "redrive_policy",
            "has no redrive policy: a message that crashes importers does so for ever, and none can be dead-lettered",
            "give it a RedrivePolicy with a dead-letter queue (infra/data-plane.yaml does)",
        ),
        Some(redrive) => judge_receives(redrive.receives_max, importer.attempts_max),
    });
    findings.push(match settings.visibility_timeout < importer.lease {
        // Importers ask for their own lease with every receive; the queue's value rules others.
        true => Finding::warn(
            "visibility_timeout",
            format!(
                "visibility time-out {} is shorter than importer.lease {}: importers ask for their own, any other reader hands messages out twice",
                span(settings.visibility_timeout),
                span(importer.lease)
            ),
            format!("set VisibilityTimeout to {} or more", importer.lease.as_secs()),
        ),
        false => Finding::ok(
            "visibility_timeout",
            format!(
                "visibility time-out {}, importers lease for {}",
                span(settings.visibility_timeout),
                span(importer.lease)
            ),
        ),
    });
    findings
}

fn judge_receives(receives_max: u32, attempts_max: u32) -> Finding {
    let tries = receives_max.saturating_mul(attempts_max);
    let what = format!(
        "redrive after {}, with up to {} tries of a transient failure",
        plural(receives_max as usize, "receive"),
        count(u64::from(tries))
    );
    if receives_max < 2 {
        return Finding::fail(
            "max_receive_count",
            format!("{what}: any restart of an importer dead-letters healthy messages"),
            format!("set maxReceiveCount to 5, at least {RECEIVES_MIN}"),
        );
    }
    if receives_max < RECEIVES_MIN {
        return Finding::warn(
            "max_receive_count",
            format!("{what}: two interruptions dead-letter a healthy message"),
            format!("set maxReceiveCount to 5, at least {RECEIVES_MIN}"),
        );
    }
    if receives_max > RECEIVES_MAX {
        return Finding::warn(
            "max_receive_count",
            format!("{what}: a message that crashes importers crashes {receives_max} of them"),
            format!("set maxReceiveCount to 5, at most {RECEIVES_MAX}"),
        );
    }
    Finding::ok("max_receive_count", what)
}

fn judge_letters(source: &Settings, letters: &Settings) -> Vec<Finding> {
    let waiting = letters.depth.total();
    let mut findings = vec![match waiting {
        0 => Finding::ok("dead_letters", "reachable; empty"),
        _ => Finding::warn(
            "dead_letters",
            format!("reachable; {} waiting", plural(waiting as usize, "letter")),
            "see `weirgate dlq list`",
        ),
    }];
    // SQS counts a redriven message's age from when it was first sent.
    let (kept, source_kept) = (letters.retention, source.retention);
    findings.push(match kept > source_kept {
        true => Finding::ok(
            "retention",
            format!("keeps letters {}, the queue keeps messages {}", span(kept), span(source_kept)),
        ),
        false => Finding::fail(
            "retention",
            format!(
                "keeps letters {}, the queue keeps messages {}: SQS counts a redriven letter's age from the first send, so old ones vanish on arrival",
                span(kept),
                span(source_kept)
            ),
            retention_remedy(source_kept),
        ),
    });
    if letters.redrive.is_some() {
        findings.push(Finding::warn(
            "dead_letter_redrive",
            "has a redrive policy of its own: looking at letters counts as receiving, and moves them on",
            "remove the RedrivePolicy of the dead-letter queue",
        ));
    }
    findings
}

/// SQS keeps nothing longer.
const RETENTION_MAX: Duration = Duration::from_secs(14 * 86_400);

fn retention_remedy(source_kept: Duration) -> String {
    match source_kept < RETENTION_MAX {
        true => format!(
            "set MessageRetentionPeriod of the dead-letter queue to {}",
            RETENTION_MAX.as_secs()
        ),
        false => "set MessageRetentionPeriod of the queue to 345600 (4 days), of the dead-letter queue to 1209600 (14 days)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use weirgate_common::queue::{Depth, Redrive};

    use super::super::finding::Level;
    use super::*;

    fn days(days: u64) -> Duration {
        Duration::from_secs(days * 86_400)
    }

    fn settings(retention: Duration, receives_max: Option<u32>) -> Settings {
        Settings {
            arn: "arn:aws:sqs:eu-west-1:1:ads".into(),
            depth: Depth { visible: 0, in_flight: 0, delayed: 0 },
            visibility_timeout: Duration::from_secs(300),
            retention,
            redrive: receives_max.map(|receives_max| Redrive {
                dead_letter_arn: "arn:aws:sqs:eu-west-1:1:ads-dlq".into(),
                receives_max,
            }),
        }
    }

    fn importer(lease_seconds: u64) -> Importer {
        Importer {
            slots: 4,
            lease: Duration::from_secs(lease_seconds),
            drain_grace: Duration::from_secs(60),
            bytes_in_flight_max: 1,
            object_bytes_max: 1,
            attempts_max: 5,
            schemas: None,
        }
    }

    fn worst(findings: &[Finding]) -> Level {
        findings.iter().map(|finding| finding.level).max().unwrap()
    }

    #[test]
    fn regions_are_read_from_queue_urls() {
        for (url, region) in [
            ("https://sqs.eu-west-1.amazonaws.com/1/q", Some("eu-west-1")),
            ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", Some("cn-north-1")),
            ("https://eu-west-1.queue.amazonaws.com/1/q", Some("eu-west-1")),
            ("http://127.0.0.1:4566/queue/us-east-1/000000000000/q", Some("us-east-1")),
            ("http://127.0.0.1:4566/000000000000/q", None),
            ("https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com/1/q", None),
        ] {
            assert_eq!(region_of(url), region, "{url}");
        }
        let url = "https://sqs.eu-west-1.amazonaws.com/1/q";
        assert_eq!(judge_region(url, Some("eu-west-1")).level, Level::Ok);
        let finding = judge_region(url, Some("us-east-1"));
        assert!(finding.level == Level::Fail && finding.remedy.unwrap().contains("eu-west-1"));
        assert_eq!(judge_region(url, None).level, Level::Fail);
    }

    #[test]
    fn a_queue_without_a_way_out_fails() {
        assert_eq!(worst(&judge_source(&settings(days(4), None), &importer(60))), Level::Fail);
        for (receives_max, level) in
            [(1, Level::Fail), (2, Level::Warn), (5, Level::Ok), (99, Level::Warn)]
        {
            let found = judge_source(&settings(days(4), Some(receives_max)), &importer(60));
            assert_eq!(worst(&found), level, "{receives_max}");
        }
        let found = judge_source(&settings(days(4), Some(5)), &importer(600));
        assert_eq!(worst(&found), Level::Warn);
    }

    #[test]
    fn letters_must_outlive_their_queue() {
        let source = settings(days(4), Some(5));
        for (kept, level) in [(days(14), Level::Ok), (days(4), Level::Fail), (days(1), Level::Fail)]
        {
            assert_eq!(worst(&judge_letters(&source, &settings(kept, None))), level);
        }
        let found = judge_letters(&settings(days(14), Some(5)), &settings(days(14), None));
        assert!(found[1].remedy.as_ref().unwrap().contains("345600"));
        assert_eq!(worst(&judge_letters(&source, &settings(days(14), Some(5)))), Level::Warn);
    }
}
