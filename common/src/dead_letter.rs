//! What travels with a message into the dead-letter queue: the contract between the importer
//! that sends it there and the operator who reads and replays it.
//!
//! The original body is kept as it was. SQS allows ten attributes; these are eight, which leaves
//! room for tracing headers.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::queue::Message;

pub const REASON: &str = "weirgate-reason";
pub const DETAIL: &str = "weirgate-detail";
pub const FEED: &str = "weirgate-feed";
pub const OBJECT: &str = "weirgate-object";
pub const ATTEMPTS: &str = "weirgate-attempts";
pub const FIRST_FAILED_AT: &str = "weirgate-first-failed-at";
/// What SQS called the message before it was dead-lettered for the first time. A replay keeps it:
/// a record that came in the message itself is known by it.
pub const MESSAGE: &str = "weirgate-message-id";
/// Kept and raised by a replay: it makes loops visible.
pub const REPLAYS: &str = "weirgate-replays";

/// Attribute text is cut to this many bytes, so that a long error can never make the dead
/// letter larger than SQS accepts.
pub const DETAIL_BYTES_MAX: usize = 2_048;

/// Why a message was dead-lettered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// A short stable code, the same for all failures of a kind: `corrupt_object`, `bad_body`, …
    pub code: String,
    /// The error in full: what, where, what to do.
    pub detail: String,
    pub feed: Option<String>,
    /// `s3://bucket/key`, with `#version` when the event named one.
    pub object: Option<String>,
    /// See [`MESSAGE`].
    pub message_id: String,
    pub attempts: u32,
    pub first_failed_at: Timestamp,
    /// How often an operator had replayed it before.
    pub replays: u32,
}

impl Reason {
    pub fn to_attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::from([
            (REASON.to_owned(), attribute_text(&self.code)),
            (DETAIL.to_owned(), attribute_text(&self.detail)),
            (MESSAGE.to_owned(), attribute_text(&self.message_id)),
            (ATTEMPTS.to_owned(), self.attempts.to_string()),
            (FIRST_FAILED_AT.to_owned(), self.first_failed_at.to_string()),
            (REPLAYS.to_owned(), self.replays.to_string()),
        ]);
        for (name, value) in [(FEED, &self.feed), (OBJECT, &self.object)] {
            if let Some(value) = value {
                attributes.insert(name.to_owned(), attribute_text(value));
            }
        }
        attributes
    }

    /// `None` for a message that SQS itself moved here: redrive gives no reason.
    pub fn from_attributes(attributes: &BTreeMap<String, String>) -> Option<Self> {
        let text = |name: &str| attributes.get(name).cloned();
        Some(Reason {
            code: text(REASON)?,
            detail: text(DETAIL).unwrap_or_default(),
            feed: text(FEED),
            object: text(OBJECT),
            message_id: text(MESSAGE).unwrap_or_default(),
            attempts: text(ATTEMPTS).and_then(|n| n.parse().ok()).unwrap_or(0),
            first_failed_at: text(FIRST_FAILED_AT)
                .and_then(|t| Timestamp::parse(&t))
                .unwrap_or(Timestamp::from_unix_ms(0)),
            replays: replays(attributes),
        })
    }
}

/// What the message was called before it was ever dead-lettered.
pub fn original_id(message: &Message) -> &str {
    message.attributes.get(MESSAGE).unwrap_or(&message.message_id)
}

/// How often the message was replayed before; a missing or damaged count is zero.
pub fn replays(attributes: &BTreeMap<String, String>) -> u32 {
    attributes.get(REPLAYS).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The failure without what differs between two of a kind: numbers and the object's name. Groups
/// a thousand dead letters into one line, the same line in the ledger and in the operator's list.
pub fn fingerprint(reason: &str, detail: &str, object: &str) -> String {
    let detail = match object {
        "" => std::borrow::Cow::Borrowed(detail),
        object => std::borrow::Cow::Owned(detail.replace(object, "OBJECT")),
    };
    let mut text = format!("{reason}: ");
    let mut in_number = false;
    for c in detail.chars() {
        if c.is_ascii_digit() {
            if !in_number {
                text.push('N');
            }
            in_number = true;
        } else {
            text.push(c);
            in_number = false;
        }
    }
    text
}

/// SQS refuses attribute values that are empty or hold control characters other than tab, line
/// feed and carriage return.
fn attribute_text(text: &str) -> String {
    let mut clean = String::new();
    for c in text.chars() {
        let c = match c {
            '\t' | '\n' | '\r' => c,
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => '\u{fffd}',
            c => c,
        };
        if clean.len() + c.len_utf8() > DETAIL_BYTES_MAX {
            break;
        }
        clean.push(c);
    }
    if clean.is_empty() { "-".to_owned() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason() -> Reason {
        Reason {
            code: "corrupt_object".into(),
            detail: "block 3 at byte 812: snappy checksum does not match".into(),
            feed: Some("impressions".into()),
            object: Some("s3://ads-events/a.avro".into()),
            message_id: "8f1e".into(),
            attempts: 2,
            first_failed_at: Timestamp::from_unix_ms(1_700_000_000_000),
            replays: 1,
        }
    }

    #[test]
    fn attributes_round_trip_within_the_sqs_limit() {
        let attributes = reason().to_attributes();
        assert!(attributes.len() <= 10);
        assert_eq!(Reason::from_attributes(&attributes), Some(reason()));
    }

    #[test]
    fn the_same_fault_in_two_objects_has_one_fingerprint() {
        let of = |object: &str, detail: &str| fingerprint("corrupt_object", detail, object);
        let one = of("s3://b/1.avro", "s3://b/1.avro: block 3 at byte 812: checksum");
        let two = of("s3://b/22.avro", "s3://b/22.avro: block 14 at byte 9: checksum");
        assert_eq!(one, two);
        assert_eq!(one, "corrupt_object: OBJECT: block N at byte N: checksum");
        assert_eq!(fingerprint("bad_body", "no JSON", ""), "bad_body: no JSON");
    }

    #[test]
    fn redriven_messages_have_no_reason() {
        assert_eq!(Reason::from_attributes(&BTreeMap::new()), None);
    }

    #[test]
    fn hostile_detail_is_made_fit_for_sqs() {
        let detail = format!("\u{0}{}", "é".repeat(5_000));
        let attributes = Reason { detail, ..reason() }.to_attributes();
        let sent = &attributes[DETAIL];
        assert!(sent.len() <= DETAIL_BYTES_MAX && sent.starts_with('\u{fffd}'));
        let attributes = Reason { detail: String::new(), ..reason() }.to_attributes();
        assert_eq!(attributes[DETAIL], "-");
    }
}
