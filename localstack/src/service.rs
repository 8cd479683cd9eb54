//! Programs that are to run all the time: the scaler, started again when it ends, and with the
//! launcher everything that works on a fleet.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use weirgate_common::clock;

use crate::launcher::{Instances, Launcher, Limits, is_instance};
use crate::process::{Child, Orphan, PidFiles, log_to};
use crate::programs::Program;
use crate::progress::Progress;
use crate::world::World;

/// Between an end and the next start. Long enough not to spin, short enough not to be noticed.
const RESTART_DELAY: Duration = Duration::from_secs(1);

const STOP_GRACE: Duration = Duration::from_secs(5);

/// What the launcher grants above the importers' own drain grace, so that theirs ends first and is
/// seen to work: after it they take a few more seconds to tell SQS what they give back.
const GRACE_MARGIN: Duration = Duration::from_secs(8);

/// What works on the world's first fleet.
#[derive(Debug)]
pub struct Programs {
    launcher: Launcher,
    scaler: Service,
}

impl Programs {
    pub fn start(world: &World, boot_delay: Duration, progress: &Progress) -> Result<Self> {
        let grace = world.fleet.tuning.drain_grace + GRACE_MARGIN;
        let limits = Limits::new(boot_delay, grace);
        let importer = Program::importer()?;
        let launcher = Launcher::start(world, &world.fleet, importer, limits, progress.clone());
        let scaler = Service::start(world, Program::scaler()?, progress.clone())?;
        Ok(Self { launcher, scaler })
    }

    pub fn watch(&self) -> Instances {
        self.launcher.watch()
    }

    /// Call it every second or so, before [`World::tend`].
    pub fn tend(&mut self, world: &mut World) -> Result<()> {
        if world.localstack.exited().is_some() {
            end_importers(&world.pid_files());
        }
        self.scaler.tend()
    }

    /// The scaler first: it must not grow the group that is being drained.
    pub async fn stop(self) {
        self.scaler.stop().await;
        self.launcher.stop().await;
    }
}

/// LocalStack took its queues along, so what importers hold are messages of no queue, about
/// objects of no bucket. Left alone, they would look for those objects in the bucket that is made
/// anew and refuse them as missing. The launcher starts them again.
fn end_importers(pids: &PidFiles) {
    let running = pids.running();
    for (_, importer) in running.iter().filter(|(name, _)| is_instance(name)) {
        importer.signal(Signal::KILL);
    }
}

/// One program.
#[derive(Debug)]
pub struct Service {
    program: Program,
    environment: BTreeMap<String, String>,
    log: PathBuf,
    pids: PidFiles,
    progress: Progress,
    child: Option<Child>,
    start_at: Duration,
}

impl Service {
    /// For the world's first fleet.
    pub fn start(world: &World, program: Program, progress: Progress) -> Result<Self> {
        let mut service = Self {
            environment: world.environment(),
            log: world.logs().join(format!("{}.log", program.name)),
            pids: world.pid_files(),
            progress,
            child: None,
            start_at: Duration::ZERO,
            program,
        };
        service.spawn()?;
        Ok(service)
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::pid)
    }

    /// Starts it again once it has ended. Call it every second or so.
    pub fn tend(&mut self) -> Result<()> {
        let now = clock::monotonic();
        if let Some(status) = self.child.as_mut().and_then(Child::exited) {
            self.progress.line(&format!("{} ended: {status}", self.program.name));
            self.child = None;
            self.start_at = now + RESTART_DELAY;
        }
        if self.child.is_none() && self.start_at <= now {
            self.spawn()?;
        }
        Ok(())
    }

    pub async fn stop(mut self) {
        if let Some(mut child) = self.child.take() {
            child.stop(Signal::TERM, STOP_GRACE).await;
        }
        self.pids.forget(&self.program.name);
    }

    fn spawn(&mut self) -> Result<()> {
        let mut command = self.program.command(&self.environment);
        log_to(&mut command, &self.log)?;
        let child = Child::spawn(&self.program.name, command, Orphan::Kill)?;
        self.pids.record(&child)?;
        self.child = Some(child);
        Ok(())
    }
}
