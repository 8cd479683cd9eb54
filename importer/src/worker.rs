//! The one `select!`: runs the protocol's effects and feeds back what came of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weirgate_common::aws;
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::config::Config;
use weirgate_common::fault::{self, Dependency, Fault};
use weirgate_common::ledger::{
    Failure as FailureRecord, Ledger, LedgerError, Resolution, WorkerReport, WorkerState,
};
use weirgate_common::queue::{LEASE_TOTAL_MAX, Message, Queue, QueueError};
use weirgate_common::telemetry::Health;

use crate::failure::Failure;
use crate::import::{Importer, Request, Settled};
use crate::intake::{Held, Work, take_in};
use crate::object::{Objects, Store};
use crate::protocol::{
    DeliveryId, Effect, Grouping, ImportId, Input, Limits, Outcome, Protocol, TaskId,
};
use crate::sink::{Destination, Refusal, Sink};
use crate::sqs::{self, Mailbox, Receipt};

/// How often the worker tells the ledger what it does. The scaler shrinks nothing on reports
/// older than a few of these.
const REPORT_PERIOD: Duration = Duration::from_secs(2);

/// Weight of one import in the average service time: the last dozen count.
const SERVICE_WEIGHT: f64 = 0.15;

/// What a worker works on: the real thing, or what tests put in its place.
pub trait World: Send + 'static {
    type Queue: Mailbox;
    type Objects: Store;
    type Sink: Destination;
    type Ledger: Journal;
}

/// SQS, S3 and a database.
pub struct Real;

impl World for Real {
    type Queue = Queue;
    type Objects = Objects;
    type Sink = Sink;
    type Ledger = Ledger;
}

/// Where a worker says how it is, and what went wrong.
pub trait Journal: Clone + Send + Sync + 'static {
    fn report_worker(
        &self,
        report: &WorkerReport,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    fn record_failure(
        &self,
        failure: &FailureRecord,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Whether the database answers at all.
    fn answers(&self) -> impl Future<Output = bool> + Send;
}

impl Journal for Ledger {
    async fn report_worker(&self, report: &WorkerReport) -> Result<(), LedgerError> {
        Ledger::report_worker(self, report).await
    }

    async fn record_failure(&self, failure: &FailureRecord) -> Result<(), LedgerError> {
        Ledger::record_failure(self, failure).await
    }

    async fn answers(&self) -> bool {
        self.ping().await.is_ok()
    }
}

/// Everything a worker needs, connected and checked.
pub struct Worker<W: World = Real> {
    pub config: Arc<Config>,
    pub fleet: String,
    pub queue: W::Queue,
    pub dead_letters: W::Queue,
    /// The queue's `maxReceiveCount`.
    pub receives_max: u32,
    pub ledger: W::Ledger,
    pub importer: Importer<W::Objects, W::Sink>,
    pub grouping: Grouping,
    pub health: Health,
}

/// What the loop waits for.
enum Happened {
    Received(Result<Vec<Message>, QueueError>),
    Imported(ImportId, Vec<(TaskId, Outcome)>, Duration),
    Input(Input),
    Reported,
}

struct Run<W: World> {
    worker: Worker<W>,
    protocol: Protocol,
    held: BTreeMap<DeliveryId, Held>,
    next_delivery: u64,
    happened: mpsc::UnboundedSender<Happened>,
    /// How long a receive may wait for messages. A drain lets it return, so it fits well into
    /// the grace.
    poll: Duration,
    reporting: bool,
    started_at: Timestamp,
    /// Messages deleted: settled, or dead-lettered.
    done: u64,
    /// How long imports take: an exponential moving average in seconds.
    service: Option<f64>,
    draining: bool,
}

impl<W: World> Worker<W> {
    /// Works until `shutdown` resolves to what the drain may take, and the drain is complete.
    pub async fn run(self, shutdown: impl Future<Output = Duration>) {
        let settings = &self.config.importer;
        let limits = Limits {
            slots: settings.slots,
            bytes_max: settings.bytes_in_flight_max,
            lease: settings.lease.min(LEASE_TOTAL_MAX),
            attempts_max: settings.attempts_max,
            receives_max: self.receives_max,
            grouping: self.grouping.clone(),
            seed: u64::from(std::process::id()),
        };
        let (happened, mut happenings) = mpsc::unbounded_channel();
        let mut run = Run {
            protocol: Protocol::new(limits),
            held: BTreeMap::new(),
            next_delivery: 0,
            happened,
            poll: aws::LONG_POLL_MAX.min(settings.drain_grace / 2),
            reporting: false,
            started_at: clock::now(),
            done: 0,
            service: None,
            draining: false,
            worker: self,
        };
        let mut reports = tokio::time::interval(REPORT_PERIOD);
        reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        let mut input = Input::Wake;
        loop {
            let effects = run.protocol.step(clock::monotonic(), input);
            let mut stop = false;
            for effect in effects.0 {
                stop |= effect == Effect::Stop;
                run.execute(effect);
            }
            if stop {
                break;
            }
            run.watch();
            let wake = run.protocol.next_wake().map(|at| at.saturating_sub(clock::monotonic()));
            input = tokio::select! {
                Some(happened) = happenings.recv() => run.take(happened),
                () = tokio::time::sleep(wake.unwrap_or(Duration::MAX)), if wake.is_some() => Input::Wake,
                _ = reports.tick() => {
                    run.report();
                    Input::Wake
                }
                grace = &mut shutdown, if !run.draining => {
                    run.draining = true;
                    tracing::info!(held = run.protocol.held(), ?grace, "draining");
                    Input::Drain(clock::monotonic() + grace)
                }
            };
        }
        run.finish().await;
    }
}

impl<W: World> Run<W> {
    fn take(&mut self, happened: Happened) -> Input {
        match happened {
            Happened::Input(input) => {
                if let Input::Deleted(results) = &input {
                    self.done += results.iter().filter(|(_, deleted)| *deleted).count() as u64;
                }
                input
            }
            Happened::Imported(import, outcomes, took) => {
                let settled = outcomes.iter().filter(|(_, it)| *it == Outcome::Settled).count();
                // Failures say how long it takes to fail, not how long the work is.
                if settled > 0 {
                    let seconds = took.as_secs_f64() / settled as f64;
                    let average = self.service.unwrap_or(seconds);
                    self.service = Some(average + SERVICE_WEIGHT * (seconds - average));
                }
                let failed = |(_, it): &&(TaskId, Outcome)| {
                    matches!(it, Outcome::Failed(_) | Outcome::FailedTogether(_))
                };
                for (task, _) in outcomes.iter().filter(failed) {
                    if let Some(held) = self.held.get_mut(&task.delivery) {
                        held.first_failed_at.get_or_insert(clock::now());
                    }
                }
                Input::Imported(import, outcomes)
            }
            Happened::Reported => {
                self.reporting = false;
                Input::Wake
            }
            Happened::Received(Ok(messages)) => {
                let now = clock::now();
                metrics::counter!("weirgate_messages_received_total")
                    .increment(messages.len() as u64);
                let mut arrivals = Vec::with_capacity(messages.len());
                for message in messages {
                    let id = DeliveryId(self.next_delivery);
                    self.next_delivery += 1;
                    let (config, fleet) = (&self.worker.config, &self.worker.fleet);
                    let (arrival, held) = take_in(config, fleet, id, message, now);
                    self.held.insert(id, held);
                    arrivals.push(arrival);
                }
                Input::Received(arrivals)
            }
            Happened::Received(Err(error)) => {
                tracing::warn!(%error, "receive failed; waiting for the queue");
                Input::ReceiveFailed
            }
        }
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Receive { count } => {
                let (queue, happened) = (self.worker.queue.clone(), self.happened.clone());
                let (lease, wait) = (self.worker.config.importer.lease, self.poll);
                tokio::spawn(async move {
                    let received = queue.receive(count, wait, lease).await;
                    let _ = happened.send(Happened::Received(received));
                });
            }
            Effect::Import(import, tasks) => self.import(import, tasks),
            Effect::DeadLetter { delivery, event, attempts, failure } => {
                self.dead_letter(delivery, event, attempts, failure);
            }
            Effect::Extend(batch) => {
                let batch = batch.into_iter().map(|(id, lease)| (self.receipt(id), lease));
                let (queue, batch) = (self.worker.queue.clone(), batch.collect());
                self.spawn(async move { sqs::extend(&queue, batch).await });
            }
            Effect::Delete(batch) => {
                let batch = batch.into_iter().map(|id| self.receipt(id)).collect();
                let queue = self.worker.queue.clone();
                self.spawn(async move { sqs::delete(&queue, batch).await });
            }
            Effect::Release(batch) => {
                let batch = batch.into_iter().map(|(id, delay)| (self.receipt(id), delay));
                let (queue, batch) = (self.worker.queue.clone(), batch.collect());
                self.spawn(async move { sqs::release(&queue, batch).await });
            }
            Effect::Probe(dependency) => self.probe(dependency),
            Effect::Forget(id) => {
                self.held.remove(&id);
            }
            Effect::Stop => {}
        }
    }

    fn import(&self, id: ImportId, tasks: Vec<TaskId>) {
        let Some(feed_name) = tasks.first().map(|task| self.work(*task).feed.clone()) else {
            return;
        };
        let request = |task: &TaskId| Request {
            object: self.work(*task).object.clone(),
            received_at: self.held[&task.delivery].received_at,
        };
        let requests: Vec<Request> = tasks.iter().map(request).collect();
        let message_id = |task: &TaskId| self.held[&task.delivery].message.message_id.clone();
        let message_ids: Vec<String> = tasks.iter().map(message_id).collect();
        let (config, importer) = (self.worker.config.clone(), self.worker.importer.clone());
        let span = tracing::info_span!("import", feed = %feed_name, objects = tasks.len());
        let started = clock::monotonic();
        let job = async move {
            let feed = &config.feeds[&feed_name];
            let results = importer.import(&feed_name, feed, &requests).await;
            let took = clock::monotonic().saturating_sub(started);
            let what = requests.iter().zip(&message_ids);
            record_import(&feed_name, what.zip(&results), took);
            (results.into_iter().map(outcome).collect::<Vec<_>>(), took)
        };
        let job = tokio::spawn(tracing::Instrument::instrument(job, span));
        let happened = self.happened.clone();
        tokio::spawn(async move {
            let (outcomes, took) = job.await.unwrap_or_else(|panic| {
                // A bug of ours: the messages must not be lost for it, nor the process.
                tracing::error!(%panic, "an import ended in a bug");
                let detail = format!("the importer failed: {panic}");
                let failure = Failure::new(Fault::Transient, "importer_failed", detail);
                let failed = |_: &TaskId| Outcome::FailedTogether(failure.clone());
                (tasks.iter().map(failed).collect(), Duration::ZERO)
            });
            let outcomes = tasks.into_iter().zip(outcomes).collect();
            let _ = happened.send(Happened::Imported(id, outcomes, took));
        });
    }

    fn work(&self, task: TaskId) -> &Work {
        &self.held[&task.delivery].tasks[task.index]
    }

    fn dead_letter(&self, id: DeliveryId, event: Option<usize>, attempts: u32, failure: Failure) {
        let held = &self.held[&id];
        let now = clock::now();
        let reason = held.reason(event, attempts, &failure, now);
        tracing::warn!(
            message_id = %held.message.message_id,
            reason = %reason.code,
            object = reason.object.as_deref().unwrap_or("-"),
            attempts,
            "dead-lettered: {}", reason.detail
        );
        metrics::counter!("weirgate_dead_letters_total", "reason" => failure.code).increment(1);
        let record = FailureRecord {
            message_id: held.message.message_id.clone(),
            object: reason.object.clone().unwrap_or_default(),
            fleet: self.worker.fleet.clone(),
            feed: reason.feed.clone().unwrap_or_default(),
            class: failure.fault.as_str().to_owned(),
            reason: reason.code.clone(),
            detail: reason.detail.clone(),
            attempts,
            at: now,
            resolution: Resolution::DeadLettered,
        };
        let (queue, ledger) = (self.worker.dead_letters.clone(), self.worker.ledger.clone());
        let body = held.message.body.clone();
        self.spawn(async move {
            let sent = sqs::dead_letter(&queue, body, reason.to_attributes()).await;
            // The dead letter carries its reason; the record is for the history.
            if sent && let Err(error) = ledger.record_failure(&record).await {
                tracing::warn!(error = fault::chain(&error), "failure not recorded in the ledger");
            }
            Input::DeadLettered(id, sent)
        });
    }

    fn probe(&self, dependency: Dependency) {
        let (ledger, queue) = (self.worker.ledger.clone(), self.worker.queue.clone());
        let objects = self.worker.importer.objects.clone();
        let feeds = &self.worker.config.feeds;
        let bucket = feeds
            .values()
            .find(|feed| feed.fleet == self.worker.fleet && !feed.objects.is_messages());
        let bucket = bucket.map(|feed| feed.objects.bucket().to_owned()).unwrap_or_default();
        self.spawn(async move {
            let back = match dependency {
                Dependency::Database => ledger.answers().await,
                Dependency::ObjectStore => objects.answers(&bucket).await,
                Dependency::Queue => queue.answers().await,
            };
            match back {
                true => tracing::info!(%dependency, "back"),
                false => tracing::warn!(%dependency, "still away; leases are kept"),
            }
            Input::Probed(dependency, back)
        });
    }

    fn receipt(&self, id: DeliveryId) -> Receipt {
        (id, self.held[&id].message.receipt.clone())
    }

    fn spawn(&self, answer: impl Future<Output = Input> + Send + 'static) {
        let happened = self.happened.clone();
        tokio::spawn(async move {
            // Nobody listens after the drain.
            let _ = happened.send(Happened::Input(answer.await));
        });
    }

    /// What others see between two steps.
    fn watch(&self) {
        self.worker.health.set_ready(!self.draining && !self.protocol.waits_for_outage());
        metrics::gauge!("weirgate_messages_held").set(self.protocol.held() as f64);
        metrics::gauge!("weirgate_import_slots").set(self.protocol.slots() as f64);
        metrics::gauge!("weirgate_imports_running").set(self.protocol.running() as f64);
    }

    fn state(&self) -> WorkerState {
        match (self.draining, self.protocol.waits_for_outage()) {
            (true, _) => WorkerState::Draining,
            (false, true) => WorkerState::Waiting,
            (false, false) => WorkerState::Running,
        }
    }

    fn status(&self, state: WorkerState) -> WorkerReport {
        WorkerReport {
            worker: self.worker.importer.worker.clone(),
            fleet: self.worker.fleet.clone(),
            state,
            slots: self.worker.config.importer.slots as u64,
            busy: self.protocol.held() as u64,
            done: self.done,
            service_ms: self.service.map_or(0, |seconds| (seconds * 1_000.0) as u64),
            oldest_message_at: self.held.values().map(|held| held.message.sent_at).min(),
            started_at: self.started_at,
            reported_at: clock::now(),
        }
    }

    /// One report at a time: a slow database must not pile them up.
    fn report(&mut self) {
        if self.reporting {
            return;
        }
        self.reporting = true;
        let (ledger, happened) = (self.worker.ledger.clone(), self.happened.clone());
        let report = self.status(self.state());
        tokio::spawn(async move {
            if let Err(error) = ledger.report_worker(&report).await {
                tracing::debug!(error = fault::chain(&error), "report not written");
            }
            let _ = happened.send(Happened::Reported);
        });
    }

    async fn finish(self) {
        self.worker.health.set_ready(false);
        let report = self.status(WorkerState::Stopped);
        if let Err(error) = self.worker.ledger.report_worker(&report).await {
            tracing::debug!(error = fault::chain(&error), "last report not written");
        }
        let held = self.protocol.held();
        match held {
            0 => tracing::info!(done = self.done, "drained"),
            _ => tracing::warn!(held, "stopped with messages held; SQS delivers them again"),
        }
    }
}

fn outcome(result: Result<Settled, Refusal>) -> Outcome {
    match result {
        Ok(_) => Outcome::Settled,
        Err(Refusal::Own(failure)) => Outcome::Failed(failure),
        Err(Refusal::Joint(failure)) => Outcome::FailedTogether(failure),
        Err(Refusal::Apart) => Outcome::Apart,
    }
}

/// The family of series about one import, and a line in the log for each object.
fn record_import<'i>(
    feed: &str,
    objects: impl Iterator<Item = ((&'i Request, &'i String), &'i Result<Settled, Refusal>)>,
    took: Duration,
) {
    let seconds = took.as_secs_f64();
    let named = || feed.to_owned();
    metrics::histogram!("weirgate_import_seconds", "feed" => named()).record(seconds);
    for ((Request { object, .. }, message_id), result) in objects {
        let outcome = match result {
            Ok(Settled::Committed { .. }) => "committed",
            Ok(Settled::AlreadyCommitted) => "already_committed",
            Ok(Settled::Superseded) => "superseded",
            Ok(Settled::Missing) => "missing",
            Err(Refusal::Own(failure) | Refusal::Joint(failure)) => failure.fault.as_str(),
            Err(Refusal::Apart) => "apart",
        };
        let labels = [("feed", named()), ("outcome", outcome.to_owned())];
        metrics::counter!("weirgate_imports_total", &labels).increment(1);
        let (bucket, key) = (&object.bucket, &object.key);
        match result {
            Ok(Settled::Committed { rows, rejected, bytes }) => {
                metrics::counter!("weirgate_rows_committed_total", "feed" => named())
                    .increment(*rows);
                metrics::counter!("weirgate_rows_rejected_total", "feed" => named())
                    .increment(*rejected as u64);
                metrics::counter!("weirgate_object_bytes_total", "feed" => named())
                    .increment(*bytes);
                if let Some(created_at) = object.at {
                    let freshness = clock::now().since(created_at).as_secs_f64();
                    metrics::histogram!("weirgate_freshness_seconds", "feed" => named())
                        .record(freshness);
                }
                tracing::info!(
                    message_id,
                    bucket,
                    key,
                    rows,
                    rejected,
                    bytes,
                    seconds,
                    "committed"
                );
            }
            Ok(_) => tracing::info!(message_id, bucket, key, outcome, "settled without rows"),
            Err(Refusal::Apart) => {
                tracing::debug!(message_id, bucket, key, "goes alone next");
            }
            Err(Refusal::Own(failure) | Refusal::Joint(failure)) => {
                let (class, code) = (outcome, failure.code);
                tracing::warn!(message_id, bucket, key, class, code, "{}", failure.detail);
            }
        }
    }
}
