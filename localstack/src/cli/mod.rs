//! The command line of the local system.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this folder talks to people")]

mod demo;
mod supervise;
mod view;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use rustix::process::Signal;
use weirgate_common::clock;
use weirgate_common::config::parse_duration;

use crate::fleet::Tuning;
use crate::layout::{Layout, remove_folder};
use crate::process::PidFiles;
use crate::programs;
use crate::progress::Progress;
use crate::world::{self, DatabaseKind, Options, State};

/// Nothing is running that could be asked.
const NOT_RUNNING: u8 = 3;

/// Runs the whole of Weirgate on this machine: LocalStack for S3, SNS and SQS, moto for Auto
/// Scaling, PostgreSQL or SQLite, the scaler, and one importer per instance of the group.
///
/// The first start installs the emulators from the Python package index into your cache folder;
/// it needs Python 3.10 or newer with venv, and neither Docker nor root. State is kept in
/// `.weirgate/` of the checkout.
///
/// Exit codes: 0 success, 1 failure (of `demo`: the proof did not hold), 2 wrong usage, 3 not
/// running (`status`, `env`), 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "weirgate-local", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the system and leave it running.
    Up(UpArgs),
    /// End it. Database and logs stay.
    Down(WorldArgs),
    /// Tell what runs, where, and how deep the queue is.
    Status(ReportArgs),
    /// End it and remove database, logs and configuration.
    Reset(WorldArgs),
    /// Print the variables that let any program reach it: eval "$(cargo local env)".
    Env(ReportArgs),
    /// Show the whole line at work, and prove from outside that it worked.
    ///
    /// A producer uploads impressions in bursts, among them an overwritten object, an empty one,
    /// a corrupt one and notifications that come twice. The group grows from zero, importers
    /// drain the queue, the group shrinks to zero. Then rows, duplicates, missing objects and
    /// dead letters are compared with the producer's own record.
    Demo(DemoArgs),
    /// Run one program of the fleet: importer, scaler or weirgate.
    #[command(name = programs::RUN)]
    Run {
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// Own a world in the background, for `up`.
    #[command(hide = true)]
    Supervise(UpArgs),
}

#[derive(Clone, Debug, Args)]
struct WorldArgs {
    /// Which world, of those that may run side by side in one checkout.
    #[arg(long, default_value = "local")]
    world: String,
}

#[derive(Clone, Debug, Args)]
struct ReportArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// Use PostgreSQL instead of SQLite.
    #[arg(long)]
    postgres: bool,
    /// Most instances the group may have.
    #[arg(long, value_name = "N", default_value = "4")]
    instances_max: u32,
    /// From an instance being in service to its importer starting.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    boot_delay: Duration,
    /// How long the queue must read empty before the group shrinks.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    settle: Duration,
    /// Emulators and database only: no scaler, and no importers for the group's instances.
    #[arg(long)]
    bare: bool,
}

#[derive(Clone, Debug, Args)]
struct DemoArgs {
    /// Which world it runs in. Whatever that world held is removed first.
    #[arg(long, default_value = "demo")]
    world: String,
    /// Use PostgreSQL instead of SQLite.
    #[arg(long)]
    postgres: bool,
    /// How many objects are uploaded.
    #[arg(long, value_name = "N", default_value = "400", value_parser = clap::value_parser!(u64).range(10..=100_000))]
    objects: u64,
    /// Rows in each object.
    #[arg(long, value_name = "N", default_value = "500", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rows: u64,
    /// Of everything random in the uploads.
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// Leave the system running afterwards, to look around in it.
    #[arg(long)]
    keep: bool,
    /// Kill processes of the system at random while objects are uploaded: importers, scaler,
    /// emulators, database.
    #[arg(long)]
    chaos: bool,
    /// In the background, for `--keep`.
    #[arg(long, hide = true)]
    supervised: bool,
}

impl UpArgs {
    fn database(&self) -> DatabaseKind {
        if self.postgres { DatabaseKind::Postgres } else { DatabaseKind::Sqlite }
    }

    fn options(&self) -> Options {
        Options {
            database: self.database(),
            tuning: Tuning {
                instances_max: self.instances_max,
                scaler_settle: self.settle,
                ..Tuning::default()
            },
            fresh: false,
            progress: Progress::Stderr,
            ..Options::new(&self.world.world)
        }
    }

    /// The same arguments, for the supervisor.
    fn to_args(&self) -> Vec<OsString> {
        let ms = |span: Duration| format!("{}ms", span.as_millis());
        let mut args = vec!["--world".to_owned(), self.world.world.clone()];
        args.extend(["--instances-max".to_owned(), self.instances_max.to_string()]);
        args.extend(["--boot-delay".to_owned(), ms(self.boot_delay)]);
        args.extend(["--settle".to_owned(), ms(self.settle)]);
        args.extend(self.postgres.then(|| "--postgres".to_owned()));
        args.extend(self.bare.then(|| "--bare".to_owned()));
        args.into_iter().map(OsString::from).collect()
    }
}

/// Everything the program can do. The first argument is its own name, as in `args_os`.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(Cli { command: Command::Run { program } }) => programs::dispatch(program),
        Ok(Cli { command }) => {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
            match runtime.block_on(execute(command)) {
                Ok(code) => code,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(error) => {
            // A closed terminal is no reason for another message.
            drop(error.print());
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

async fn execute(command: Command) -> Result<ExitCode> {
    let layout = Layout::discover()?;
    match command {
        Command::Up(args) => supervise::up(&layout, &args).await,
        Command::Demo(args) => demo::run(&layout, &args).await,
        Command::Supervise(args) => supervise::supervise(&args).await,
        Command::Down(args) => {
            let ended = down(&layout, &args.world).await?;
            eprintln!("{}", if ended { "ended" } else { "nothing was running" });
            Ok(ExitCode::SUCCESS)
        }
        Command::Reset(args) => {
            down(&layout, &args.world).await?;
            let _lock = world::hold(&layout, &args.world)?;
            remove_folder(&layout.world(&args.world)?)?;
            eprintln!("removed all of {:?}", args.world);
            Ok(ExitCode::SUCCESS)
        }
        Command::Status(args) => view::status(&layout, &args.world.world, args.json).await,
        Command::Env(args) => match running(&layout, &args.world)? {
            Some(state) => {
                view::environment(&state, args.json)?;
                Ok(ExitCode::SUCCESS)
            }
            None => {
                eprintln!("nothing is running; `cargo local up` starts it");
                Ok(ExitCode::from(NOT_RUNNING))
            }
        },
        Command::Run { .. } => unreachable!("dispatched before the runtime is made"),
    }
}

fn running(layout: &Layout, args: &WorldArgs) -> Result<Option<State>> {
    Ok(State::read(&layout.world(&args.world)?))
}

/// Longest orderly end: the scaler's, then the importers' drain, then the emulators'.
const DOWN_MAX: Duration = Duration::from_secs(60);

/// Ends a world in any state, also one that is just starting or whose owner was killed. Returns
/// whether there was anything to end.
async fn down(layout: &Layout, world: &str) -> Result<bool> {
    let folder = layout.world(world)?;
    let pids = PidFiles::new(&folder);
    let mut ended = false;
    if let Some(owner) = world::owner(layout, world) {
        ended = true;
        eprintln!("ending {world:?} (process {}) …", owner.pid);
        owner.signal(Signal::TERM);
        let deadline = clock::monotonic() + DOWN_MAX;
        while owner.is_running() {
            if clock::monotonic() > deadline {
                eprintln!("it does not end by itself and is killed");
                owner.signal(Signal::KILL);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let _lock = world::hold(layout, world).context("the world was started again meanwhile")?;
    for name in pids.sweep().await {
        ended = true;
        eprintln!("ended {name}, left over");
    }
    Ok(ended)
}

/// Where a supervisor writes what it does.
fn supervisor_log(layout: &Layout, world: &str) -> Result<PathBuf> {
    Ok(layout.world(world)?.join("logs/supervisor.log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed_and_reaches_the_supervisor_whole() {
        Cli::command().debug_assert();
        let words = ["weirgate-local", "up", "--world", "w", "--postgres", "--settle", "3s"];
        let Command::Up(up) = Cli::parse_from(words).command else { panic!("not up") };
        let mut again = vec!["weirgate-local".into(), "supervise".into()];
        again.extend(up.to_args());
        let Command::Supervise(args) = Cli::parse_from(again).command else { panic!("not it") };
        assert_eq!(format!("{up:?}"), format!("{args:?}"));
    }
}
