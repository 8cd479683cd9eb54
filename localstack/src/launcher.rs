//! Gives the emulated Auto Scaling group real instances: one importer process per instance that
//! is in service, started after a boot delay; ended as the lifecycle hook would end it, with
//! SIGTERM, a grace, and SIGKILL.
//!
//! [`Core::step`] decides, [`Launcher`] looks and acts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use aws_sdk_autoscaling::error::DisplayErrorContext;
use aws_sdk_autoscaling::types::LifecycleState;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weirgate_common::clock;

use crate::fleet::Fleet;
use crate::process::{Child, Orphan, PidFiles, log_to};
use crate::programs::Program;
use crate::progress::Progress;
use crate::world::World;

/// Tells an importer which instance it runs on, as the metadata service would.
pub const INSTANCE_VARIABLE: &str = "WEIRGATE_INSTANCE_ID";

/// How often the group is described, at most.
const PERIOD: Duration = Duration::from_millis(500);

/// A call that takes longer counts as no answer; the group is then left as it is.
const DESCRIBE_MAX: Duration = Duration::from_secs(5);

/// A process that ran this long has recovered from whatever ended it before.
const STEADY: Duration = Duration::from_secs(30);

/// `i-…`.
pub type InstanceId = String;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From "in service" to the start of the process. moto boots nothing, so this stands for the
    /// boot of a machine.
    pub boot_delay: Duration,
    /// From SIGTERM to SIGKILL.
    pub drain_grace: Duration,
    /// Before a process that ended by itself is started again; doubled each time.
    pub restart_first: Duration,
    pub restart_max: Duration,
}

impl Limits {
    pub fn new(boot_delay: Duration, drain_grace: Duration) -> Self {
        let (restart_first, restart_max) = (Duration::from_millis(500), Duration::from_secs(10));
        Self { boot_delay, drain_grace, restart_first, restart_max }
    }

    fn restart_delay(&self, ends_in_a_row: u32) -> Duration {
        let factor = 2u32.saturating_pow(ends_in_a_row.saturating_sub(1));
        self.restart_first.saturating_mul(factor).min(self.restart_max)
    }
}

/// Where an instance is in its life. Times are of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Booting {
        until: Duration,
    },
    Running {
        since: Duration,
        ends_before: u32,
    },
    /// It ended by itself and waits to be started again, as a container's restart policy would.
    Restarting {
        until: Duration,
        ends: u32,
    },
    Draining {
        kill_at: Duration,
    },
    /// SIGKILL has been sent.
    Killed,
}

/// What to do with an instance's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Start(InstanceId),
    /// SIGTERM.
    Drain(InstanceId),
    /// SIGKILL.
    Kill(InstanceId),
}

/// The decisions of the launcher, without clock, processes or network.
#[derive(Clone, Debug)]
pub struct Core {
    limits: Limits,
    instances: BTreeMap<InstanceId, Phase>,
}

impl Core {
    pub fn new(limits: Limits) -> Self {
        Self { limits, instances: BTreeMap::new() }
    }

    pub fn instances(&self) -> &BTreeMap<InstanceId, Phase> {
        &self.instances
    }

    /// `group` holds the instances in service, or is `None` when that is not known; unknown is
    /// not empty. `ended` are the instances whose process has gone since the last step.
    #[must_use]
    pub fn step(
        &mut self,
        now: Duration,
        group: Option<&BTreeSet<InstanceId>>,
        ended: &BTreeSet<InstanceId>,
    ) -> Vec<Action> {
        self.note_ends(now, ended);
        let mut actions = Vec::new();
        if let Some(group) = group {
            self.follow(now, group, &mut actions);
        }
        self.act_on_time(now, &mut actions);
        actions
    }

    fn note_ends(&mut self, now: Duration, ended: &BTreeSet<InstanceId>) {
        let limits = self.limits;
        self.instances.retain(|id, phase| match *phase {
            _ if !ended.contains(id) => true,
            Phase::Draining { .. } | Phase::Killed => false,
            Phase::Running { since, ends_before } => {
                let steady = now.saturating_sub(since) >= STEADY;
                let ends = if steady { 1 } else { ends_before.saturating_add(1) };
                *phase = Phase::Restarting { until: now + limits.restart_delay(ends), ends };
                true
            }
            Phase::Booting { .. } | Phase::Restarting { .. } => true,
        });
    }

    fn follow(&mut self, now: Duration, group: &BTreeSet<InstanceId>, actions: &mut Vec<Action>) {
        for id in group {
            let boot = Phase::Booting { until: now + self.limits.boot_delay };
            self.instances.entry(id.clone()).or_insert(boot);
        }
        let kill_at = now + self.limits.drain_grace;
        self.instances.retain(|id, phase| match *phase {
            _ if group.contains(id) => true,
            // No process: nothing to drain.
            Phase::Booting { .. } | Phase::Restarting { .. } => false,
            Phase::Running { .. } => {
                *phase = Phase::Draining { kill_at };
                actions.push(Action::Drain(id.clone()));
                true
            }
            Phase::Draining { .. } | Phase::Killed => true,
        });
    }

    fn act_on_time(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (id, phase) in &mut self.instances {
            match *phase {
                Phase::Booting { until } if until <= now => {
                    *phase = Phase::Running { since: now, ends_before: 0 };
                    actions.push(Action::Start(id.clone()));
                }
                Phase::Restarting { until, ends } if until <= now => {
                    *phase = Phase::Running { since: now, ends_before: ends };
                    actions.push(Action::Start(id.clone()));
                }
                Phase::Draining { kill_at } if kill_at <= now => {
                    *phase = Phase::Killed;
                    actions.push(Action::Kill(id.clone()));
                }
                Phase::Booting { .. }
                | Phase::Restarting { .. }
                | Phase::Draining { .. }
                | Phase::Running { .. }
                | Phase::Killed => {}
            }
        }
    }
}

/// An instance as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub phase: Phase,
    /// Of its process, while there is one.
    pub pid: Option<u32>,
}

/// The instances of a launcher, wherever it is.
#[derive(Clone, Debug)]
pub struct Instances(watch::Receiver<BTreeMap<InstanceId, Instance>>);

impl Instances {
    pub fn get(&self) -> BTreeMap<InstanceId, Instance> {
        self.0.borrow().clone()
    }
}

/// A running launcher. Dropped, it kills its processes.
#[derive(Debug)]
pub struct Launcher {
    stop: watch::Sender<bool>,
    view: watch::Receiver<BTreeMap<InstanceId, Instance>>,
    task: JoinHandle<()>,
}

impl Launcher {
    /// Runs `program` for every instance of the fleet's group.
    pub fn start(
        world: &World,
        fleet: &Fleet,
        program: Program,
        limits: Limits,
        progress: Progress,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (seen, view) = watch::channel(BTreeMap::new());
        let adapter = Adapter {
            group: fleet.group.clone(),
            auto_scaling: world.clients.auto_scaling.clone(),
            program,
            environment: world.environment_of(fleet),
            logs: world.logs(),
            pids: world.pid_files(),
            progress,
            core: Core::new(limits),
            processes: BTreeMap::new(),
            seen,
        };
        let task = tokio::spawn(adapter.run(stopped));
        Self { stop, view, task }
    }

    pub fn instances(&self) -> BTreeMap<InstanceId, Instance> {
        self.view.borrow().clone()
    }

    pub fn watch(&self) -> Instances {
        Instances(self.view.clone())
    }

    /// Drains every instance, as if the group had let all of them go.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // An adapter that panicked has dropped, and so killed, its processes.
        drop(self.task.await);
    }

    /// Whether it still works; it ends only when told to, or by a defect.
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        for (id, _) in std::mem::take(&mut self.processes) {
            self.pids.forget(&pid_name(&id));
        }
    }
}

struct Adapter {
    group: String,
    auto_scaling: aws_sdk_autoscaling::Client,
    program: Program,
    environment: BTreeMap<String, String>,
    logs: PathBuf,
    pids: PidFiles,
    progress: Progress,
    core: Core,
    processes: BTreeMap<InstanceId, Child>,
    seen: watch::Sender<BTreeMap<InstanceId, Instance>>,
}

impl Adapter {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            // Whoever held the other end is gone: nobody wants instances any more.
            if stopped.has_changed().is_err() {
                return;
            }
            let group = self.in_service().await;
            self.turn(group.as_ref());
            drop(tokio::time::timeout(PERIOD, stopped.changed()).await);
        }
        while !self.core.instances().is_empty() {
            self.turn(Some(&BTreeSet::new()));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn turn(&mut self, group: Option<&BTreeSet<InstanceId>>) {
        let ended = self.take_ended();
        for action in self.core.step(clock::monotonic(), group, &ended) {
            self.act(action);
        }
        let view = self.core.instances().iter().map(|(id, phase)| {
            let pid = self.processes.get(id).map(Child::pid);
            (id.clone(), Instance { phase: *phase, pid })
        });
        self.seen.send_replace(view.collect());
    }

    async fn in_service(&self) -> Option<BTreeSet<InstanceId>> {
        let call = self
            .auto_scaling
            .describe_auto_scaling_groups()
            .auto_scaling_group_names(&self.group)
            .send();
        let groups = match tokio::time::timeout(DESCRIBE_MAX, call).await {
            Ok(Ok(answer)) => answer.auto_scaling_groups.unwrap_or_default(),
            Ok(Err(error)) => {
                tracing::debug!(error = %DisplayErrorContext(error), "group not described");
                return None;
            }
            Err(_) => return None,
        };
        // A group that is not there is one the emulator lost: its instances are gone with it.
        let instances = groups.first().map(|group| group.instances()).unwrap_or_default();
        let in_service = instances
            .iter()
            .filter(|instance| instance.lifecycle_state() == Some(&LifecycleState::InService));
        Some(in_service.filter_map(|instance| instance.instance_id().map(str::to_owned)).collect())
    }

    fn take_ended(&mut self) -> BTreeSet<InstanceId> {
        let mut ended = BTreeSet::new();
        self.processes.retain(|id, child| {
            let Some(status) = child.exited() else { return true };
            if !matches!(self.core.instances.get(id), Some(Phase::Draining { .. } | Phase::Killed))
            {
                self.progress.line(&format!("{} on {id} ended: {status}", self.program.name));
            }
            self.pids.forget(&pid_name(id));
            ended.insert(id.clone());
            false
        });
        // What could not even be started has ended, too.
        for (id, phase) in self.core.instances() {
            if matches!(phase, Phase::Running { .. } | Phase::Draining { .. } | Phase::Killed)
                && !self.processes.contains_key(id)
            {
                ended.insert(id.clone());
            }
        }
        ended
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(id) => {
                if let Err(error) = self.start(&id) {
                    self.progress.line(&format!("{id}: {error:#}"));
                }
            }
            Action::Drain(id) => self.signal(&id, Signal::TERM),
            Action::Kill(id) => {
                self.progress.line(&format!("{id} did not drain in time and is killed"));
                self.signal(&id, Signal::KILL);
            }
        }
    }

    fn signal(&mut self, id: &str, signal: Signal) {
        if let Some(child) = self.processes.get_mut(id) {
            child.signal(signal);
        }
    }

    fn start(&mut self, id: &str) -> anyhow::Result<()> {
        let mut command = self.program.command(&self.environment);
        command.env(INSTANCE_VARIABLE, id);
        log_to(&mut command, &self.logs.join(format!("{}-{id}.log", self.program.name)))?;
        let child = Child::spawn(&pid_name(id), command, Orphan::Kill)?;
        self.pids.record(&child)?;
        self.processes.insert(id.to_owned(), child);
        Ok(())
    }
}

fn pid_name(id: &str) -> String {
    format!("{PID_PREFIX}{id}")
}

/// Whether a pid file is of an instance's process.
pub(crate) fn is_instance(pid_name: &str) -> bool {
    pid_name.starts_with(PID_PREFIX)
}

const PID_PREFIX: &str = "instance-";

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per step: `<seconds> <group, or ? when unknown> [ended …]`, answered by the
    /// actions.
    fn check(script: &str) {
        let limits = Limits {
            boot_delay: Duration::from_secs(2),
            drain_grace: Duration::from_secs(5),
            restart_first: Duration::from_secs(1),
            restart_max: Duration::from_secs(4),
        };
        let mut core = Core::new(limits);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (input, expected) = line.split_once("=>").expect("input => actions");
            let mut words = input.split_whitespace();
            let now = Duration::from_secs_f64(words.next().unwrap().parse().unwrap());
            let set = |names: &str| -> BTreeSet<InstanceId> {
                names.split(',').filter(|n| *n != "-").map(str::to_owned).collect()
            };
            let group = words.next().filter(|word| *word != "?").map(set);
            let ended = words.next().map(|word| set(word.strip_prefix("ended:").unwrap()));
            let actions = core.step(now, group.as_ref(), &ended.unwrap_or_default());
            let actions: Vec<String> = actions
                .iter()
                .map(|action| match action {
                    Action::Start(id) => format!("start {id}"),
                    Action::Drain(id) => format!("drain {id}"),
                    Action::Kill(id) => format!("kill {id}"),
                })
                .collect();
            assert_eq!(actions.join(", "), expected.trim(), "at: {line}");
        }
    }

    #[test]
    fn an_instance_boots_works_and_drains() {
        check(
            "0 - =>
             1 a =>
             2.9 a =>
             3 a,b => start a
             5 a,b => start b
             6 b => drain a
             7 b ended:a =>
             8 b =>
             9 - => drain b
             13.9 - =>
             14 - => kill b
             15 - =>
             16 - ended:b =>
             30 - =>",
        );
    }

    #[test]
    fn a_process_that_ends_by_itself_is_started_again_ever_later() {
        check(
            "0 a =>
             2 a => start a
             3 a ended:a =>
             3.9 a =>
             4 a => start a
             5 a ended:a =>
             7 a => start a
             8 a ended:a =>
             12 a => start a
             13 a ended:a =>
             17 a => start a
             60 a ended:a =>
             61 a => start a",
        );
    }

    #[test]
    fn an_instance_that_leaves_before_its_process_started_needs_no_drain() {
        check(
            "0 a =>
             1 - =>
             5 - =>
             6 b =>
             8 b => start b
             9 b ended:b =>
             9.5 - =>
             20 - =>",
        );
    }

    #[test]
    fn an_unknown_group_changes_nothing_but_deaths_are_still_seen() {
        check(
            "0 a =>
             2 ? => start a
             3 ? =>
             4 ? ended:a =>
             5 ? => start a
             6 - => drain a",
        );
    }

    #[test]
    fn many_deaths_do_not_overflow_the_delay() {
        let limits = Limits::new(Duration::ZERO, Duration::ZERO);
        assert_eq!(limits.restart_delay(1), limits.restart_first);
        assert_eq!(limits.restart_delay(u32::MAX), limits.restart_max);
    }
}
