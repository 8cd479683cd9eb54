//! A message body → the events in it. The body is untrusted input: anyone who may write to the
//! queue wrote it.
//!
//! Understood: S3 notifications as S3 sends them, the same wrapped by SNS (detected per message,
//! since raw delivery may be switched on while wrapped messages are still queued), and S3 events
//! by EventBridge. A body that is no JSON may be a record itself, in base64.

use std::borrow::Cow;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use sha2::{Digest, Sha256};
use weirgate_avro::container::MAGIC;
use weirgate_avro::inline::{self, InlineError};
use weirgate_common::clock::Timestamp;
use weirgate_common::config::MESSAGES;
use weirgate_common::dead_letter::original_id;
use weirgate_common::queue::Message;

/// S3's limit on keys, in bytes of UTF-8.
const KEY_BYTES_MAX: usize = 1_024;

/// One notification record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Created(ObjectCreated),
    Record(Record),
    /// Acknowledged and counted under this name: removals, test events, confirmations.
    Ignored(&'static str),
}

/// An object came into being. Bucket and key are as the store knows them, not as the event
/// spelled them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectCreated {
    pub bucket: String,
    pub key: String,
    /// Without quotes.
    pub etag: String,
    /// Absent in buckets without versioning.
    pub version_id: Option<String>,
    /// Bytes; some services omit it.
    pub size: Option<u64>,
    /// Orders the versions of one key; see [`sequencer_cmp`](crate::sink::admission).
    pub sequencer: Option<String>,
    pub at: Option<Timestamp>,
    /// The object itself, where the message carried it instead of naming it.
    pub content: Option<Bytes>,
}

/// A record that came in the message: an Avro datum behind its framing, or a whole small file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub content: Bytes,
    /// What SNS called it. Without SNS only SQS has a name for it.
    pub message_id: Option<String>,
    /// When it was published.
    pub at: Option<Timestamp>,
}

impl Record {
    /// As an object: its key is the message's name, its ETag tells two contents apart.
    pub fn into_object(self, message: &Message) -> ObjectCreated {
        let key = self.message_id.unwrap_or_else(|| original_id(message).to_owned());
        let digest = Sha256::digest(&self.content);
        ObjectCreated {
            bucket: MESSAGES.to_owned(),
            key,
            etag: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            version_id: None,
            size: Some(self.content.len() as u64),
            sequencer: None,
            at: self.at.or(Some(message.sent_at)),
            content: Some(self.content),
        }
    }
}

/// Why a body is no event. Always permanent: the body will not change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadBody {
    #[error(
        "the body is not JSON ({detail}), nor is it a record ({record}); expected an S3 event, raw, through SNS or through EventBridge, or base64 of an Avro record with its framing, or of an Avro file"
    )]
    NotJson { detail: String, record: InlineError },
    #[error(
        "the body is JSON but no S3 event (top-level keys: {keys}); expected `Records`, an SNS `Notification` or an EventBridge `detail`"
    )]
    NotAnEvent { keys: String },
    #[error("record {index}: {problem}")]
    Record { index: usize, problem: String },
}

/// All events of a message body.
pub fn parse(body: &str) -> Result<Vec<Event>, BadBody> {
    let value = match json(body) {
        Ok(value) => value,
        Err(detail) => return Ok(vec![record(body, detail, &Value::Null)?]),
    };
    match value["Type"].as_str() {
        Some("Notification") => match value["Message"].as_str() {
            Some(inner) => match json(inner) {
                Ok(inner) => unwrapped(&inner),
                Err(detail) => Ok(vec![record(inner, detail, &value)?]),
            },
            None => Err(not_an_event(&value)),
        },
        Some("SubscriptionConfirmation" | "UnsubscribeConfirmation") => {
            Ok(vec![Event::Ignored("sns_confirmation")])
        }
        _ => unwrapped(&value),
    }
}

/// The value, or what is wrong with the text.
fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// What is no JSON: a record, if it begins like one. `envelope` is what SNS put around it.
fn record(text: &str, not_json: String, envelope: &Value) -> Result<Event, BadBody> {
    let bytes = inline::from_base64(text).and_then(|bytes| match bytes.starts_with(MAGIC) {
        true => Ok(bytes),
        false => inline::unframe(&bytes).map(drop).map(|()| bytes),
    });
    let content = bytes.map_err(|record| BadBody::NotJson { detail: not_json, record })?;
    Ok(Event::Record(Record {
        content: content.into(),
        message_id: text_of(envelope, "MessageId").ok().map(str::to_owned),
        at: envelope["Timestamp"].as_str().and_then(Timestamp::parse),
    }))
}

fn unwrapped(value: &Value) -> Result<Vec<Event>, BadBody> {
    if let Some(records) = value["Records"].as_array() {
        let parsed = records.iter().enumerate().map(|(index, record)| {
            s3_record(record).map_err(|problem| BadBody::Record { index, problem })
        });
        return parsed.collect();
    }
    if value["Event"] == "s3:TestEvent" {
        return Ok(vec![Event::Ignored("s3_test")]);
    }
    if value["source"] == "aws.s3" && value["detail"].is_object() {
        return event_bridge(value)
            .map(|event| vec![event])
            .map_err(|problem| BadBody::Record { index: 0, problem });
    }
    Err(not_an_event(value))
}

fn not_an_event(value: &Value) -> BadBody {
    let keys = match value {
        Value::Object(map) if map.is_empty() => "none".to_owned(),
        Value::Object(map) => {
            map.keys().take(8).map(|key| short(key)).collect::<Vec<_>>().join(", ")
        }
        _ => "none, it is no object".to_owned(),
    };
    BadBody::NotAnEvent { keys }
}

/// The format of S3 itself: keys are form-encoded.
fn s3_record(record: &Value) -> Result<Event, String> {
    let name = text_of(record, "eventName")?;
    // In the records the name comes without the `s3:` that the configuration uses.
    let name = name.strip_prefix("s3:").unwrap_or(name);
    if !name.starts_with("ObjectCreated:") {
        return Ok(Event::Ignored(match name.starts_with("ObjectRemoved:") {
            true => "object_removed",
            false => "other_event",
        }));
    }
    // Versions are compatible while the major number is the same.
    if let Some(version) = record["eventVersion"].as_str()
        && version.split('.').next() != Some("2")
    {
        let version = short(version);
        return Err(format!("eventVersion `{version}` is not understood; this release knows 2.x"));
    }
    let object = &record["s3"]["object"];
    let encoded = text_of(object, "key")?;
    let plus_decoded = encoded.replace('+', " ");
    let key = percent_decode_str(&plus_decoded)
        .decode_utf8()
        .map_err(|_| format!("the key `{}` is not UTF-8 once decoded", short(encoded)))?;
    created(
        text_of(&record["s3"]["bucket"], "name")?,
        key,
        object,
        ["eTag", "versionId"],
        record["eventTime"].as_str(),
    )
}

/// EventBridge sends the key plain.
fn event_bridge(event: &Value) -> Result<Event, String> {
    match event["detail-type"].as_str() {
        Some("Object Created") => {}
        Some("Object Deleted") => return Ok(Event::Ignored("object_removed")),
        _ => return Ok(Event::Ignored("other_event")),
    }
    let object = &event["detail"]["object"];
    created(
        text_of(&event["detail"]["bucket"], "name")?,
        Cow::Borrowed(text_of(object, "key")?),
        object,
        ["etag", "version-id"],
        event["time"].as_str(),
    )
}

fn created(
    bucket: &str,
    key: Cow<'_, str>,
    object: &Value,
    [etag, version_id]: [&str; 2],
    at: Option<&str>,
) -> Result<Event, String> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(format!("the key has {} bytes; S3 allows 1 to {KEY_BYTES_MAX}", key.len()));
    }
    let optional =
        |name: &str| object[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    Ok(Event::Created(ObjectCreated {
        bucket: bucket.to_owned(),
        key: key.into_owned(),
        etag: text_of(object, etag)?.trim_matches('"').to_owned(),
        // Buckets without versioning report the version "null" in some emulators.
        version_id: optional(version_id).filter(|version| version != "null"),
        size: object["size"].as_u64(),
        sequencer: optional("sequencer"),
        at: at.and_then(Timestamp::parse),
        content: None,
    }))
}

fn text_of<'v>(value: &'v Value, name: &str) -> Result<&'v str, String> {
    value[name]
        .as_str()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| format!("`{name}` is missing or no text"))
}

/// Untrusted text in an error message, cut short.
fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, object: &str) -> String {
        format!(
            r#"{{"eventVersion":"2.1","eventSource":"aws:s3","eventTime":"2026-03-01T12:00:00.000Z",
                "eventName":"{name}","s3":{{"bucket":{{"name":"b"}},"object":{object}}}}}"#
        )
    }

    fn body(records: &[String]) -> String {
        format!(r#"{{"Records":[{}]}}"#, records.join(","))
    }

    const OBJECT: &str = r#"{"key":"dt%3D1/my+file%2B.avro","size":7,"eTag":"abc","sequencer":"0A","versionId":"v1"}"#;

    fn expected() -> Event {
        Event::Created(ObjectCreated {
            bucket: "b".into(),
            key: "dt=1/my file+.avro".into(),
            etag: "abc".into(),
            version_id: Some("v1".into()),
            size: Some(7),
            sequencer: Some("0A".into()),
            at: Timestamp::parse("2026-03-01T12:00:00Z"),
            content: None,
        })
    }

    #[test]
    fn s3_events_raw_and_wrapped_are_the_same() {
        let raw = body(&[record("ObjectCreated:Put", OBJECT)]);
        assert_eq!(parse(&raw), Ok(vec![expected()]));
        let wrapped = serde_json::json!({"Type": "Notification", "MessageId": "m", "Message": raw});
        assert_eq!(parse(&wrapped.to_string()), Ok(vec![expected()]));
    }

    #[test]
    fn every_record_counts_and_others_are_ignored_by_name() {
        let events = parse(&body(&[
            record("ObjectCreated:CompleteMultipartUpload", OBJECT),
            record("ObjectRemoved:Delete", "{}"),
            record("ObjectTagging:Put", "{}"),
            record("s3:ObjectCreated:Copy", OBJECT),
        ]));
        let ignored = |name| Event::Ignored(name);
        assert_eq!(
            events,
            Ok(vec![expected(), ignored("object_removed"), ignored("other_event"), expected()])
        );
        let test = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"b"}"#;
        assert_eq!(parse(test), Ok(vec![ignored("s3_test")]));
        let confirmation = r#"{"Type":"SubscriptionConfirmation","Message":"hi"}"#;
        assert_eq!(parse(confirmation), Ok(vec![ignored("sns_confirmation")]));
        assert_eq!(parse(r#"{"Records":[]}"#), Ok(vec![]));
    }

    #[test]
    fn event_bridge_keys_are_plain() {
        let body = r#"{"detail-type":"Object Created","source":"aws.s3","time":"2026-03-01T12:00:00Z",
            "detail":{"bucket":{"name":"b"},"object":{"key":"a+b%20.avro","size":1,"etag":"\"x\"",
            "version-id":"v","sequencer":"1"}}}"#;
        let events = parse(body).unwrap();
        let [Event::Created(object)] = events.as_slice() else { panic!("one event expected") };
        assert_eq!((object.key.as_str(), object.etag.as_str()), ("a+b%20.avro", "x"));
    }

    #[test]
    fn what_is_no_json_may_be_a_record() {
        // Single-object encoding, a registry's framing, a file.
        for (text, begins) in
            [("wwEBAgMEBQYHCAY=", &[0xc3, 1][..]), ("AAAAAAEC", &[0]), ("T2JqAQ", MAGIC)]
        {
            let events = parse(text).unwrap();
            let [Event::Record(record)] = events.as_slice() else { panic!("a record expected") };
            assert!(record.content.starts_with(begins));
            assert_eq!((record.message_id.as_deref(), record.at), (None, None));
            let wrapped = serde_json::json!({"Type": "Notification", "MessageId": "m",
                "Timestamp": "2026-03-01T12:00:00.000Z", "Message": text});
            let events = parse(&wrapped.to_string()).unwrap();
            let [Event::Record(wrapped)] = events.as_slice() else { panic!("a record expected") };
            assert_eq!(wrapped.content, record.content);
            assert_eq!(wrapped.message_id.as_deref(), Some("m"));
            assert_eq!(wrapped.at, Timestamp::parse("2026-03-01T12:00:00Z"));
        }
    }

    #[test]
    fn a_record_is_known_by_its_first_message() {
        let message = |attributes: &[(&str, &str)]| Message {
            message_id: "sqs".into(),
            receipt: "r".into(),
            body: String::new(),
            receive_count: 1,
            sent_at: Timestamp::from_unix_ms(5),
            attributes: attributes.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        };
        let record = |message_id: Option<&str>| Record {
            content: Bytes::from_static(b"\0\0\0\0\x01x"),
            message_id: message_id.map(str::to_owned),
            at: None,
        };
        let first = record(None).into_object(&message(&[]));
        assert_eq!((first.bucket.as_str(), first.key.as_str()), (MESSAGES, "sqs"));
        assert_eq!((first.etag.len(), first.at), (64, Some(Timestamp::from_unix_ms(5))));
        let replayed = message(&[("weirgate-message-id", "first")]);
        assert_eq!(record(None).into_object(&replayed).key, "first");
        assert_eq!(record(Some("sns")).into_object(&replayed).key, "sns");
    }

    #[test]
    fn malformed_bodies_say_what_is_wrong() {
        for (body, expected) in [
            ("hello", "is not JSON"),
            ("", "is not JSON"),
            ("[]", "no S3 event"),
            (r#"{"a":1}"#, "top-level keys: a"),
            (r#"{"Type":"Notification","Message":"hello"}"#, "is not JSON"),
            (r#"{"Type":"Notification"}"#, "no S3 event"),
            (r#"{"Records":[{}]}"#, "record 0: `eventName` is missing"),
            (&body(&[record("ObjectCreated:Put", r#"{"key":"k"}"#)]), "`eTag` is missing"),
            (&body(&[record("ObjectCreated:Put", r#"{"key":"%ff","eTag":"e"}"#)]), "is not UTF-8"),
            (
                &body(&[record("ObjectCreated:Put", OBJECT).replace("\"2.1\"", "\"3.0\"")]),
                "eventVersion `3.0`",
            ),
            (
                &body(&[record("ObjectCreated:Put", &OBJECT.replace("my", &"x".repeat(2_000)))]),
                "S3 allows 1 to 1024",
            ),
        ] {
            let error = parse(body).unwrap_err().to_string();
            assert!(error.contains(expected), "{body} gave {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_body_panics(body: String) {
            let _ = parse(&body);
        }

        #[test]
        fn every_key_survives_form_encoding(key in "\\PC{1,50}") {
            let encoded: String = percent_encoding::utf8_percent_encode(
                &key, percent_encoding::NON_ALPHANUMERIC).to_string().replace("%20", "+");
            let object = serde_json::json!({"key": encoded, "eTag": "e"}).to_string();
            let events = parse(&body(&[record("ObjectCreated:Put", &object)])).unwrap();
            let Event::Created(object) = &events[0] else { panic!() };
            proptest::prop_assert_eq!(&object.key, &key);
        }
    }
}
