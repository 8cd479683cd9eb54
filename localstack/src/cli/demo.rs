//! `demo`: in the foreground and gone afterwards, or, to be kept, in a supervisor that shows it
//! here.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::DemoArgs;
use super::supervise::{KEEP, Starter, start_supervisor, tend_until_told, this_program};
use crate::demo::{self, DemoOptions, Finished};
use crate::fleet::Tuning;
use crate::layout::{Layout, write_atomically};
use crate::progress::{Progress, print};
use crate::world::{DatabaseKind, Options, State};

/// As a shell reports SIGINT.
const INTERRUPTED: u8 = 130;

/// The boot of a machine, shortened.
const BOOT_DELAY: Duration = Duration::from_millis(1_500);

/// What AWS would want to be more than a minute, shortened.
const SETTLE: Duration = Duration::from_secs(6);

pub(super) async fn run(layout: &Layout, args: &DemoArgs) -> Result<ExitCode> {
    match (args.keep, args.supervised) {
        (false, _) => Box::pin(foreground(args)).await,
        (true, false) => show_supervised(layout, args).await,
        (true, true) => Box::pin(supervised(layout, args)).await,
    }
}

impl DemoArgs {
    fn options(&self) -> DemoOptions {
        let database = if self.postgres { DatabaseKind::Postgres } else { DatabaseKind::Sqlite };
        let tuning = Tuning { scaler_settle: SETTLE, ..Tuning::default() };
        DemoOptions {
            world: Options {
                database,
                tuning,
                progress: Progress::Stderr,
                ..Options::new(&self.world)
            },
            objects: self.objects,
            rows: self.rows,
            seed: self.seed,
            boot_delay: BOOT_DELAY,
            chaos: self.chaos,
        }
    }
}

fn verdict(held: bool) -> ExitCode {
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn foreground(args: &DemoArgs) -> Result<ExitCode> {
    let mut stop = StopSignals::listen()?;
    let Finished { world, programs, held } = tokio::select! {
        finished = demo::run(args.options()) => finished?,
        () = stop.received() => {
            // What was started is dropped with the future, and so killed.
            print("\ninterrupted; nothing is left running\n");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    programs.stop().await;
    world.stop().await;
    Ok(verdict(held))
}

/// In the supervisor: the demo, its verdict to a file, and then the world until it is told to end.
async fn supervised(layout: &Layout, args: &DemoArgs) -> Result<ExitCode> {
    let mut stop = StopSignals::listen()?;
    let mut starter = Starter::listen();
    let Finished { mut world, programs, held } = tokio::select! {
        finished = demo::run(args.options()) => finished?,
        () = stop.received() => return Ok(ExitCode::from(INTERRUPTED)),
        () = starter.gone() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    // Nobody may wait for the end of this output once the demo is over.
    let log = File::create(world.logs().join("supervisor.log"))?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    world.set_progress(Progress::Stderr);
    write_atomically(&verdict_file(layout, args)?, if held { b"held" } else { b"failed" })?;
    let mut programs = Some(programs);
    let signal = &mut stop.terminate;
    tend_until_told(&mut world, &mut programs, signal, &mut starter, &Progress::Stderr).await;
    if let Some(programs) = programs {
        programs.stop().await;
    }
    world.stop().await;
    Ok(verdict(held))
}

fn verdict_file(layout: &Layout, args: &DemoArgs) -> Result<PathBuf> {
    Ok(layout.world(&args.world)?.join("verdict"))
}

/// In the foreground: the supervisor's output, until it has written its verdict.
async fn show_supervised(layout: &Layout, args: &DemoArgs) -> Result<ExitCode> {
    let mut stop = StopSignals::listen()?;
    let file = verdict_file(layout, args)?;
    drop(std::fs::remove_file(&file));
    let mut command = this_program("demo")?;
    // What this process was given, and the word that makes the difference.
    command.args(std::env::args_os().skip_while(|arg| arg != "demo").skip(1)).arg("--supervised");
    let mut supervisor = start_supervisor(command)?;
    let held = loop {
        if let Some(held) = read_verdict(&file) {
            break held;
        }
        if let Some(status) = supervisor.try_wait()? {
            return Ok(passed_on(status));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            () = stop.received() => {
                drop(supervisor.stdin.take());
                supervisor.wait()?;
                print("\ninterrupted; nothing is left running\n");
                return Ok(ExitCode::from(INTERRUPTED));
            }
        }
    };
    let mut keeper = supervisor.stdin.take().context("the supervisor's input is a pipe")?;
    std::io::Write::write_all(&mut keeper, KEEP)?;
    if let Some(state) = State::read(&layout.world(&args.world)?) {
        print(&format!(
            "\n  The system keeps running, owned by process {}:\n\n    \
             eval \"$(cargo local env --world {world})\"\n    \
             cargo local run weirgate status\n    \
             cargo local down --world {world}\n",
            state.owner.pid,
            world = args.world,
        ));
    }
    Ok(verdict(held))
}

fn read_verdict(file: &Path) -> Option<bool> {
    Some(std::fs::read(file).ok()? == b"held")
}

fn passed_on(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// What asks the program to end.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
