//! A received message → the work in it: which objects, for which feeds.

use weirgate_common::clock::Timestamp;
use weirgate_common::config::{Config, MESSAGES, is_leftover};
use weirgate_common::dead_letter::{self, Reason};
use weirgate_common::queue::Message;

use crate::event::{self, Event, ObjectCreated};
use crate::failure::Failure;
use crate::object::display_name;
use crate::protocol::{Arrival, DeliveryId, FeedId, Load};

/// A message this process holds.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) message: Message,
    pub(crate) tasks: Vec<Work>,
    pub(crate) received_at: Timestamp,
    /// When an import of it first failed in this process.
    pub(crate) first_failed_at: Option<Timestamp>,
}

/// One object for one feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) feed: String,
    pub(crate) object: ObjectCreated,
}

/// What an import may need in memory: compressed input, decompressed block, rows in wire format.
/// Objects stream, so no object needs more than the largest of them.
const COST_MAX: u64 = 32 << 20;

/// For an event that does not tell its object's size.
const COST_UNKNOWN: u64 = 8 << 20;

/// Understands the message and finds the feeds that take its objects.
pub(crate) fn take_in(
    config: &Config,
    fleet: &str,
    delivery: DeliveryId,
    message: Message,
    received_at: Timestamp,
) -> (Arrival, Held) {
    let (tasks, failure) = match event::parse(&message.body) {
        Ok(events) => route(config, fleet, &message, events),
        Err(error) => (Vec::new(), Some(Failure::permanent("bad_body", error.to_string()))),
    };
    let feed = |work: &Work| {
        FeedId(config.feeds.keys().position(|name| *name == work.feed).unwrap_or_default())
    };
    let load = |work: &Work| {
        let cost = work.object.size.unwrap_or(COST_UNKNOWN).saturating_mul(4);
        Load { feed: feed(work), cost: cost.clamp(1, COST_MAX) }
    };
    let arrival = Arrival {
        delivery,
        receive_count: message.receive_count,
        loads: tasks.iter().map(load).collect(),
        failure,
    };
    (arrival, Held { message, tasks, received_at, first_failed_at: None })
}

fn route(
    config: &Config,
    fleet: &str,
    message: &Message,
    events: Vec<Event>,
) -> (Vec<Work>, Option<Failure>) {
    let mut tasks = Vec::new();
    let mut failure = None;
    for event in events {
        let object = match event {
            Event::Created(object) => object,
            Event::Record(record) => record.into_object(message),
            Event::Ignored(kind) => {
                metrics::counter!("weirgate_events_ignored_total", "kind" => kind).increment(1);
                continue;
            }
        };
        if is_leftover(&object.key, object.size.unwrap_or(1)) {
            metrics::counter!("weirgate_events_ignored_total", "kind" => "leftover").increment(1);
            continue;
        }
        let before = tasks.len();
        for (feed, _) in config.feeds_for(fleet, &object.bucket, &object.key) {
            tasks.push(Work { feed: feed.to_owned(), object: object.clone() });
        }
        if tasks.len() == before {
            failure = Some(stranger(config, fleet, &object));
        }
    }
    (tasks, failure)
}

/// Nobody configured this object: perhaps a feed is missing, perhaps somebody forged an event.
/// Either way nothing of it is read.
fn stranger(config: &Config, fleet: &str, object: &ObjectCreated) -> Failure {
    let feeds = config.feeds.iter().filter(|(_, feed)| feed.fleet == fleet);
    let known = feeds.map(|(name, feed)| format!("{name} takes {}", feed.objects));
    let known = known.collect::<Vec<_>>().join("; ");
    let known_bucket = config.feeds.values().any(|feed| feed.objects.bucket() == object.bucket);
    let code = match known_bucket || object.bucket == MESSAGES {
        true => "no_feed",
        false => "unknown_bucket",
    };
    let detail = format!(
        "no feed of fleet {fleet} takes {} ({known}); add a feed and replay, or narrow the bucket's notification",
        display_name(object)
    );
    Failure::permanent(code, detail)
}

impl Held {
    /// What travels with the message into the dead-letter queue.
    pub(crate) fn reason(
        &self,
        event: Option<usize>,
        attempts: u32,
        failure: &Failure,
        now: Timestamp,
    ) -> Reason {
        let work = event.and_then(|index| self.tasks.get(index));
        Reason {
            code: failure.code.to_owned(),
            detail: failure.detail.clone(),
            feed: work.map(|work| work.feed.clone()),
            object: work.map(|work| display_name(&work.object)),
            message_id: dead_letter::original_id(&self.message).to_owned(),
            attempts,
            first_failed_at: self.first_failed_at.unwrap_or(now),
            replays: dead_letter::replays(&self.message.attributes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn config() -> Config {
        let text = r#"
            database = "sqlite://w.db"
            [fleet.ads]
            queue = "https://sqs.eu-west-1.amazonaws.com/1/ads"
            [feed.a]
            fleet = "ads"
            objects = "s3://b/a/**"
            table = "a"
            [feed.all]
            fleet = "ads"
            objects = "s3://b/**.avro"
            table = "everything"
        "#;
        Config::parse(text, &BTreeMap::new()).unwrap()
    }

    fn take(body: &str) -> (Arrival, Held) {
        let message = Message {
            message_id: "m".into(),
            receipt: "r".into(),
            body: body.into(),
            receive_count: 1,
            sent_at: Timestamp::from_unix_ms(0),
            attributes: BTreeMap::new(),
        };
        take_in(&config(), "ads", DeliveryId(1), message, Timestamp::from_unix_ms(0))
    }

    fn event(bucket: &str, key: &str, size: u64) -> serde_json::Value {
        serde_json::json!({"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket},
            "object": {"key": key, "eTag": "e", "size": size}}})
    }

    fn body(records: &[serde_json::Value]) -> String {
        serde_json::json!({ "Records": records }).to_string()
    }

    #[test]
    fn an_object_goes_to_every_feed_that_takes_it() {
        let (arrival, held) =
            take(&body(&[event("b", "a/1.avro", 10), event("b", "c/2.avro", 20)]));
        let feeds: Vec<_> =
            held.tasks.iter().map(|w| (w.feed.as_str(), w.object.key.as_str())).collect();
        assert_eq!(feeds, [("a", "a/1.avro"), ("all", "a/1.avro"), ("all", "c/2.avro")]);
        let load = |feed, cost| Load { feed: FeedId(feed), cost };
        assert_eq!(arrival.loads, [load(0, 40), load(1, 40), load(1, 80)]);
        assert_eq!(arrival.failure, None);
    }

    #[test]
    fn a_dead_letter_tells_when_it_failed_first() {
        let (_, mut held) = take(&body(&[event("b", "a/1.avro", 10)]));
        let failure = Failure::permanent("corrupt_object", "");
        let at = Timestamp::from_unix_ms;
        assert_eq!(held.reason(Some(0), 1, &failure, at(9)).first_failed_at, at(9));
        held.first_failed_at = Some(at(4));
        assert_eq!(held.reason(Some(0), 3, &failure, at(9)).first_failed_at, at(4));
    }

    #[test]
    fn what_nobody_takes_is_refused_and_leftovers_are_not() {
        let (arrival, _) = take(&body(&[event("b", "x.csv", 1)]));
        assert_eq!(arrival.failure.unwrap().code, "no_feed");
        let (arrival, _) = take(&body(&[event("other", "a/1.avro", 1)]));
        let failure = arrival.failure.unwrap();
        assert_eq!(failure.code, "unknown_bucket");
        assert!(
            failure.detail.contains("s3://other/a/1.avro")
                && failure.detail.contains("s3://b/a/**")
        );
        let (arrival, _) = take(&body(&[event("b", "a/_SUCCESS", 0), event("b", "a/", 0)]));
        assert!(arrival.failure.is_none() && arrival.loads.is_empty());
        let (arrival, _) = take("nonsense");
        assert_eq!(arrival.failure.unwrap().code, "bad_body");
    }
}
