//! Child processes that cannot outlive their owner.
//!
//! Three nets, each for what slips through the one before: a dropped [`Child`] is killed; when the
//! owner itself is killed the kernel signals its children ([`Orphan`], Linux); and what is left
//! all the same, as on other systems, is found by its pid file at the next `up` or `down`
//! ([`PidFiles::sweep`]).

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal};
use weirgate_common::clock;

use crate::layout::{create_folder, write_atomically};

/// How often an exit is looked for. Short against every grace period, long against a system call.
const POLL: Duration = Duration::from_millis(20);

/// What a child gets from the kernel when its owner dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphan {
    Kill,
    /// `SIGQUIT`: PostgreSQL's immediate shutdown, which takes its own children along.
    Quit,
}

/// A running child and its process group.
#[derive(Debug)]
pub struct Child {
    name: String,
    group: Pid,
    process: std::process::Child,
    exited: Option<ExitStatus>,
}

impl Child {
    pub fn spawn(name: &str, mut command: Command, orphan: Orphan) -> Result<Self> {
        command.process_group(0);
        leave_with_owner(&mut command, orphan);
        let program = command.get_program().to_owned();
        let process = spawn_from_lasting_thread(command)
            .with_context(|| format!("start {name} ({})", Path::new(&program).display()))?;
        let group = Pid::from_child(&process);
        Ok(Self { name: name.to_owned(), group, process, exited: None })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            // An error means that it is not ours to wait for any more: it cannot be running.
            self.exited = self.process.try_wait().unwrap_or_else(|_| Some(ExitStatus::default()));
        }
        self.exited
    }

    pub async fn finished(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// To the process alone. Nothing happens once it has exited.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            // It may exit between the check and the signal; it is not reaped before `exited`, so
            // the pid cannot have passed to another process.
            let _ = rustix::process::kill_process(self.group, signal);
        }
    }

    /// `signal`, and `SIGKILL` to the whole group if that has not ended it within `grace`.
    pub async fn stop(&mut self, signal: Signal, grace: Duration) -> ExitStatus {
        self.signal(signal);
        if let Ok(status) = tokio::time::timeout(grace, self.finished()).await {
            return status;
        }
        self.kill();
        self.finished().await
    }

    /// `SIGKILL` to the whole group, without waiting.
    pub fn kill(&mut self) {
        if self.exited().is_none() {
            let _ = rustix::process::kill_process_group(self.group, Signal::KILL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.kill();
            drop(self.process.wait());
        }
    }
}

/// Asks the kernel to signal the child when its owner dies, however that happens.
///
/// Must be the last thing that changes the child before it executes: a change of user clears the
/// request.
fn leave_with_owner(command: &mut Command, orphan: Orphan) {
    if !cfg!(target_os = "linux") {
        return;
    }
    let signal = match orphan {
        Orphan::Kill => Signal::KILL,
        Orphan::Quit => Signal::QUIT,
    };
    let owner = rustix::process::getpid();
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            #[cfg(target_os = "linux")]
            rustix::process::set_parent_process_death_signal(Some(signal))?;
            // The owner may have died before the request was made.
            if rustix::process::getppid() != Some(owner) {
                return Err(rustix::io::Errno::SRCH.into());
            }
            Ok(())
        });
    }
}

/// The kernel means the death of the *thread* that forked, so all forks are made from one thread
/// that lives as long as the process.
fn spawn_from_lasting_thread(command: Command) -> io::Result<std::process::Child> {
    type Request = (Command, mpsc::Sender<io::Result<std::process::Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, answer) in requests {
                    // Whoever asked may have gone; the child is then dropped, and so killed.
                    if let Err(mpsc::SendError(Ok(mut orphan))) = answer.send(command.spawn()) {
                        drop(orphan.kill().and_then(|()| orphan.wait()));
                    }
                }
            })
            .expect("a thread can be started");
        Mutex::new(sender)
    });
    let (answer, child) = mpsc::channel();
    let gone = || io::Error::other("the spawner thread has ended");
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

/// A process which may not be our child, told from a later one with the same pid by its start.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    pub pid: i32,
    pub started: String,
}

impl Identity {
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: started(pid)? })
    }

    pub fn of_self() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    pub fn is_running(&self) -> bool {
        started(self.pid).as_ref() == Some(&self.started)
    }

    /// Nothing happens when the process has gone.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid)
            && self.is_running()
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// When a process started, in whatever form the system tells it. `None`: it does not run.
fn started(pid: i32) -> Option<String> {
    if cfg!(target_os = "linux") {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the command in parentheses and may contain anything; state is the
        // third field and the start, in clock ticks since boot, the 22nd.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        return (state != "Z" && state != "X").then(|| fields.nth(18).map(str::to_owned))?;
    }
    let pid = pid.to_string();
    let output = Command::new("ps").args(["-o", "lstart=", "-p", &pid]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// One file per child of a world.
#[derive(Clone, Debug)]
pub struct PidFiles {
    folder: PathBuf,
}

impl PidFiles {
    pub fn new(world: &Path) -> Self {
        Self { folder: world.join("pids") }
    }

    pub fn record(&self, child: &Child) -> Result<()> {
        create_folder(&self.folder)?;
        let identity = i32::try_from(child.pid()).ok().and_then(Identity::of);
        match identity {
            Some(identity) => write_atomically(
                &self.folder.join(child.name()),
                serde_json::to_string(&identity)?.as_bytes(),
            ),
            // It has exited already; its owner will notice.
            None => Ok(()),
        }
    }

    pub fn forget(&self, name: &str) {
        drop(fs::remove_file(self.folder.join(name)));
    }

    pub fn running(&self) -> Vec<(String, Identity)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut running: Vec<_> = entries
            .filter_map(|entry| {
                let identity: Identity =
                    serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
                let name = entry.file_name().into_string().ok()?;
                identity.is_running().then_some((name, identity))
            })
            .collect();
        running.sort_by(|a, b| a.0.cmp(&b.0));
        running
    }

    /// Ends what a dead owner left behind. Only for whoever holds the world's lock.
    pub async fn sweep(&self) -> Vec<String> {
        let left = self.running();
        for (_, identity) in &left {
            identity.signal(Signal::QUIT);
        }
        let deadline = clock::monotonic() + Duration::from_secs(2);
        while clock::monotonic() < deadline && left.iter().any(|(_, id)| id.is_running()) {
            tokio::time::sleep(POLL).await;
        }
        for (name, identity) in &left {
            identity.signal(Signal::KILL);
            self.forget(name);
        }
        left.into_iter().map(|(name, _)| name).collect()
    }
}

/// The end of a log, for messages about what died.
pub fn last_lines(log: &Path, count: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Both streams of a command to one file, appended to; nothing to read from.
pub fn log_to(command: &mut Command, log: &Path) -> Result<()> {
    if let Some(folder) = log.parent() {
        create_folder(folder)?;
    }
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let copy = file.try_clone().context("duplicate a file handle")?;
    command.stdin(std::process::Stdio::null()).stdout(file).stderr(copy);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_dropped_child_is_gone() {
        let child = Child::spawn("sleeper", shell("exec sleep 60"), Orphan::Kill).unwrap();
        let identity = Identity::of(i32::try_from(child.pid()).unwrap()).unwrap();
        assert!(identity.is_running());
        drop(child);
        assert!(!identity.is_running());
    }

    #[tokio::test]
    async fn stop_kills_what_ignores_the_signal() {
        let deaf = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut deaf_logged = deaf;
        log_to(&mut deaf_logged, log.path()).unwrap();
        let mut child = Child::spawn("deaf", deaf_logged, Orphan::Kill).unwrap();
        while fs::read(log.path()).unwrap().is_empty() {
            tokio::time::sleep(POLL).await;
        }
        let status = child.stop(Signal::TERM, Duration::from_millis(200)).await;
        assert!(!status.success());
        assert_eq!(child.exited(), Some(status));
    }

    #[tokio::test]
    async fn children_survive_the_thread_that_asked_for_them() {
        let asker = std::thread::spawn(|| {
            Child::spawn("sleeper", shell("exec sleep 60"), Orphan::Kill).unwrap()
        });
        let mut child = asker.join().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(child.exited(), None);
    }

    #[tokio::test]
    async fn a_sweep_ends_what_pid_files_name_and_nothing_else() {
        let world = tempfile::tempdir().unwrap();
        let files = PidFiles::new(world.path());
        let mut left = Child::spawn("left", shell("exec sleep 60"), Orphan::Kill).unwrap();
        files.record(&left).unwrap();
        let mut other = Child::spawn("other", shell("exec sleep 60"), Orphan::Kill).unwrap();
        let stale = Identity { pid: i32::try_from(other.pid()).unwrap(), started: "0".to_owned() };
        fs::write(world.path().join("pids/stale"), serde_json::to_vec(&stale).unwrap()).unwrap();

        assert_eq!(files.sweep().await, ["left"]);
        let ended = tokio::time::timeout(Duration::from_secs(10), left.finished()).await;
        assert!(ended.is_ok());
        assert_eq!(other.exited(), None);
    }
}
