//! The producer: uploads impressions in bursts, with the accidents that happen to real ones, and
//! keeps its own record, which is what the proof compares the database with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use apache_avro::Schema;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_sns::config::retry::RetryConfig;
use aws_sdk_sns::error::DisplayErrorContext;
use serde_json::json;
use time::macros::format_description;
use tokio::task::JoinHandle;
use weirgate_common::clock::{self, Timestamp};

use super::impression::{Encoded, SCHEMA, encode};
use crate::emulators::REGION;
use crate::fleet::{Clients, DataPlane};

/// Between bursts, long enough for the queue to fall visibly.
const PAUSE: Duration = Duration::from_secs(3);

/// Between attempts while LocalStack is away.
const RETRY: Duration = Duration::from_millis(500);

/// One notification in so many is delivered twice.
const DUPLICATE_EVERY: u64 = 20;

/// LocalStack puts this sequencer into all of its own notifications.
const SEQUENCER: &str = "0055AED6DCD90281E5";

#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) objects: u64,
    /// Per object.
    pub(super) rows: u64,
    pub(super) seed: u64,
}

/// What must become of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Rows { rows: u64, checksum: i64 },
    DeadLetter,
}

/// The latest version of an object.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    bytes: Arc<[u8]>,
    pub(super) expected: Expected,
    /// As S3 gave it. `None` until the first upload has been answered.
    pub(super) etag: Option<String>,
}

/// All that was uploaded, or at least tried.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) uploads: BTreeMap<String, Upload>,
    pub(super) overwritten: u64,
    pub(super) notified_twice: u64,
    pub(super) finished: bool,
    /// The bucket does not hold everything again yet, so the producer holds still: what it would
    /// announce may not be there, and what it would overwrite may be put back.
    pub(super) restoring: bool,
}

/// The record while it is being kept.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedRecord(Arc<Mutex<Record>>);

impl SharedRecord {
    pub(super) fn get(&self) -> Record {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    pub(super) fn rows(&self) -> u64 {
        self.expected_rows().map(|(rows, _)| rows).sum()
    }

    pub(super) fn checksum(&self) -> i64 {
        self.expected_rows().map(|(_, checksum)| checksum).sum()
    }

    pub(super) fn dead_letters(&self) -> impl Iterator<Item = &str> {
        let corrupt = self.uploads.iter().filter(|(_, u)| u.expected == Expected::DeadLetter);
        corrupt.map(|(key, _)| key.as_str())
    }

    pub(super) fn empty(&self) -> usize {
        let no_rows = Expected::Rows { rows: 0, checksum: 0 };
        self.uploads.values().filter(|upload| upload.expected == no_rows).count()
    }

    fn expected_rows(&self) -> impl Iterator<Item = (u64, i64)> {
        self.uploads.values().filter_map(|upload| match upload.expected {
            Expected::Rows { rows, checksum } => Some((rows, checksum)),
            Expected::DeadLetter => None,
        })
    }
}

/// A running producer.
#[derive(Debug)]
pub(super) struct Producer {
    context: Context,
    task: JoinHandle<Result<()>>,
    restore: Option<JoinHandle<Result<()>>>,
}

#[derive(Clone, Debug)]
struct Context {
    clients: Clients,
    data_plane: DataPlane,
    record: SharedRecord,
}

impl Producer {
    pub(super) fn start(clients: Clients, data_plane: DataPlane, size: Size) -> Result<Self> {
        let context = Context { clients, data_plane, record: SharedRecord::default() };
        let schema = Schema::parse_str(SCHEMA).context("parse the demo's own schema")?;
        let task = tokio::spawn(produce(context.clone(), Arc::new(schema), size));
        Ok(Self { context, task, restore: None })
    }

    pub(super) fn shared_record(&self) -> SharedRecord {
        self.context.record.clone()
    }

    /// S3 has lost everything, or is about to: nothing new until all is there again.
    pub(super) fn hold(&mut self) {
        if let Some(restore) = self.restore.take() {
            restore.abort();
        }
        self.context.record.lock().restoring = true;
    }

    /// Uploads everything again, in the background: S3 may go away once more meanwhile. Returns
    /// how many objects that are.
    pub(super) fn restore(&mut self) -> usize {
        self.hold();
        let record = self.context.record.get();
        let count = record.uploads.len();
        let context = self.context.clone();
        self.restore = Some(tokio::spawn(async move {
            for (key, upload) in record.uploads {
                context.upload(&key, upload.bytes).await?;
            }
            context.record.lock().restoring = false;
            Ok(())
        }));
        count
    }

    /// An error of the producer itself, which can only be a defect: S3 being away is waited out.
    pub(super) async fn check(&mut self) -> Result<()> {
        if self.task.is_finished() && !self.context.record.lock().finished {
            (&mut self.task).await.context("the producer panicked")??;
        }
        if let Some(restore) = self.restore.take_if(|restore| restore.is_finished()) {
            restore.await.context("the producer panicked")??;
        }
        Ok(())
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(restore) = &self.restore {
            restore.abort();
        }
    }
}

/// What the producer does next. Numbers are of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Put {
        number: u64,
        kind: Kind,
    },
    /// The notification of an object comes once more.
    NotifyAgain {
        number: u64,
    },
    Pause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    /// A version that is overwritten soon after.
    Draft,
    Empty,
    Corrupt,
}

/// Three bursts, and the accidents spread over them.
fn script(objects: u64) -> Vec<Step> {
    let (empty, draft, corrupt) = (objects / 5, objects / 3, objects / 2);
    let mut steps = Vec::new();
    for number in 0..objects {
        let kind = match number {
            n if n == empty => Kind::Empty,
            n if n == draft => Kind::Draft,
            n if n == corrupt => Kind::Corrupt,
            _ => Kind::Whole,
        };
        steps.push(Step::Put { number, kind });
        if number % DUPLICATE_EVERY == 1 {
            steps.push(Step::NotifyAgain { number });
        }
        if number == objects * 2 / 5 || number == objects * 7 / 10 {
            steps.push(Step::Pause);
        }
        // Right behind the burst that holds the first version: it may or may not have been read.
        if number == draft + 2 {
            steps.push(Step::Put { number: draft, kind: Kind::Whole });
        }
    }
    // Long after its object was committed.
    steps.push(Step::NotifyAgain { number: 0 });
    steps
}

async fn produce(context: Context, schema: Arc<Schema>, size: Size) -> Result<()> {
    let day = day(clock::now());
    for step in script(size.objects) {
        match step {
            Step::Pause => tokio::time::sleep(PAUSE).await,
            Step::NotifyAgain { number } => {
                context.notify_again(&key(&day, number)).await?;
                context.record.lock().notified_twice += 1;
            }
            Step::Put { number, kind } => {
                let schema = schema.clone();
                let made = tokio::task::spawn_blocking(move || make(&schema, size, number, kind));
                let (bytes, expected) = made.await.context("the generator panicked")??;
                let key = key(&day, number);
                let upload = Upload { bytes: bytes.clone(), expected, etag: None };
                // Before the upload, so that a restore in between does not miss it.
                while !context.note(&key, &upload) {
                    tokio::time::sleep(RETRY).await;
                }
                context.upload(&key, bytes).await?;
            }
        }
    }
    context.record.lock().finished = true;
    Ok(())
}

fn make(schema: &Schema, size: Size, number: u64, kind: Kind) -> Result<(Arc<[u8]>, Expected)> {
    let (variant, rows) = match kind {
        Kind::Whole | Kind::Corrupt => (number, size.rows),
        Kind::Draft => (number + size.objects, size.rows / 2 + 1),
        Kind::Empty => (number, 0),
    };
    let Encoded { mut bytes, rows, checksum } = encode(schema, size.seed, variant, rows)?;
    if kind == Kind::Corrupt {
        let middle = bytes.len() / 2;
        bytes[middle..].fill(0xFF);
        return Ok((bytes.into(), Expected::DeadLetter));
    }
    Ok((bytes.into(), Expected::Rows { rows, checksum }))
}

fn day(now: Timestamp) -> String {
    let since_epoch = i128::from(now.unix_ms()) * 1_000_000;
    let now = time::OffsetDateTime::from_unix_timestamp_nanos(since_epoch);
    let now = now.unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    now.format(format_description!("[year]-[month]-[day]")).unwrap_or_else(|_| "1970-01-01".into())
}

/// A few keys hold what form encoding changes.
fn key(day: &str, number: u64) -> String {
    let hour = number % 24;
    let name = match number % 50 {
        7 => format!("part {number:05}+ü"),
        _ => format!("part-{number:05}"),
    };
    format!("impressions/dt={day}/hour={hour:02}/{name}.avro")
}

impl Context {
    /// Returns false while everything is being uploaded again.
    fn note(&self, key: &str, upload: &Upload) -> bool {
        let mut record = self.record.lock();
        if record.restoring {
            return false;
        }
        if record.uploads.insert(key.to_owned(), upload.clone()).is_some() {
            record.overwritten += 1;
        }
        true
    }

    /// Tries until S3 takes it: LocalStack may be on its way back.
    async fn upload(&self, key: &str, bytes: Arc<[u8]>) -> Result<()> {
        loop {
            let call = self
                .clients
                .s3
                .put_object()
                .bucket(&self.data_plane.bucket)
                .key(key)
                .body(ByteStream::from(bytes.to_vec()))
                .send();
            match call.await {
                Ok(answer) => {
                    let etag = answer.e_tag.context("S3 gave no ETag")?;
                    if let Some(upload) = self.record.lock().uploads.get_mut(key)
                        && Arc::ptr_eq(&upload.bytes, &bytes)
                    {
                        upload.etag = Some(etag.trim_matches('"').to_owned());
                    }
                    return Ok(());
                }
                Err(error) => {
                    tracing::debug!(error = %DisplayErrorContext(error), key, "upload again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// What S3 does when it is unsure whether a notification arrived.
    async fn notify_again(&self, key: &str) -> Result<()> {
        let upload =
            self.record.lock().uploads.get(key).cloned().context("notified before uploaded")?;
        let body = json!({"Records": [{
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": REGION,
            "eventTime": clock::now().to_string(),
            "eventName": "ObjectCreated:Put",
            "s3": {
                "s3SchemaVersion": "1.0",
                "bucket": {"name": self.data_plane.bucket, "arn": self.data_plane.bucket_arn},
                "object": {
                    "key": form_encoded(key),
                    "size": upload.bytes.len(),
                    "eTag": upload.etag.context("notified before uploaded")?,
                    "sequencer": SEQUENCER,
                },
            },
        }]});
        loop {
            while self.record.lock().restoring {
                tokio::time::sleep(RETRY).await;
            }
            // A retry inside the client could reach a new LocalStack before its bucket is filled.
            let once = aws_sdk_sns::config::Builder::new().retry_config(RetryConfig::disabled());
            let call = self
                .clients
                .sns
                .publish()
                .topic_arn(&self.data_plane.topic_arn)
                .message(body.to_string())
                .subject("Amazon S3 Notification")
                .customize()
                .config_override(once)
                .send();
            match call.await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::debug!(error = %DisplayErrorContext(error), "notify again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// As S3 writes keys into its notifications: slashes stay, a space becomes a plus.
fn form_encoded(key: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'*' => {
            char::from(byte).to_string()
        }
        b' ' => "+".to_owned(),
        _ => format!("%{byte:02X}"),
    };
    key.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_every_accident_once() {
        for objects in [10, 11, 400] {
            let steps = script(objects);
            let count = |kind| {
                let put = |step: &&Step| matches!(step, Step::Put { kind: k, .. } if *k == kind);
                steps.iter().filter(put).count() as u64
            };
            assert_eq!(count(Kind::Empty), 1, "{objects}");
            assert_eq!(count(Kind::Corrupt), 1, "{objects}");
            assert_eq!(count(Kind::Draft), 1, "{objects}");
            assert_eq!(count(Kind::Whole), objects - 2, "{objects}");
            let last = steps.iter().rposition(|s| matches!(s, Step::Put { kind: Kind::Draft, .. }));
            let draft = objects / 3;
            let whole = Step::Put { number: draft, kind: Kind::Whole };
            assert!(steps.iter().position(|step| *step == whole) > last, "{objects}");
            assert_eq!(steps.iter().filter(|step| **step == Step::Pause).count(), 2);
        }
    }

    #[test]
    fn keys_are_encoded_as_s3_does() {
        assert_eq!(
            form_encoded("impressions/dt=2026-11-20/part 7+ü.avro"),
            "impressions/dt%3D2026-11-20/part+7%2B%C3%BC.avro"
        );
        assert_eq!(day(Timestamp::from_unix_ms(1_795_132_800_000)), "2026-11-20");
    }

    #[test]
    fn a_corrupt_object_cannot_be_read() {
        let schema = Schema::parse_str(SCHEMA).unwrap();
        let size = Size { objects: 10, rows: 100, seed: 1 };
        for number in 0..4 {
            let (bytes, expected) = make(&schema, size, number, Kind::Corrupt).unwrap();
            assert_eq!(expected, Expected::DeadLetter);
            let read = apache_avro::Reader::new(&bytes[..]).unwrap().collect::<Result<Vec<_>, _>>();
            assert!(read.is_err(), "{number}");
        }
    }
}
