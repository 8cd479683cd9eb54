//! A world that outlives the command that started it: `up` starts a supervisor in a session of
//! its own, shows its log until the world is ready, and leaves.
//!
//! Until then the supervisor's standard input is a pipe from `up`. If it closes without the word
//! [`KEEP`], `up` was interrupted or killed and the supervisor ends, so that nothing is left that
//! nobody knows of.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use weirgate_common::clock;

use super::{UpArgs, running, supervisor_log, view};
use crate::layout::{Layout, create_folder};
use crate::progress::{Progress, print};
use crate::service::Programs;
use crate::world::World;

pub(super) const KEEP: &[u8] = b"keep";

const TEND_PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn up(layout: &Layout, args: &UpArgs) -> Result<ExitCode> {
    let started = clock::monotonic();
    if let Some(state) = running(layout, &args.world)? {
        if state.database != args.database() {
            bail!(
                "{:?} is running with another database; end it first: cargo local down",
                args.world.world
            );
        }
        eprintln!("already running");
        return Ok(ExitCode::SUCCESS);
    }
    let folder = layout.world(&args.world.world)?;
    let log = supervisor_log(layout, &args.world.world)?;
    create_folder(log.parent().unwrap_or(&folder))?;
    drop(fs::remove_file(&log));

    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut command = this_program("supervise")?;
    let log_file = OpenOptions::new().create(true).append(true).open(&log)?;
    command.args(args.to_args()).stdout(log_file.try_clone()?).stderr(log_file);
    let mut supervisor = start_supervisor(command)?;
    let mut shown = Tail::new(&log);
    let interrupt = loop {
        shown.show();
        if let Some(status) = supervisor.try_wait()? {
            shown.show();
            bail!("the start failed ({status}); the logs are in {}", folder.join("logs").display());
        }
        if running(layout, &args.world)?.is_some() {
            break false;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            _ = interrupted.recv() => break true,
            _ = terminated.recv() => break true,
        }
    };
    shown.show();
    let mut keeper = supervisor.stdin.take().context("the supervisor's input is a pipe")?;
    if interrupt {
        drop(keeper);
        eprintln!("interrupted; ending what was started …");
        supervisor.wait()?;
        return Ok(ExitCode::from(130));
    }
    keeper.write_all(KEEP)?;
    drop(keeper);
    let took = clock::monotonic().saturating_sub(started);
    eprintln!("up in {:.1} s", took.as_secs_f64());
    if let Some(state) = running(layout, &args.world)? {
        print(&view::summary(&state, &folder));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn this_program(subcommand: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program's file")?);
    command.arg(subcommand);
    Ok(command)
}

/// In a session of its own, out of the terminal's reach: neither Ctrl-C nor its closing is meant
/// for it. Its standard input is the pipe that tells it how its starter ended.
pub(super) fn start_supervisor(mut command: Command) -> Result<std::process::Child> {
    command.stdin(Stdio::piped());
    // SAFETY: between fork and exec only one system call is made, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    command.spawn().context("start the supervisor")
}

/// Owns the world until it is told to end.
pub(super) async fn supervise(args: &UpArgs) -> Result<ExitCode> {
    let progress = Progress::Stderr;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut starter = Starter::listen();
    let starting = World::start(args.options());
    let mut world = tokio::select! {
        world = starting => world?,
        () = starter.gone() => bail!("whoever started this is gone"),
        _ = terminated.recv() => return Ok(ExitCode::SUCCESS),
    };
    let mut programs = match args.bare {
        true => None,
        false => Some(Programs::start(&world, args.boot_delay, &progress)?),
    };
    tend_until_told(&mut world, &mut programs, &mut terminated, &mut starter, &progress).await;
    if let Some(programs) = programs {
        programs.stop().await;
    }
    world.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Keeps everything running until a signal, or the starter's death, says otherwise.
pub(super) async fn tend_until_told(
    world: &mut World,
    programs: &mut Option<Programs>,
    terminated: &mut Signal,
    starter: &mut Starter,
    progress: &Progress,
) {
    loop {
        tokio::select! {
            _ = terminated.recv() => return,
            () = starter.gone() => return,
            () = tokio::time::sleep(TEND_PERIOD) => {}
        }
        // What cannot be revived now is tried again; the log says so each time.
        if let Err(error) = tend(world, programs).await {
            progress.line(&format!("{error:#}"));
        }
    }
}

async fn tend(world: &mut World, programs: &mut Option<Programs>) -> Result<()> {
    if let Some(programs) = programs {
        programs.tend(world)?;
    }
    world.tend().await?;
    Ok(())
}

/// Whoever started the supervisor, at the other end of standard input.
pub(super) struct Starter {
    /// Completes only when the starter went without asking to keep the world.
    gone: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Starter {
    pub(super) fn listen() -> Self {
        let (sender, gone) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut said = Vec::new();
            // An error is an end, too.
            drop(std::io::stdin().read_to_end(&mut said));
            if said != KEEP {
                let _ = sender.send(());
            }
        });
        Self { gone: Some(gone) }
    }

    pub(super) async fn gone(&mut self) {
        if let Some(gone) = &mut self.gone {
            let kept = gone.await.is_err();
            self.gone = None;
            if !kept {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

/// Shows what is added to a file.
struct Tail<'a> {
    path: &'a Path,
    offset: u64,
}

impl<'a> Tail<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, offset: 0 }
    }

    fn show(&mut self) {
        let mut text = Vec::new();
        let read = File::open(self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.read_to_end(&mut text)
        });
        if let Ok(count) = read {
            self.offset += count as u64;
            drop(std::io::stderr().write_all(&text));
        }
    }
}
