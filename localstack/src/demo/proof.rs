//! The proof: the producer's record against the bucket, the database and the dead-letter queue,
//! each asked from outside.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use aws_sdk_sqs::error::DisplayErrorContext;
use weirgate_common::dead_letter;

use super::database::{self, Content};
use super::producer::{Expected, Record};
use crate::fleet::{Clients, Fleet};

/// One line of the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) what: &'static str,
    pub(super) expected: String,
    pub(super) found: String,
    pub(super) holds: bool,
}

impl Check {
    pub(super) fn equal<T: PartialEq + ToString>(
        what: &'static str,
        expected: T,
        found: T,
    ) -> Self {
        let holds = expected == found;
        Self { what, expected: expected.to_string(), found: found.to_string(), holds }
    }
}

/// A message in the dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeadLetter {
    /// `None` when the queue itself gave the message up.
    pub(super) reason: Option<dead_letter::Reason>,
}

/// An error means that something could not be asked, not that the proof failed.
pub(super) async fn prove(clients: &Clients, fleet: &Fleet, record: &Record) -> Result<Vec<Check>> {
    let listing = list(clients, &fleet.data_plane.bucket).await?;
    let content = database::content(&fleet.database, &fleet.tuning.table).await?;
    let letters = dead_letters(clients, &fleet.data_plane.dead_letter_queue_url).await?;
    let mut checks = bucket(record, &listing);
    checks.extend(rows(record, &content));
    checks.extend(objects(record, &content));
    checks.extend(refused(record, &fleet.data_plane.bucket, &letters));
    Ok(checks)
}

fn bucket(record: &Record, listing: &BTreeMap<String, String>) -> Vec<Check> {
    let uploaded = record.uploads.iter();
    let same = uploaded.filter(|(key, upload)| listing.get(*key) == upload.etag.as_ref()).count();
    vec![
        Check::equal("objects in the bucket", record.uploads.len(), listing.len()),
        Check::equal("  as they were uploaded", record.uploads.len(), same),
    ]
}

fn rows(record: &Record, content: &Content) -> Vec<Check> {
    let duplicates = content.rows.saturating_sub(content.distinct_rows);
    let missing = record.rows().saturating_sub(content.distinct_rows);
    vec![
        Check::equal("rows in the table", record.rows(), content.rows),
        Check::equal("  duplicates", 0, duplicates),
        Check::equal("  missing", 0, missing),
        Check::equal("  checksum", record.checksum(), content.checksum),
    ]
}

fn objects(record: &Record, content: &Content) -> Vec<Check> {
    let mut expected = 0;
    let mut right = 0;
    for (key, upload) in &record.uploads {
        let Expected::Rows { rows, .. } = upload.expected else { continue };
        expected += 1;
        let as_expected = content.objects.get(key).is_some_and(|object| {
            Some(&object.etag) == upload.etag.as_ref()
                && object.rows_in_ledger == rows
                && object.rows_in_table == rows
        });
        right += usize::from(as_expected);
    }
    let stray = content.objects.len().saturating_sub(right) + content.twice.len();
    vec![
        Check::equal("objects in the ledger, rows as uploaded", expected, right),
        Check::equal("  others, or in two versions at once", 0, stray),
    ]
}

/// A letter may be there twice: an importer killed between sending it and deleting the message
/// sends it again. What counts is which objects were refused, and that each says why.
fn refused(record: &Record, bucket: &str, letters: &[DeadLetter]) -> Vec<Check> {
    let expected: BTreeSet<String> =
        record.dead_letters().map(|key| format!("s3://{bucket}/{key}")).collect();
    let reasons = || letters.iter().filter_map(|letter| letter.reason.as_ref());
    let found: BTreeSet<String> = reasons()
        .filter_map(|reason| reason.object.as_deref())
        .map(|object| object.split('#').next().unwrap_or(object).to_owned())
        .collect();
    let codes: BTreeSet<&str> = reasons().map(|reason| reason.code.as_str()).collect();
    let silent = letters.len() - reasons().count();
    let names = |objects: &BTreeSet<String>| match objects.len() {
        0 => "none".to_owned(),
        1 => short(objects.first().map_or("", String::as_str)),
        several => format!("{several} objects"),
    };
    vec![
        Check {
            what: "dead letters: exactly the corrupt object",
            holds: expected == found,
            expected: names(&expected),
            found: names(&found),
        },
        Check {
            what: "  with its reason",
            holds: silent == 0 && !codes.is_empty() && !codes.contains(""),
            expected: "a reason".to_owned(),
            found: match silent {
                0 if codes.is_empty() => "none".to_owned(),
                0 => codes.into_iter().collect::<Vec<_>>().join(", "),
                _ => format!("{silent} without"),
            },
        },
    ]
}

fn short(object: &str) -> String {
    object.rsplit('/').next().unwrap_or(object).to_owned()
}

/// Key to ETag.
async fn list(clients: &Clients, bucket: &str) -> Result<BTreeMap<String, String>> {
    let mut listing = BTreeMap::new();
    let mut pages = clients.s3.list_objects_v2().bucket(bucket).into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| anyhow::anyhow!("{}", DisplayErrorContext(error)))?;
        for object in page.contents() {
            let key = object.key().context("a listed object has no key")?;
            let etag = object.e_tag().unwrap_or_default().trim_matches('"');
            listing.insert(key.to_owned(), etag.to_owned());
        }
    }
    Ok(listing)
}

/// Looking is receiving, so the letters are given back at once.
pub(super) async fn dead_letters(clients: &Clients, queue_url: &str) -> Result<Vec<DeadLetter>> {
    let explain = |error: String| anyhow::anyhow!("read the dead-letter queue: {error}");
    let mut letters = BTreeMap::new();
    loop {
        let received = clients
            .sqs
            .receive_message()
            .queue_url(queue_url)
            .max_number_of_messages(10)
            .wait_time_seconds(1)
            .visibility_timeout(20)
            .message_attribute_names("All")
            .send()
            .await
            .map_err(|error| explain(DisplayErrorContext(error).to_string()))?;
        if received.messages().is_empty() {
            break;
        }
        for message in received.messages.unwrap_or_default() {
            let attributes = message.message_attributes.unwrap_or_default();
            let attributes = attributes
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.string_value?)))
                .collect();
            let reason = dead_letter::Reason::from_attributes(&attributes);
            let id = message.message_id.unwrap_or_default();
            let receipt = message.receipt_handle.unwrap_or_default();
            letters.insert(id, (receipt, DeadLetter { reason }));
        }
    }
    for (receipt, _) in letters.values() {
        let call = clients.sqs.change_message_visibility();
        let back = call.queue_url(queue_url).receipt_handle(receipt).visibility_timeout(0);
        back.send().await.map_err(|error| explain(DisplayErrorContext(error).to_string()))?;
    }
    Ok(letters.into_values().map(|(_, letter)| letter).collect())
}
