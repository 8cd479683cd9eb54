//! A dead letter as a value: what it is about, which group it falls into, whether it was asked
//! for. Pure.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::Value;
use weirgate_common::clock::Timestamp;
use weirgate_common::config::Config;
use weirgate_common::dead_letter::{self, Reason};
use weirgate_common::queue::Message;

use crate::address::glob;

/// The reason shown for letters that SQS moved itself: a redrive tells no reason.
pub(crate) const REDRIVEN: &str = "redriven";

const REDRIVEN_DETAIL: &str = "SQS moved it here after too many receives, and tells no reason; \
     importers crashed on it or gave it back each time: see their logs";

#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) message: Message,
    /// `None` for redriven letters.
    pub(crate) reason: Option<Reason>,
    /// What the letter is about, as `s3://bucket/key`: as the importer said, else as the body
    /// says.
    pub(crate) objects: Vec<String>,
    pub(crate) feeds: Vec<String>,
}

impl Letter {
    pub(crate) fn read(message: Message, config: &Config, fleet: &str) -> Self {
        let reason = Reason::from_attributes(&message.attributes);
        let said = |text: Option<&String>| text.cloned().into_iter().collect::<Vec<_>>();
        let mut objects = said(reason.as_ref().and_then(|r| r.object.as_ref()));
        let mut feeds = said(reason.as_ref().and_then(|r| r.feed.as_ref()));
        if objects.is_empty() {
            for (bucket, key) in objects_in(&message.body) {
                if feeds.is_empty() {
                    feeds = config
                        .feeds_for(fleet, &bucket, &key)
                        .map(|(name, _)| name.to_owned())
                        .collect();
                }
                objects.push(format!("s3://{bucket}/{key}"));
            }
        }
        Letter { message, reason, objects, feeds }
    }

    pub(crate) fn id(&self) -> &str {
        &self.message.message_id
    }

    pub(crate) fn code(&self) -> &str {
        self.reason.as_ref().map_or(REDRIVEN, |reason| &reason.code)
    }

    pub(crate) fn detail(&self) -> &str {
        self.reason.as_ref().map_or(REDRIVEN_DETAIL, |reason| &reason.detail)
    }

    pub(crate) fn replays(&self) -> u32 {
        dead_letter::replays(&self.message.attributes)
    }

    fn fingerprint(&self) -> String {
        let object = self.objects.first().map_or("", String::as_str);
        dead_letter::fingerprint(self.code(), self.detail(), object)
    }

    /// The attributes a replay sends: everything but ours, the message's first name, and one more
    /// replay.
    pub(crate) fn attributes_for_replay(&self) -> BTreeMap<String, String> {
        let mut attributes = self.message.attributes.clone();
        attributes.retain(|name, _| !name.starts_with("weirgate-"));
        let first = dead_letter::original_id(&self.message).to_owned();
        attributes.insert(dead_letter::MESSAGE.to_owned(), first);
        attributes
            .insert(dead_letter::REPLAYS.to_owned(), self.replays().saturating_add(1).to_string());
        attributes
    }
}

/// Which letters a command is about. All conditions given must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Message ids, or their beginnings.
    pub(crate) ids: Vec<String>,
    pub(crate) reasons: Vec<String>,
    /// Prefixes, or patterns with `*`.
    pub(crate) objects: Vec<String>,
    pub(crate) feeds: Vec<String>,
    pub(crate) limit: Option<usize>,
}

impl Selection {
    /// Nothing was asked for in particular.
    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && self.reasons.is_empty()
            && self.objects.is_empty()
            && self.feeds.is_empty()
    }

    pub(crate) fn matches(&self, letter: &Letter) -> bool {
        let any = |wanted: &[String], holds: &dyn Fn(&str) -> bool| {
            wanted.is_empty() || wanted.iter().any(|text| holds(text))
        };
        any(&self.ids, &|id| letter.id().starts_with(id))
            && any(&self.reasons, &|code| letter.code() == code)
            && any(&self.feeds, &|feed| letter.feeds.iter().any(|own| own == feed))
            && any(&self.objects, &|pattern| letter.objects.iter().any(|o| glob(pattern, o)))
    }

    /// The indexes of the letters asked for, within the limit.
    pub(crate) fn pick<'l>(&self, letters: impl Iterator<Item = &'l Letter>) -> Vec<usize> {
        letters
            .enumerate()
            .filter(|(_, letter)| self.matches(letter))
            .map(|(index, _)| index)
            .take(self.limit.unwrap_or(usize::MAX))
            .collect()
    }
}

/// Letters that failed in the same way.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Group {
    pub(crate) count: usize,
    pub(crate) reason: String,
    pub(crate) feeds: Vec<String>,
    /// The error without what differs between the letters of the group.
    pub(crate) error: String,
    pub(crate) oldest_sent_at: Timestamp,
    pub(crate) replays_max: u32,
    /// One of them, to look at or to try first.
    pub(crate) example_id: String,
    pub(crate) example_object: Option<String>,
}

/// Most numerous first.
pub(crate) fn group<'l>(letters: impl Iterator<Item = &'l Letter>) -> Vec<Group> {
    let mut groups: BTreeMap<(String, Vec<String>), Group> = BTreeMap::new();
    for letter in letters {
        let fingerprint = letter.fingerprint();
        let sent_at = letter.message.sent_at;
        let prefix = letter.code().len() + ": ".len();
        let error = fingerprint.get(prefix..).unwrap_or_default().to_owned();
        let group = groups.entry((fingerprint, letter.feeds.clone())).or_insert_with(|| Group {
            count: 0,
            reason: letter.code().to_owned(),
            feeds: letter.feeds.clone(),
            error,
            oldest_sent_at: sent_at,
            replays_max: 0,
            example_id: letter.id().to_owned(),
            example_object: letter.objects.first().cloned(),
        });
        group.count += 1;
        group.oldest_sent_at = group.oldest_sent_at.min(sent_at);
        group.replays_max = group.replays_max.max(letter.replays());
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

/// The objects a body speaks of, whatever envelope it came in. For people's eyes and selections
/// only: the importer has the parser that decides, and a body nobody can read has none.
fn objects_in(body: &str) -> Vec<(String, String)> {
    let Ok(mut value) = serde_json::from_str::<Value>(body) else { return Vec::new() };
    let inner = value["Message"].as_str().and_then(|text| serde_json::from_str(text).ok());
    if let Some(inner) = inner {
        value = inner;
    }
    let pair = |bucket: &Value, key: String| Some((bucket.as_str()?.to_owned(), key));
    if let Some(records) = value["Records"].as_array() {
        return records
            .iter()
            .filter_map(|record| {
                let s3 = &record["s3"];
                pair(&s3["bucket"]["name"], form_decoded(s3["object"]["key"].as_str()?))
            })
            .collect();
    }
    let detail = &value["detail"];
    let plain = detail["object"]["key"].as_str().map(str::to_owned);
    plain.and_then(|key| pair(&detail["bucket"]["name"], key)).into_iter().collect()
}

/// Keys in S3's own events are form-encoded: the plus first, then the percents.
fn form_decoded(key: &str) -> String {
    percent_decode_str(&key.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn config() -> Config {
        Config::parse(
            "database = \"sqlite://w.db\"\n\
             [fleet.ads]\nqueue = \"https://sqs.eu-west-1.amazonaws.com/1/ads\"\n\
             [feed.impressions]\nfleet = \"ads\"\nobjects = \"s3://ads/imp/**\"\ntable = \"imp\"\n",
            &BTreeMap::new(),
        )
        .unwrap()
    }

    pub(crate) fn message(id: &str, body: &str, attributes: &[(&str, &str)]) -> Message {
        Message {
            message_id: id.to_owned(),
            receipt: format!("receipt of {id}"),
            body: body.to_owned(),
            receive_count: 1,
            sent_at: Timestamp::from_unix_ms(1_700_000_000_000),
            attributes: attributes.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        }
    }

    fn corrupt(id: &str, object: &str, detail: &str) -> Letter {
        let attributes = [
            (dead_letter::REASON, "corrupt_object"),
            (dead_letter::DETAIL, detail),
            (dead_letter::FEED, "impressions"),
            (dead_letter::OBJECT, object),
            (dead_letter::REPLAYS, "1"),
            ("traceparent", "00-1"),
        ];
        Letter::read(message(id, "{}", &attributes), &config(), "ads")
    }

    #[test]
    fn redriven_letters_are_read_from_their_bodies() {
        let record = r#"{"Records":[{"s3":{"bucket":{"name":"ads"},"object":{"key":"imp/dt%3D1/a+b%C3%BC.avro"}}}]}"#;
        let wrapped = serde_json::json!({"Type": "Notification", "Message": record}).to_string();
        let bridge = r#"{"detail-type":"Object Created","detail":{"bucket":{"name":"ads"},"object":{"key":"imp/a+b.avro"}}}"#;
        for (body, object) in [
            (record, "s3://ads/imp/dt=1/a bü.avro"),
            (wrapped.as_str(), "s3://ads/imp/dt=1/a bü.avro"),
            (bridge, "s3://ads/imp/a+b.avro"),
        ] {
            let letter = Letter::read(message("m", body, &[]), &config(), "ads");
            assert_eq!(letter.objects, [object]);
            assert_eq!(letter.feeds, ["impressions"]);
            assert_eq!(letter.code(), REDRIVEN);
        }
        for body in ["", "no JSON", "[]", r#"{"Records":[{"s3":7}]}"#, r#"{"Message":"x"}"#] {
            let letter = Letter::read(message("m", body, &[]), &config(), "ads");
            assert!(letter.objects.is_empty() && letter.feeds.is_empty(), "{body}");
        }
    }

    #[test]
    fn the_same_error_is_one_group_whatever_object_and_number() {
        let letters = [
            corrupt("m1", "s3://ads/imp/1.avro", "s3://ads/imp/1.avro: block 3: checksum"),
            Letter::read(message("m3", "no JSON", &[]), &config(), "ads"),
            corrupt("m2", "s3://ads/imp/22.avro", "s3://ads/imp/22.avro: block 14: checksum"),
        ];
        let groups = group(letters.iter());
        assert_eq!(groups.len(), 2);
        assert_eq!((groups[0].count, groups[0].reason.as_str()), (2, "corrupt_object"));
        assert_eq!(groups[0].error, "OBJECT: block N: checksum");
        assert_eq!(groups[0].example_id, "m1");
        assert_eq!((groups[1].count, groups[1].reason.as_str()), (1, REDRIVEN));
    }

    #[test]
    fn every_condition_given_must_hold() {
        let letter = corrupt("abc-1", "s3://ads/imp/1.avro", "checksum");
        let text = |text: &str| vec![text.to_owned()];
        let none = Selection::default();
        for (selection, matches) in [
            (none.clone(), true),
            (Selection { ids: text("abc"), ..none.clone() }, true),
            (Selection { ids: text("abd"), ..none.clone() }, false),
            (Selection { reasons: text("corrupt_object"), ..none.clone() }, true),
            (Selection { reasons: text(REDRIVEN), ..none.clone() }, false),
            (Selection { objects: text("s3://ads/imp/"), ..none.clone() }, true),
            (Selection { objects: text("*/2.avro"), ..none.clone() }, false),
            (Selection { feeds: text("impressions"), ..none.clone() }, true),
            (Selection { feeds: text("clicks"), ids: text("abc"), ..none.clone() }, false),
        ] {
            assert_eq!(selection.matches(&letter), matches, "{selection:?}");
        }
        let limited = Selection { limit: Some(1), ..none };
        assert_eq!(limited.pick([&letter, &letter].into_iter()), [0]);
    }

    #[test]
    fn a_replay_keeps_foreign_attributes_and_counts_itself() {
        let attributes = corrupt("m", "s3://ads/imp/1.avro", "x").attributes_for_replay();
        let expected =
            [("traceparent", "00-1"), (dead_letter::MESSAGE, "m"), (dead_letter::REPLAYS, "2")];
        assert_eq!(attributes, expected.map(|(k, v)| (k.into(), v.into())).into());
    }
}
