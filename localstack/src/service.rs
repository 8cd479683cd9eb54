//! A program that is to run all the time, such as the scaler: started again when it ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use weirgate_common::clock;

use crate::process::{Child, Orphan, PidFiles, log_to};
use crate::programs::Program;
use crate::progress::Progress;
use crate::world::World;

/// Between an end and the next start. Long enough not to spin, short enough not to be noticed.
const RESTART_DELAY: Duration = Duration::from_secs(1);

const STOP_GRACE: Duration = Duration::from_secs(5);

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
