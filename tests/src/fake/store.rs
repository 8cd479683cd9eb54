//! S3: versions of keys, read as they were pinned.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_sdk_s3::primitives::ByteStream;
use weirgate_importer::event::ObjectCreated;
use weirgate_importer::object::{Object, ObjectError, Store, display_name};

use super::Faults;

#[derive(Clone)]
pub struct FakeStore {
    objects: Arc<Mutex<Buckets>>,
    written: Arc<AtomicU64>,
    /// Whether older versions stay.
    versioned: bool,
    faults: Faults,
}

/// By bucket and key, the newest last.
type Buckets = BTreeMap<(String, String), Vec<Version>>;

struct Version {
    etag: String,
    version_id: Option<String>,
    content: bytes::Bytes,
}

impl FakeStore {
    pub fn new(versioned: bool, faults: Faults) -> Self {
        FakeStore { objects: Arc::default(), written: Arc::default(), versioned, faults }
    }

    /// Writes an object; its event, as S3 would tell it.
    pub fn put(&self, bucket: &str, key: &str, content: impl Into<bytes::Bytes>) -> ObjectCreated {
        let content = content.into();
        let size = content.len() as u64;
        let mut objects = self.lock();
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let versions = objects.entry((bucket.to_owned(), key.to_owned())).or_default();
        if !self.versioned {
            versions.clear();
        }
        let etag = format!("{number:032x}");
        let version_id = self.versioned.then(|| format!("v{number}"));
        let created = ObjectCreated {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: etag.clone(),
            version_id: version_id.clone(),
            size: Some(size),
            sequencer: Some(format!("{number:016X}")),
            at: None,
            content: None,
        };
        versions.push(Version { etag, version_id, content });
        created
    }

    pub fn delete(&self, bucket: &str, key: &str) {
        self.lock().remove(&(bucket.to_owned(), key.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: String, object: &ObjectCreated) -> Result<Object, ObjectError> {
        let objects = self.lock();
        let versions = objects.get(&(object.bucket.clone(), object.key.clone()));
        let missing =
            || ObjectError::Missing { object: name.clone(), code: "NoSuchKey".to_owned() };
        let versions = versions.ok_or_else(missing)?;
        let found = match &object.version_id {
            Some(id) => versions.iter().find(|version| version.version_id.as_ref() == Some(id)),
            None => match versions.last() {
                Some(newest) if newest.etag != object.etag => {
                    return Err(ObjectError::Superseded { object: name });
                }
                newest => newest,
            },
        };
        let content = found.ok_or_else(missing)?.content.clone();
        if !self.faults.strike() {
            return Ok(Object::in_memory(name, content));
        }
        match self.faults.kind(3) {
            0 => Err(ObjectError::Busy { object: name, detail: "503 SlowDown".to_owned() }),
            1 => Err(ObjectError::Away { object: name, detail: "connection refused".to_owned() }),
            // The body ends early.
            _ => {
                let size = content.len() as u64;
                let half = content.slice(..content.len() / 2);
                Ok(Object::new(name, size, ByteStream::from(half)))
            }
        }
    }
}

impl Store for FakeStore {
    async fn open(&self, object: &ObjectCreated) -> Result<Object, ObjectError> {
        self.faults.delay().await;
        self.find(display_name(object), object)
    }

    async fn answers(&self, _bucket: &str) -> bool {
        true
    }
}
