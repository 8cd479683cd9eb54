//! SQS as Weirgate uses it: batches with per-entry results, counts that may be unknown, and the
//! dead-letter queue found through the redrive policy.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry,
    DeleteMessageBatchRequestEntry, MessageAttributeValue, MessageSystemAttributeName,
    QueueAttributeName, SendMessageBatchRequestEntry,
};

use crate::aws::describe;
use crate::clock::Timestamp;
use crate::fault::{Dependency, Fault};

/// Entries per batch call, and messages per receive.
pub const BATCH_MAX: usize = 10;

/// SQS ends any lease this long after the receive, whatever is asked.
pub const LEASE_TOTAL_MAX: Duration = Duration::from_secs(12 * 3600);

/// One queue, by URL.
#[derive(Clone, Debug)]
pub struct Queue {
    client: Client,
    url: String,
}

/// One receipt of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub message_id: String,
    /// Valid for this receipt only; a later receive makes it stale without an error.
    pub receipt: String,
    pub body: String,
    /// How often SQS has handed the message out, this time included.
    pub receive_count: u32,
    pub sent_at: Timestamp,
    /// String attributes only.
    pub attributes: BTreeMap<String, String>,
}

/// Approximate counts of one reading. SQS moves messages between them non-atomically and may
/// be a minute behind: never decide "drained" from a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Depth {
    pub visible: u64,
    pub in_flight: u64,
    pub delayed: u64,
}

impl Depth {
    pub fn total(self) -> u64 {
        self.visible.saturating_add(self.in_flight).saturating_add(self.delayed)
    }
}

/// What the queue is configured to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub arn: String,
    pub depth: Depth,
    pub visibility_timeout: Duration,
    pub retention: Duration,
    pub redrive: Option<Redrive>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redrive {
    pub dead_letter_arn: String,
    pub receives_max: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("queue {url}: {call} failed: {detail}")]
    Call { url: String, call: &'static str, code: Option<String>, detail: String },
    #[error("queue {url}: SQS did not report {attribute}; the reading counts as unknown")]
    MissingAttribute { url: String, attribute: &'static str },
    #[error(
        "queue {url} has no redrive policy; give it a dead-letter queue (RedrivePolicy) so that nothing is lost"
    )]
    NoDeadLetterQueue { url: String },
    #[error("queue {url}: entry refused by {call}: {code}: {detail}")]
    Entry { url: String, call: &'static str, code: String, detail: String, sender_fault: bool },
}

impl QueueError {
    pub fn fault(&self) -> Fault {
        match self {
            QueueError::Call { .. } | QueueError::MissingAttribute { .. } => {
                Fault::Outage(Dependency::Queue)
            }
            QueueError::NoDeadLetterQueue { .. } => Fault::Outage(Dependency::Queue),
            QueueError::Entry { sender_fault: true, .. } => Fault::Permanent,
            QueueError::Entry { .. } if self.is_stale_receipt() => Fault::Permanent,
            QueueError::Entry { .. } => Fault::Transient,
        }
    }

    /// The receipt belongs to an earlier delivery, or its lease is over: whatever was asked for it
    /// can no longer be done, and somebody else has, or will get, the message. Emulators do not
    /// call this the sender's fault, so the code decides.
    pub fn is_stale_receipt(&self) -> bool {
        let stale = ["ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"];
        self.code().is_some_and(|code| stale.iter().any(|name| code.ends_with(name)))
    }

    /// The AWS error code, when SQS answered with one.
    pub fn code(&self) -> Option<&str> {
        match self {
            QueueError::Call { code, .. } => code.as_deref(),
            QueueError::Entry { code, .. } => Some(code),
            QueueError::MissingAttribute { .. } | QueueError::NoDeadLetterQueue { .. } => None,
        }
    }
}

/// One result per entry, in the order of the request: SQS answers 200 with failures inside.
pub type EntryResults = Vec<Result<(), QueueError>>;

impl Queue {
    pub fn new(client: Client, url: impl Into<String>) -> Self {
        Queue { client, url: url.into() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn depth(&self) -> Result<Depth, QueueError> {
        Ok(self.settings().await?.depth)
    }

    pub async fn settings(&self) -> Result<Settings, QueueError> {
        let answer = self
            .client
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::All)
            .send()
            .await
            .map_err(|e| self.call("GetQueueAttributes", e))?;
        let attributes = answer.attributes.unwrap_or_default();
        let text = |name: QueueAttributeName, label: &'static str| {
            attributes.get(&name).cloned().ok_or_else(|| QueueError::MissingAttribute {
                url: self.url.clone(),
                attribute: label,
            })
        };
        let number = |name: QueueAttributeName, label: &'static str| {
            text(name, label)?.parse::<u64>().map_err(|_| QueueError::MissingAttribute {
                url: self.url.clone(),
                attribute: label,
            })
        };
        use QueueAttributeName as Name;
        Ok(Settings {
            arn: text(Name::QueueArn, "QueueArn")?,
            depth: Depth {
                visible: number(Name::ApproximateNumberOfMessages, "ApproximateNumberOfMessages")?,
                in_flight: number(
                    Name::ApproximateNumberOfMessagesNotVisible,
                    "ApproximateNumberOfMessagesNotVisible",
                )?,
                delayed: number(
                    Name::ApproximateNumberOfMessagesDelayed,
                    "ApproximateNumberOfMessagesDelayed",
                )?,
            },
            visibility_timeout: Duration::from_secs(number(
                Name::VisibilityTimeout,
                "VisibilityTimeout",
            )?),
            retention: Duration::from_secs(number(
                Name::MessageRetentionPeriod,
                "MessageRetentionPeriod",
            )?),
            redrive: attributes.get(&Name::RedrivePolicy).and_then(|text| parse_redrive(text)),
        })
    }

    /// The queue that this one's redrive policy names.
    pub async fn dead_letter_queue(&self) -> Result<Queue, QueueError> {
        let settings = self.settings().await?;
        let redrive = settings
            .redrive
            .ok_or_else(|| QueueError::NoDeadLetterQueue { url: self.url.clone() })?;
        // arn:aws:sqs:REGION:ACCOUNT:NAME
        let mut parts = redrive.dead_letter_arn.rsplit(':');
        let (name, account) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let answer = self
            .client
            .get_queue_url()
            .queue_name(name)
            .queue_owner_aws_account_id(account)
            .send()
            .await
            .map_err(|e| self.call("GetQueueUrl", e))?;
        let url = answer
            .queue_url
            .ok_or_else(|| QueueError::NoDeadLetterQueue { url: self.url.clone() })?;
        Ok(Queue::new(self.client.clone(), url))
    }

    /// Up to ten messages. Never cancel this call: messages it would have returned are hidden
    /// until `visibility` has passed.
    pub async fn receive(
        &self,
        count_max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let answer = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(count_max.clamp(1, BATCH_MAX) as i32)
            .wait_time_seconds(seconds(wait))
            .visibility_timeout(seconds(visibility))
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All")
            .send()
            .await
            .map_err(|e| self.call("ReceiveMessage", e))?;
        Ok(answer.messages.unwrap_or_default().into_iter().map(message).collect())
    }

    pub async fn delete(&self, receipts: &[String]) -> EntryResults {
        let mut results = Vec::with_capacity(receipts.len());
        for batch in receipts.chunks(BATCH_MAX) {
            let entries = batch.iter().enumerate().map(|(i, receipt)| {
                DeleteMessageBatchRequestEntry::builder()
                    .id(i.to_string())
                    .receipt_handle(receipt)
                    .build()
                    .expect("id and receipt handle are set")
            });
            let answer = self
                .client
                .delete_message_batch()
                .queue_url(&self.url)
                .set_entries(Some(entries.collect()))
                .send()
                .await
                .map(|answer| answer.failed);
            self.settle("DeleteMessageBatch", batch.len(), answer, &mut results);
        }
        results
    }

    /// Restarts the visibility clock of each receipt at the given span from now; zero releases.
    pub async fn change_visibility(&self, receipts: &[(String, Duration)]) -> EntryResults {
        let mut results = Vec::with_capacity(receipts.len());
        for batch in receipts.chunks(BATCH_MAX) {
            let entries = batch.iter().enumerate().map(|(i, (receipt, visibility))| {
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(i.to_string())
                    .receipt_handle(receipt)
                    .visibility_timeout(seconds(*visibility))
                    .build()
                    .expect("id and receipt handle are set")
            });
            let answer = self
                .client
                .change_message_visibility_batch()
                .queue_url(&self.url)
                .set_entries(Some(entries.collect()))
                .send()
                .await
                .map(|answer| answer.failed);
            self.settle("ChangeMessageVisibilityBatch", batch.len(), answer, &mut results);
        }
        results
    }

    pub async fn send(&self, messages: &[(String, BTreeMap<String, String>)]) -> EntryResults {
        let mut results = Vec::with_capacity(messages.len());
        for batch in messages.chunks(BATCH_MAX) {
            let entries = batch.iter().enumerate().map(|(i, (body, attributes))| {
                let attributes = attributes.iter().map(|(name, value)| {
                    let value = MessageAttributeValue::builder()
                        .data_type("String")
                        .string_value(value)
                        .build()
                        .expect("data type is set");
                    (name.clone(), value)
                });
                SendMessageBatchRequestEntry::builder()
                    .id(i.to_string())
                    .message_body(body)
                    .set_message_attributes(Some(attributes.collect()))
                    .build()
                    .expect("id and body are set")
            });
            let answer = self
                .client
                .send_message_batch()
                .queue_url(&self.url)
                .set_entries(Some(entries.collect()))
                .send()
                .await
                .map(|answer| answer.failed);
            self.settle("SendMessageBatch", batch.len(), answer, &mut results);
        }
        results
    }

    /// Spreads one batch answer over its entries.
    fn settle<E>(
        &self,
        call: &'static str,
        count: usize,
        answer: Result<Vec<BatchResultErrorEntry>, SdkError<E>>,
        results: &mut EntryResults,
    ) where
        SdkError<E>: ProvideErrorMetadata,
        E: std::error::Error + 'static,
    {
        let failed = match answer {
            Ok(failed) => failed,
            Err(error) => {
                let code = error.code().map(str::to_owned);
                let detail = describe(&error);
                results.extend((0..count).map(|_| {
                    Err(QueueError::Call {
                        url: self.url.clone(),
                        call,
                        code: code.clone(),
                        detail: detail.clone(),
                    })
                }));
                return;
            }
        };
        let first = results.len();
        results.extend((0..count).map(|_| Ok(())));
        for entry in failed {
            // An id we did not send cannot be matched; the entry it was meant for is then
            // treated as done, which redelivery puts right.
            if let Some(slot) =
                entry.id.parse().ok().and_then(|i: usize| results.get_mut(first + i))
            {
                *slot = Err(QueueError::Entry {
                    url: self.url.clone(),
                    call,
                    code: entry.code,
                    detail: entry.message.unwrap_or_default(),
                    sender_fault: entry.sender_fault,
                });
            }
        }
    }

    fn call<E>(&self, call: &'static str, error: SdkError<E>) -> QueueError
    where
        SdkError<E>: ProvideErrorMetadata,
        E: std::error::Error + 'static,
    {
        QueueError::Call {
            url: self.url.clone(),
            call,
            code: error.code().map(str::to_owned),
            detail: describe(&error),
        }
    }
}

fn message(raw: aws_sdk_sqs::types::Message) -> Message {
    let system = raw.attributes.unwrap_or_default();
    let number = |name: MessageSystemAttributeName| -> Option<i64> {
        system.get(&name).and_then(|text| text.parse().ok())
    };
    Message {
        message_id: raw.message_id.unwrap_or_default(),
        receipt: raw.receipt_handle.unwrap_or_default(),
        body: raw.body.unwrap_or_default(),
        receive_count: number(MessageSystemAttributeName::ApproximateReceiveCount)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1),
        sent_at: Timestamp::from_unix_ms(
            number(MessageSystemAttributeName::SentTimestamp).unwrap_or(0),
        ),
        attributes: raw
            .message_attributes
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.string_value?)))
            .collect(),
    }
}

fn parse_redrive(policy: &str) -> Option<Redrive> {
    let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
    let receives_max = match &policy["maxReceiveCount"] {
        serde_json::Value::String(text) => text.parse().ok()?,
        number => u32::try_from(number.as_u64()?).ok()?,
    };
    Some(Redrive {
        dead_letter_arn: policy["deadLetterTargetArn"].as_str()?.to_owned(),
        receives_max,
    })
}

/// Whole seconds, rounded up so that a short wait does not become none.
fn seconds(span: Duration) -> i32 {
    let whole = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    i32::try_from(whole).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redrive_policies_come_with_the_count_as_text_or_number() {
        for count in ["5", "\"5\""] {
            let policy = format!(
                r#"{{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:1:dlq","maxReceiveCount":{count}}}"#
            );
            let redrive = parse_redrive(&policy).unwrap();
            assert_eq!(redrive.receives_max, 5);
            assert!(redrive.dead_letter_arn.ends_with(":dlq"));
        }
        assert_eq!(parse_redrive("{}"), None);
    }

    #[test]
    fn fractions_of_a_second_round_up() {
        assert_eq!(seconds(Duration::ZERO), 0);
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(20)), 20);
    }
}
