//! One import: events of a feed → settled objects.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use weirgate_common::clock::Timestamp;
use weirgate_common::config::{Feed, OnMissingObject};
use weirgate_common::fault::Fault;

use crate::event::ObjectCreated;
use crate::failure::Failure;
use crate::object::{Object, ObjectError, Objects, Store, display_name};
use crate::rows::Opened;
use crate::schemas::Schemas;
use crate::sink::{Destination, Job, Outcome, Refusal, Sink};

/// What every import of this process shares.
#[derive(Clone)]
pub struct Importer<S = Objects, D = Sink> {
    pub objects: S,
    pub schemas: Arc<Schemas>,
    pub sink: D,
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

/// One object to import.
#[derive(Clone, Debug)]
pub struct Request {
    pub object: ObjectCreated,
    /// When its message came.
    pub received_at: Timestamp,
}

/// Objects of one import that are read at the same time: the store takes its time to answer.
const READ_AT_ONCE: usize = 16;

impl<S: Store, D: Destination> Importer<S, D> {
    /// Imports objects of one feed in one transaction; what concerns one of them keeps it out.
    pub async fn import(
        &self,
        feed_name: &str,
        feed: &Feed,
        requests: &[Request],
    ) -> Vec<Result<Settled, Refusal>> {
        let names: Vec<String> = requests.iter().map(|it| display_name(&it.object)).collect();
        let jobs: Vec<Job<'_>> = requests
            .iter()
            .zip(&names)
            .map(|(request, object_name)| Job {
                feed_name,
                feed,
                object: &request.object,
                object_name,
                received_at: request.received_at,
                worker: &self.worker,
            })
            .collect();
        let mut results: Vec<Option<Result<Settled, Refusal>>> =
            jobs.iter().map(|_| None).collect();
        let chosen = choose(&jobs, &mut results);
        let gathered = chosen.len() > 1;
        let reads: Vec<_> = chosen.iter().map(|at| self.open(&jobs[*at], gathered)).collect();
        let opened: Vec<_> = stream::iter(reads).buffered(READ_AT_ONCE).collect().await;
        let (mut places, mut objects) = (Vec::new(), Vec::new());
        for (at, opened) in chosen.into_iter().zip(opened) {
            match opened {
                Ok(opened) => {
                    places.push((at, opened.bytes()));
                    objects.push((jobs[at], opened));
                }
                Err(result) => results[at] = Some(result),
            }
        }
        let outcomes = self.sink.import(objects).await;
        for ((at, bytes), outcome) in places.into_iter().zip(outcomes) {
            results[at] = Some(outcome.map(|outcome| settled(outcome, bytes)));
        }
        self.spare_settled(&jobs, &mut results).await;
        results.into_iter().map(|result| result.expect("every object came to its end")).collect()
    }

    /// Asks the ledger before an object is given up: the message may be a redelivery of one that was
    /// imported long ago, and is gone by now or does not fit any more.
    async fn spare_settled(
        &self,
        jobs: &[Job<'_>],
        results: &mut [Option<Result<Settled, Refusal>>],
    ) {
        let given_up = |at: &usize| match &results[*at] {
            Some(Ok(Settled::Missing)) => true,
            Some(Err(Refusal::Own(failure))) => failure.fault == Fault::Permanent,
            _ => false,
        };
        let places: Vec<usize> = (0..jobs.len()).filter(given_up).collect();
        if places.is_empty() {
            return;
        }
        let asked: Vec<Job<'_>> = places.iter().map(|at| jobs[*at]).collect();
        match self.sink.settled(&asked).await {
            Ok(known) => {
                for (at, outcome) in places.into_iter().zip(known) {
                    if let Some(outcome) = outcome {
                        results[at] = Some(Ok(settled(outcome, 0)));
                    }
                }
            }
            Err(failure) => {
                for at in places {
                    results[at] = Some(Err(Refusal::Own(failure.clone())));
                }
            }
        }
    }

    /// The object as far as its header, or whole; else what came of it.
    async fn open(&self, job: &Job<'_>, whole: bool) -> Result<Opened, Result<Settled, Refusal>> {
        let name = || job.object_name.to_owned();
        let refused = |failure: Failure| Err(Refusal::Own(failure));
        let object = match &job.object.content {
            Some(content) => {
                let file = self.schemas.as_file(job.object_name, content).await.map_err(refused)?;
                Object::in_memory(name(), file)
            }
            None => match self.objects.open(job.object).await {
                Ok(object) => object,
                Err(ObjectError::Superseded { .. }) => return Err(Ok(Settled::Superseded)),
                Err(ObjectError::Missing { .. })
                    if job.feed.on_missing_object == OnMissingObject::Skip =>
                {
                    return Err(Ok(Settled::Missing));
                }
                Err(error) => return Err(refused(error.into())),
            },
        };
        let mut opened = Opened::read_header(name(), object, self.schemas.parsed.clone())
            .await
            .map_err(refused)?;
        if whole && !opened.read_whole().await.map_err(refused)? {
            return Err(Err(Refusal::Apart));
        }
        Ok(opened)
    }
}

fn settled(outcome: Outcome, bytes: u64) -> Settled {
    match outcome {
        Outcome::Committed { rows, rejected, .. } => Settled::Committed { rows, rejected, bytes },
        Outcome::AlreadyCommitted => Settled::AlreadyCommitted,
        Outcome::Superseded => Settled::Superseded,
    }
}

/// Those that are imported together, always in the same order, so that importers that meet do not
/// wait for each other in a circle. A second event of a key must find the first one committed.
fn choose(jobs: &[Job<'_>], results: &mut [Option<Result<Settled, Refusal>>]) -> Vec<usize> {
    let key = |at: usize| (&jobs[at].object.bucket, &jobs[at].object.key);
    let mut chosen: Vec<usize> = (0..jobs.len()).collect();
    chosen.sort_by_key(|at| key(*at));
    chosen.dedup_by(|second, first| {
        let same = key(*second) == key(*first);
        if same {
            results[*second] = Some(Err(Refusal::Apart));
        }
        same
    });
    chosen
}
