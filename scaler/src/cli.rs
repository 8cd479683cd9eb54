//! The command line: what a person types, and nothing that decides.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this file talks to people")]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing::{error, info};
use weirgate_common::config::{self, Config, Fleet};
use weirgate_common::fault::chain;
use weirgate_common::ledger::Ledger;
use weirgate_common::queue::Queue;
use weirgate_common::telemetry::{self, Health, LogFormat};
use weirgate_common::{aws, clock};

use crate::cloudwatch::CloudWatch;
use crate::group::AutoScalingGroup;
use crate::history::History;
use crate::policy::{Objective, Step};
use crate::service::{Keeper, Readiness, objective, open_ledger, stop_signal};
use crate::simulate::{
    Baseline, Drawn, Kind, Policy, Row, Suite, Trace, Trial, pareto, render, timeline, tuned,
};

const USAGE: u8 = 2;

/// Keeps each fleet of importers at the size its freshness objective asks for.
///
/// The size follows the queue's depth (waiting, in flight and delayed), never the CPU: importers
/// wait on I/O, so their CPU is idle long before their queue is empty. The group grows at once
/// when there is work, and shrinks only once the queue has read empty for `scaler.settle`, no
/// importer holds a message, and no instance is on its way. What cannot be read is unknown, and
/// on unknown nothing shrinks.
///
/// Several scalers may run: one acts per fleet, by a lease in the ledger; the others stand by.
///
/// Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.
#[derive(Debug, Parser)]
#[command(name = "scaler", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service, until SIGTERM or SIGINT.
    Run(RunArgs),
    /// Observe once, print what the policy makes of it, and change nothing.
    ///
    /// One look proves no emptiness, so a plan to shrink never shows here; the running
    /// service's decisions are in the ledger.
    Plan(PlanArgs),
    /// Run policies, ours and others', on simulated workloads and print how they did.
    ///
    /// All policies meet the same messages, the same lagging counters and slow boots. Cost is
    /// billed time over that of a clairvoyant that serves everything in time and pays only for
    /// work and boots. Use --trace with your own history before you deploy.
    Simulate(SimulateArgs),
}

#[derive(Debug, Args)]
struct Choice {
    /// The configuration file.
    #[arg(long, env = config::PATH_VARIABLE, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Only this fleet; without it, every fleet that names an auto_scaling_group.
    #[arg(long)]
    fleet: Option<String>,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    choice: Choice,
    /// Decide, log and record, but never write to a group.
    #[arg(long)]
    dry_run: bool,
    /// How logs on standard error look.
    #[arg(long, value_enum, default_value = "human")]
    log_format: LogFormat,
    /// Serve /metrics, /healthz and /readyz on this address, such as 127.0.0.1:9102.
    #[arg(long)]
    listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    choice: Choice,
    /// One JSON object per fleet instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct SimulateArgs {
    /// Built-in workloads by name; without it and --trace, all of them.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    workload: Vec<String>,
    /// A file of `minute,arrivals` lines under that heading, or the JSON answer of `aws cloudwatch
    /// get-metric-data` or `get-metric-statistics` for NumberOfMessagesSent of a queue. Long ones:
    /// a day per seed.
    #[arg(long, value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// Policies by name; without it, all of them.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    policy: Vec<String>,
    /// Mean offered load in instances; the fleet may grow to eight times that.
    #[arg(long, default_value = "10")]
    load: f64,
    /// Median time from launch to work.
    #[arg(long, default_value = "60s", value_parser = config::parse_duration)]
    boot: Duration,
    /// The freshness objective.
    #[arg(long, default_value = "5m", value_parser = config::parse_duration)]
    freshness: Duration,
    /// Paired repetitions: seeds 0 to this, exclusive.
    #[arg(long, default_value = "5")]
    seeds: u64,
    /// Run the other policies over the range of their main knobs, too, and show each with the
    /// knob that does best on all workloads but the one it is shown on.
    #[arg(long)]
    tuned: bool,
    /// The largest lag of the queue's counters.
    #[arg(long, default_value = "60s", value_parser = config::parse_duration)]
    lag: Duration,
    /// Tell policies that cannot learn how long a message takes this many times the truth.
    #[arg(long, default_value = "1")]
    service_error: f64,
    /// One JSON array instead of tables.
    #[arg(long)]
    json: bool,
    /// Write pictures here: per workload, seed 0 over time, and cost against late messages.
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
}

/// Runs the program. `args` includes the program's own name.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Help and version are answers, not failures, and go to standard output.
        Err(answer) => {
            let failed = answer.use_stderr();
            return match answer.print() {
                Ok(()) if !failed => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            };
        }
    };
    if let Command::Simulate(args) = &cli.command {
        return simulate(args);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start: {error}")),
    };
    runtime.block_on(async {
        match cli.command {
            Command::Run(args) => serve(args).await,
            Command::Plan(args) => look(args).await,
            Command::Simulate(_) => ExitCode::SUCCESS,
        }
    })
}

fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("scaler: {message}");
    ExitCode::from(code)
}

async fn serve(args: RunArgs) -> ExitCode {
    let (config, names) = match load(&args.choice) {
        Ok(loaded) => loaded,
        Err(message) => return fail(USAGE, &message),
    };
    telemetry::start_logging(args.log_format);
    let health = Health::default();
    if let Some(listen) = args.listen {
        match telemetry::serve(listen, telemetry::start_metrics(), health.clone()).await {
            Ok(address) => info!(%address, "serving metrics and health"),
            Err(error) => return fail(1, &format!("cannot listen on {listen}: {error}")),
        }
    }
    let stop = match stop_signal() {
        Ok(stop) => stop,
        Err(error) => return fail(1, &format!("cannot watch for signals: {error}")),
    };
    info!(database = %config.database, fleets = names.join(", "), "starting");
    let ledger = match open_ledger(&config.database, &mut stop.clone()).await {
        Ok(Some(ledger)) => ledger,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            error!(cause = chain(&error), "cannot use the ledger");
            return ExitCode::FAILURE;
        }
    };

    let keepers = keepers(&config, &names, &ledger, args.dry_run).await;
    let mut loops = tokio::task::JoinSet::new();
    let readiness = Readiness::new(&names, health);
    for keeper in keepers {
        loops.spawn(keeper.run(stop.clone(), readiness.clone()));
    }
    let mut code = ExitCode::SUCCESS;
    while let Some(ended) = loops.join_next().await {
        if let Err(error) = ended {
            error!(%error, "a fleet's loop broke; stopping so that a standby takes over");
            code = ExitCode::FAILURE;
            loops.abort_all();
        }
    }
    ledger.close().await;
    code
}

async fn look(args: PlanArgs) -> ExitCode {
    let (config, names) = match load(&args.choice) {
        Ok(loaded) => loaded,
        Err(message) => return fail(USAGE, &message),
    };
    let ledger = match Ledger::connect(&config.database, 1).await {
        Ok(ledger) => ledger,
        Err(error) => return fail(1, &chain(&error)),
    };
    let mut code = ExitCode::SUCCESS;
    for keeper in keepers(&config, &names, &ledger, true).await {
        let (_, plan) = keeper.look(&mut History::default()).await;
        if args.json {
            match serde_json::to_string(&plan.report) {
                Ok(report) => println!("{report}"),
                Err(error) => return fail(1, &error.to_string()),
            }
        } else {
            print!("{}: {}", keeper.fleet, plan.report);
        }
        // A script that asks for a plan wants to know that there was something to plan from.
        if matches!(plan.step, Step::Hold(_)) && !plan.report.inputs.unknown.is_empty() {
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn simulate(args: &SimulateArgs) -> ExitCode {
    let suite = match suite(args) {
        Ok(suite) => suite,
        Err(message) => return fail(USAGE, &message),
    };
    let mut rows = suite.run();
    if let Some(folder) = &args.svg
        && let Err(error) = draw(folder, &suite, &rows)
    {
        return fail(1, &format!("cannot write to {}: {error}", folder.display()));
    }
    let chosen = if args.tuned { tuned(&rows) } else { Vec::new() };
    if args.json {
        rows.extend(chosen);
        match serde_json::to_string_pretty(&rows) {
            Ok(rows) => println!("{rows}"),
            Err(error) => return fail(1, &error.to_string()),
        }
    } else {
        // What the search tried is in the JSON and the pictures, and here where it was asked for.
        let tried: Vec<String> = Baseline::variants().iter().map(Baseline::name).collect();
        let is_shown =
            |row: &Row| !tried.contains(&row.policy) || args.policy.contains(&row.policy);
        print!("{}", render(&rows, is_shown, &chosen));
    }
    ExitCode::SUCCESS
}

fn suite(args: &SimulateArgs) -> Result<Suite, String> {
    if !(args.load.is_finite() && args.load > 0.0 && args.load <= 1_000.0) {
        return Err(format!("--load {} is outside 0 to 1000 instances", args.load));
    }
    if !(args.service_error.is_finite() && args.service_error > 0.0) {
        return Err(format!("--service-error {} is not a positive factor", args.service_error));
    }
    let mut kinds = Vec::new();
    for path in &args.trace {
        let shown = path.display();
        let text =
            std::fs::read_to_string(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let trace = Trace::parse(&name, &text).map_err(|e| format!("{shown}: {e}"))?;
        kinds.push(Kind::Trace(trace));
    }
    if !args.workload.is_empty() || args.trace.is_empty() {
        kinds.extend(chosen(Kind::synthetic(), &args.workload, "workload", |kind| {
            kind.name().to_owned()
        })?);
    }
    let boot_ms = args.boot.as_millis() as f64;
    let ours = Policy::Weirgate(Objective {
        freshness: args.freshness,
        instances_min: 0,
        instances_max: 0,
        slots: 1,
        period: Duration::from_secs(10),
        settle: Duration::from_secs(75),
    });
    let policies = std::iter::once(ours)
        .chain(Baseline::all().into_iter().map(Policy::Baseline))
        .chain(
            if args.tuned { Baseline::variants() } else { Vec::new() }
                .into_iter()
                .map(Policy::Baseline),
        )
        .collect();
    let trial = |kind| Trial {
        kind,
        load: args.load,
        boot_ms,
        lag_ms: u64::try_from(args.lag.as_millis()).unwrap_or(u64::MAX),
        service_error: args.service_error,
        freshness_ms: u64::try_from(args.freshness.as_millis()).unwrap_or(u64::MAX),
    };
    Ok(Suite {
        trials: kinds.into_iter().map(trial).collect(),
        policies: chosen(policies, &args.policy, "policy", Policy::name)?,
        seeds: args.seeds,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    })
}

fn draw(folder: &Path, suite: &Suite, rows: &[Row]) -> std::io::Result<()> {
    /// More lines than this hide one another.
    const LINES_MAX: usize = 5;
    std::fs::create_dir_all(folder)?;
    for trial in &suite.trials {
        let name = trial.kind.name();
        let drawn = Drawn::new(trial, 0);
        let runs: Vec<_> = suite
            .policies
            .iter()
            .take(LINES_MAX)
            .map(|policy| {
                let mut moments = Vec::new();
                drawn.judge(policy, |moment| moments.push(moment));
                (policy.name(), moments)
            })
            .collect();
        let title = format!("{name} at a load of {} instances", trial.load);
        let over_time = timeline(&title, trial.freshness_ms as f64 / 1000.0, &runs);
        std::fs::write(folder.join(format!("{name}.svg")), over_time)?;
        let of_trial: Vec<&Row> = rows.iter().filter(|row| row.workload == name).collect();
        let costs = pareto(&format!("{title}: cost against late messages"), &of_trial);
        std::fs::write(folder.join(format!("{name}-pareto.svg")), costs)?;
    }
    Ok(())
}

/// Those of `all` that are named; all when none is.
fn chosen<T>(
    all: Vec<T>,
    names: &[String],
    what: &str,
    name_of: impl Fn(&T) -> String,
) -> Result<Vec<T>, String> {
    let known: Vec<String> = all.iter().map(&name_of).collect();
    if let Some(stranger) = names.iter().find(|name| !known.contains(name)) {
        return Err(format!("no {what} `{stranger}`; there are: {}", known.join(", ")));
    }
    let wanted = |item: &T| names.is_empty() || names.contains(&name_of(item));
    Ok(all.into_iter().filter(wanted).collect())
}

/// The configuration and the fleets that are to be scaled.
fn load(choice: &Choice) -> Result<(Config, Vec<String>), String> {
    let config = Config::load(&choice.config).map_err(|error| chain(&error))?;
    let names = match &choice.fleet {
        Some(name) => {
            let (name, fleet) = config.fleet(Some(name)).map_err(|error| error.to_string())?;
            if fleet.auto_scaling_group.is_none() {
                return Err(format!(
                    "fleet `{name}` has no auto_scaling_group; name the group that the scaler resizes"
                ));
            }
            vec![name.to_owned()]
        }
        None => {
            let scaled = |fleet: &Fleet| fleet.auto_scaling_group.is_some();
            config.fleets.iter().filter(|(_, f)| scaled(f)).map(|(name, _)| name.clone()).collect()
        }
    };
    if names.is_empty() {
        return Err(format!(
            "no fleet in {} has an auto_scaling_group; give one to [fleet.NAME]",
            choice.config.display()
        ));
    }
    Ok((config, names))
}

async fn keepers(
    config: &Config,
    names: &[String],
    ledger: &Ledger,
    dry_run: bool,
) -> Vec<Keeper<AutoScalingGroup, Queue, CloudWatch>> {
    let sdk = aws::sdk_config().await;
    let holder = holder();
    let keeper = |name: &String| {
        let fleet = config.fleets.get(name)?;
        let feeds = config.feeds.iter().filter(|(_, feed)| feed.fleet == *name);
        Some(Keeper {
            fleet: name.clone(),
            feeds: feeds.map(|(feed, _)| feed.clone()).collect(),
            objective: objective(config, fleet),
            gauge: Queue::new(aws::sqs(&sdk), &fleet.queue),
            group: AutoScalingGroup::new(
                aws::auto_scaling(&sdk),
                fleet.auto_scaling_group.as_ref()?,
            ),
            monitor: CloudWatch::new(aws_sdk_cloudwatch::Client::new(&sdk), name, &fleet.queue),
            ledger: ledger.clone(),
            holder: holder.clone(),
            dry_run,
        })
    };
    names.iter().filter_map(keeper).collect()
}

/// Host, process and start time: a restarted scaler is another holder, since it remembers
/// nothing.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}/{}", host.trim(), std::process::id(), clock::now().unix_ms())
}
