//! The program: configuration → connections → worker.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use aws_config::SdkConfig;
use backon::{ExponentialBuilder, Retryable};
use clap::Parser;
use tokio::sync::watch;
use weirgate_common::aws;
use weirgate_common::clock;
use weirgate_common::config::{self, Config};
use weirgate_common::fault::{self, Fault};
use weirgate_common::ledger::Ledger;
use weirgate_common::queue::{Queue, QueueError};
use weirgate_common::telemetry::{self, Health, LogFormat};

use crate::import::Importer;
use crate::instance::{Instance, Notice};
use crate::object::Objects;
use crate::protocol::Grouping;
use crate::schemas::Schemas;
use crate::sink::Sink;
use crate::worker::Worker;

/// Imports objects from S3 into a database, exactly once in effect.
///
/// Takes S3 events from the fleet's queue, reads each object as the event saw it, commits its
/// rows together with a ledger row, then deletes the message. What cannot be imported goes to
/// the queue's dead-letter queue with its reason. Any number of importers may work one queue.
///
/// SIGTERM or SIGINT drains: running imports finish within importer.drain_grace, everything else
/// is given back to the queue at once. So do, on an instance of the fleet's Auto Scaling group, the
/// group's termination lifecycle hook, which is completed when nothing is held any more, and the
/// Spot notice; both come through the metadata service (IMDSv2).
#[derive(Debug, Parser)]
#[command(
    name = "importer",
    version,
    after_help = "Environment:\n  WEIRGATE_CONFIG         the configuration file\n  WEIRGATE_INSTANCE_ID    this worker's name in reports (default: host and process id)\n  WEIRGATE_LOG            what to log, e.g. info,weirgate_importer=debug\n  WEIRGATE_<KEY>          overrides a key of the file, e.g. WEIRGATE_DATABASE\n  AWS_REGION, AWS_ENDPOINT_URL_SQS, ...   as in every AWS SDK\n\nExit codes:\n  0  drained\n  1  could not start\n  2  wrong usage or configuration"
)]
struct Arguments {
    /// The configuration file.
    #[arg(long, env = config::PATH_VARIABLE, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The fleet to work for; needed only when the file has several.
    #[arg(long, env = "WEIRGATE_WORKER_FLEET")]
    fleet: Option<String>,
    /// Serve /metrics, /healthz and /readyz here, e.g. 0.0.0.0:9100.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
}

/// How long a starting importer waits for its dependencies: containers of one deployment come up
/// in any order.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Runs the program with the given arguments, the program's name first.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    telemetry::start_logging(arguments.log_format);
    let (config, fleet) = match configured(&arguments) {
        Ok(configured) => configured,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work(config, fleet, arguments.listen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn configured(arguments: &Arguments) -> anyhow::Result<(Config, String)> {
    let config = Config::load(&arguments.config)?;
    let fleet = config.fleet(arguments.fleet.as_deref())?.0.to_owned();
    Ok((config, fleet))
}

async fn work(config: Config, fleet: String, listen: Option<SocketAddr>) -> anyhow::Result<()> {
    // First of all, so that a SIGTERM during the start is not lost.
    let mut shutdown = std::pin::pin!(shutdown_signal()?);
    let health = Health::default();
    if let Some(listen) = listen {
        let address = telemetry::serve(listen, telemetry::start_metrics(), health.clone())
            .await
            .with_context(|| format!("cannot listen on {listen}; choose another --listen"))?;
        tracing::info!(%address, "serving metrics and health");
    }
    let sdk = aws::sdk_config().await;
    let worker = tokio::select! {
        worker = connect(&sdk, config, fleet, health) => worker?,
        () = &mut shutdown => return Ok(()),
    };
    tracing::info!(
        worker = worker.importer.worker,
        fleet = worker.fleet,
        queue = worker.queue.url(),
        database = %worker.config.database,
        "importing"
    );
    let grace = worker.config.importer.drain_grace;
    let group = worker.config.fleets[&worker.fleet].auto_scaling_group.clone();
    let auto_scaling = aws::auto_scaling(&sdk);
    match group.and_then(|group| Instance::new(auto_scaling, &group)) {
        None => {
            let shutdown = async {
                shutdown.await;
                grace
            };
            worker.run(shutdown).await;
        }
        Some(instance) => Box::pin(work_on(&instance, worker, grace, shutdown)).await,
    }
    Ok(())
}

/// Works until the process or its instance is to end, and lets the group end the instance once
/// nothing is held.
async fn work_on(
    instance: &Instance,
    worker: Worker,
    grace: Duration,
    mut stopped: Pin<&mut impl Future<Output = ()>>,
) {
    let (told, mut heard) = watch::channel(None);
    let drained = worker.run(async {
        tokio::select! {
            () = &mut stopped => grace,
            notice = instance.notice() => {
                told.send_replace(Some(notice));
                notice.grace(grace, clock::now())
            }
        }
    });
    // Only the group's own termination can be asked to wait.
    let waiting = async {
        drop(heard.wait_for(|notice| *notice == Some(Notice::Terminating)).await);
        instance.hold_on().await;
    };
    tokio::select! {
        () = drained => {}
        () = waiting => {}
    }
    if told.borrow().is_some() {
        instance.complete().await;
        // A container that ends is started again, and would take messages of an instance that
        // is about to go.
        stopped.await;
    }
}

async fn connect(
    sdk: &SdkConfig,
    config: Config,
    fleet: String,
    health: Health,
) -> anyhow::Result<Worker> {
    let queue = Queue::new(aws::sqs(sdk), &config.fleets[&fleet].queue);
    // One connection per import, one for reports and failures, one to probe.
    let connections = u32::try_from(config.importer.slots + 2).unwrap_or(u32::MAX);
    let ledger = (|| Ledger::open(&config.database, connections))
        .retry(patience())
        .when(|error| matches!(error.fault(), Fault::Outage(_)))
        .notify(|error, wait| {
            tracing::warn!(error = fault::chain(error), ?wait, "the database does not answer yet");
        })
        .await?;
    let (settings, dead_letters) = (|| async {
        let settings = queue.settings().await?;
        Ok((settings, queue.dead_letter_queue().await?))
    })
    .retry(patience())
    .when(|error| match error {
        QueueError::NoDeadLetterQueue { .. } => false,
        error => error.code().is_none_or(|code| !code.contains("NonExistentQueue")),
    })
    .notify(|error, wait| tracing::warn!(%error, ?wait, "the queue does not answer yet"))
    .await
    .context("check fleet.queue, AWS_REGION and the credentials' permissions")?;
    let receives_max = settings.redrive.map_or(u32::MAX, |redrive| redrive.receives_max);
    let schemas = Schemas::open(config.importer.schemas.clone(), ledger.clone()).await?;
    let importer = Importer {
        schemas: Arc::new(schemas),
        objects: Objects::new(aws::s3(sdk), config.importer.object_bytes_max),
        sink: Sink::new(&ledger),
        worker: identity(),
    };
    Ok(Worker {
        config: Arc::new(config),
        fleet,
        queue,
        dead_letters,
        receives_max,
        ledger,
        importer,
        grouping: Grouping::default(),
        health,
    })
}

fn patience() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(5))
        .with_total_delay(Some(START_PATIENCE))
        .without_max_times()
}

/// The instance, where the launcher or a container definition names it.
fn identity() -> String {
    std::env::var("WEIRGATE_INSTANCE_ID").ok().filter(|id| !id.is_empty()).unwrap_or_else(|| {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "importer".to_owned());
        format!("{host}-{}", std::process::id())
    })
}

/// Resolves at the first SIGTERM or SIGINT.
fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
