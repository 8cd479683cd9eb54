//! One import: an event of a feed → a settled object.

use std::sync::Arc;

use weirgate_common::clock::Timestamp;
use weirgate_common::config::{Feed, OnMissingObject};

use crate::event::ObjectCreated;
use crate::failure::Failure;
use crate::object::{Object, ObjectError, Objects, display_name};
use crate::rows::Opened;
use crate::schemas::Schemas;
use crate::sink::{Job, Outcome, Sink};

/// What every import of this process shares.
#[derive(Clone)]
pub struct Importer {
    pub objects: Objects,
    pub schemas: Arc<Schemas>,
    pub sink: Sink,
    pub worker: String,
}

/// How an event was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Committed {
        rows: u64,
        rejected: usize,
        bytes: u64,
    },
    AlreadyCommitted,
    /// A newer version of the key is, or will be, in the table.
    Superseded,
    /// Gone, and the feed says that this is fine.
    Missing,
}

impl Importer {
    pub async fn import(
        &self,
        feed_name: &str,
        feed: &Feed,
        object: &ObjectCreated,
        received_at: Timestamp,
    ) -> Result<Settled, Failure> {
        let object_name = display_name(object);
        let job = Job {
            feed_name,
            feed,
            object,
            object_name: &object_name,
            received_at,
            worker: &self.worker,
        };
        match self.sink.is_settled(&job).await? {
            Some(Outcome::Superseded) => return Ok(Settled::Superseded),
            Some(_) => return Ok(Settled::AlreadyCommitted),
            None => {}
        }
        let opened = match &object.content {
            Some(content) => {
                let file = self.schemas.as_file(&object_name, content).await?;
                Object::in_memory(object_name.clone(), file)
            }
            None => match self.objects.open(object).await {
                Ok(opened) => opened,
                Err(ObjectError::Superseded { .. }) => return Ok(Settled::Superseded),
                Err(ObjectError::Missing { .. })
                    if feed.on_missing_object == OnMissingObject::Skip =>
                {
                    return Ok(Settled::Missing);
                }
                Err(error) => return Err(error.into()),
            },
        };
        let opened = Opened::read_header(object_name.clone(), opened).await?;
        let bytes = opened.bytes();
        Ok(match self.sink.import(&job, opened).await? {
            Outcome::Committed { rows, rejected, .. } => {
                Settled::Committed { rows, rejected, bytes }
            }
            Outcome::AlreadyCommitted => Settled::AlreadyCommitted,
            Outcome::Superseded => Settled::Superseded,
        })
    }
}
