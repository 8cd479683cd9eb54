//! Reading an object exactly as the event saw it: pinned to its version, or to its ETag where
//! the bucket keeps no versions.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use weirgate_common::config::MESSAGES;
use weirgate_common::fault::{self, Dependency, Fault};

use crate::event::ObjectCreated;
use crate::failure::Failure;

/// Where objects are read. `Objects` is the real one; tests have another.
pub trait Store: Clone + Send + Sync + 'static {
    /// Opens exactly the version that the event saw: [`ObjectError::Superseded`] once it was
    /// overwritten in a bucket without versions, [`ObjectError::Missing`] once it is gone.
    fn open(
        &self,
        object: &ObjectCreated,
    ) -> impl Future<Output = Result<Object, ObjectError>> + Send;

    /// Whether the store answers at all; what it answers does not matter.
    fn answers(&self, bucket: &str) -> impl Future<Output = bool> + Send;
}

/// S3, read-only.
#[derive(Clone, Debug)]
pub struct Objects {
    client: Client,
    /// Larger objects are refused before a byte of them is read.
    bytes_max: u64,
}

/// An open object.
pub struct Object {
    name: String,
    size: u64,
    read: u64,
    body: ByteStream,
}

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("{object} was overwritten since the event; the newer version has its own event")]
    Superseded { object: String },
    #[error(
        "{object} does not exist ({code}); without s3:ListBucket permission S3 says AccessDenied for a missing object"
    )]
    Missing { object: String, code: String },
    #[error("{object} has {bytes} bytes; importer.object_bytes_max allows {max}")]
    TooLarge { object: String, bytes: u64, max: u64 },
    #[error("{object} is archived ({code}); restore it, then replay")]
    Archived { object: String, code: String },
    #[error("{object} ended after {read} of {size} bytes")]
    Truncated { object: String, read: u64, size: u64 },
    #[error("reading {object}: {detail}")]
    Busy { object: String, detail: String },
    #[error("the object store does not answer (reading {object}): {detail}")]
    Away { object: String, detail: String },
    #[error("reading {object}: {detail}")]
    Refused { object: String, detail: String },
}

impl ObjectError {
    pub fn fault(&self) -> Fault {
        match self {
            ObjectError::Superseded { .. }
            | ObjectError::Missing { .. }
            | ObjectError::TooLarge { .. }
            | ObjectError::Archived { .. }
            | ObjectError::Refused { .. } => Fault::Permanent,
            ObjectError::Truncated { .. } | ObjectError::Busy { .. } => Fault::Transient,
            ObjectError::Away { .. } => Fault::Outage(Dependency::ObjectStore),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ObjectError::Superseded { .. } => "superseded",
            ObjectError::Missing { .. } => "missing_object",
            ObjectError::TooLarge { .. } => "object_too_large",
            ObjectError::Archived { .. } => "object_archived",
            ObjectError::Truncated { .. } => "object_truncated_in_transfer",
            ObjectError::Busy { .. } => "object_store_busy",
            ObjectError::Away { .. } => "object_store_away",
            ObjectError::Refused { .. } => "object_refused",
        }
    }
}

impl From<ObjectError> for Failure {
    fn from(error: ObjectError) -> Self {
        Failure::new(error.fault(), error.code(), error.to_string())
    }
}

/// `s3://bucket/key`, with `#version` where the event names one, or `messages:` and the message's
/// name.
pub fn display_name(object: &ObjectCreated) -> String {
    match &object.version_id {
        _ if object.content.is_some() => format!("{MESSAGES}{}", object.key),
        Some(version) => format!("s3://{}/{}#{version}", object.bucket, object.key),
        None => format!("s3://{}/{}", object.bucket, object.key),
    }
}

impl Objects {
    pub fn new(client: Client, bytes_max: u64) -> Self {
        Objects { client, bytes_max }
    }

    fn check_size(&self, name: &str, bytes: u64) -> Result<(), ObjectError> {
        if bytes <= self.bytes_max {
            return Ok(());
        }
        Err(ObjectError::TooLarge { object: name.to_owned(), bytes, max: self.bytes_max })
    }
}

impl Store for Objects {
    async fn open(&self, object: &ObjectCreated) -> Result<Object, ObjectError> {
        let name = display_name(object);
        self.check_size(&name, object.size.unwrap_or(0))?;
        let request = self.client.get_object().bucket(&object.bucket).key(&object.key);
        let request = match &object.version_id {
            Some(version) => request.version_id(version),
            None => request.if_match(format!("\"{}\"", object.etag)),
        };
        let answer = request.send().await.map_err(|error| classify(&name, &error))?;
        let size = answer.content_length.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        self.check_size(&name, size)?;
        Ok(Object::new(name, size, answer.body))
    }

    async fn answers(&self, bucket: &str) -> bool {
        match self.client.head_bucket().bucket(bucket).send().await {
            Ok(_) => true,
            Err(SdkError::ServiceError(error)) => error.raw().status().as_u16() < 500,
            Err(_) => false,
        }
    }
}

impl Object {
    /// One of the size that the store announced.
    pub fn new(name: String, size: u64, body: ByteStream) -> Self {
        Object { name, size, read: 0, body }
    }

    /// One that came whole.
    pub fn in_memory(name: String, content: Bytes) -> Self {
        Object::new(name, content.len() as u64, ByteStream::from(content))
    }

    /// The next bytes, `None` at the end. An end before the announced size is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ObjectError> {
        match self.body.next().await {
            Some(Ok(bytes)) => {
                self.read += bytes.len() as u64;
                Ok(Some(bytes))
            }
            Some(Err(error)) => {
                Err(ObjectError::Busy { object: self.name.clone(), detail: fault::chain(&error) })
            }
            None if self.read < self.size => Err(ObjectError::Truncated {
                object: self.name.clone(),
                read: self.read,
                size: self.size,
            }),
            None => Ok(None),
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }
}

fn classify(name: &str, error: &SdkError<GetObjectError>) -> ObjectError {
    let object = name.to_owned();
    let code = error.code().unwrap_or("").to_owned();
    let SdkError::ServiceError(answer) = error else {
        // Time-outs, refused connections, broken responses.
        return ObjectError::Away { object, detail: fault::chain(error) };
    };
    let detail = match error.message() {
        Some(message) => format!("{code}: {message}"),
        None => format!("HTTP {} {code}", answer.raw().status()),
    };
    match (answer.raw().status().as_u16(), code.as_str()) {
        (412, _) => ObjectError::Superseded { object },
        (403, "InvalidObjectState") => ObjectError::Archived { object, code },
        // Wrong keys, clocks or tokens say nothing about the object. Some come with 400.
        (
            400 | 403,
            "ExpiredToken"
            | "InvalidAccessKeyId"
            | "InvalidToken"
            | "RequestExpired"
            | "RequestTimeTooSkewed"
            | "SignatureDoesNotMatch"
            | "TokenRefreshRequired",
        ) => ObjectError::Away { object, detail },
        (400, "RequestTimeout") => ObjectError::Busy { object, detail },
        // 405: the version is a delete marker.
        (403..=405, _) => ObjectError::Missing { object, code },
        (429 | 503, _) => ObjectError::Busy { object, detail },
        (500.., _) => ObjectError::Away { object, detail },
        _ => ObjectError::Refused { object, detail },
    }
}
