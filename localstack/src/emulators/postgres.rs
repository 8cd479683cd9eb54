//! A private PostgreSQL 18 on a loopback port, from its Python wheel.
//!
//! PostgreSQL refuses to run as root, so a root owner steps it down to an unprivileged user.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection};
use weirgate_common::clock;

use crate::layout::{FileLock, Port, create_folder, random_bytes, remove_folder};
use crate::process::{Child, Orphan, PidFiles, last_lines, log_to};
use crate::python::Python;

const USER: &str = "weirgate";

/// Start includes crash recovery, and after a kill the wait for the old server's last processes.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// The conventional "nobody" of Linux; it needs no entry in the user database.
const NOBODY: u32 = 65_534;

/// Settings that differ from the defaults, and why.
const SETTINGS: [(&str, &str); 6] = [
    ("listen_addresses", "127.0.0.1"),
    // A socket's path may be at most 107 bytes; worlds live deeper.
    ("unix_socket_directories", ""),
    // Many importers and tests share it.
    ("max_connections", "300"),
    ("max_wal_size", "512MB"),
    ("log_checkpoints", "off"),
    ("log_line_prefix", "%m [%p] "),
];

/// Durable against the death of any process, not of the machine: a local world ends with it. In the
/// file, where ALTER SYSTEM can overrule it, as it cannot overrule the command line.
const NOT_DURABLE: &str = "\nfsync = off\nfull_page_writes = off\n";

#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    log: PathBuf,
    pids: PidFiles,
    port: Port,
    password: String,
    child: Child,
}

impl Postgres {
    /// Starts on the world's data folder, made from a template when there is none.
    pub async fn start(python: &Python, cache: &Path, world: &Path) -> Result<Self> {
        let data = world.join("postgres");
        // Beside the data, since these outlive the template they were copied from. It comes last:
        // what has no password was not copied to the end.
        let secret = world.join("postgres.password");
        if !secret.is_file() {
            let template = Template::ready(python).await?;
            remove_folder(&data)?;
            copy_folder(&template.data, &data).context("copy the database template")?;
            append(&data.join("postgresql.conf"), NOT_DURABLE)?;
            write_secret(&secret, &template.password)?;
        }
        let password =
            fs::read_to_string(&secret).with_context(|| format!("read {}", secret.display()))?;
        let log = world.join("logs/postgres.log");
        let pids = PidFiles::new(world);
        let port = Port::claim(cache)?;
        let bin = python.postgres_bin.clone();
        let child = spawn(&bin, &data, port.number, &log, &pids)?;
        let mut postgres = Self { bin, data, log, pids, port, password, child };
        postgres.ready().await?;
        postgres.create_database(USER).await?;
        Ok(postgres)
    }

    /// For the database of that name; `weirgate` always exists.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password, self.port.number)
    }

    /// One of its client programs, such as `psql`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Does nothing when the database is there already.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let mut connection = self.connect("postgres").await?;
        let exists: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
                .bind(name)
                .fetch_one(&mut connection)
                .await?;
        if !exists {
            let quoted = name.replace('"', "\"\"");
            connection.execute(format!("CREATE DATABASE \"{quoted}\"").as_str()).await?;
        }
        connection.close().await?;
        Ok(())
    }

    /// `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.exited()
    }

    /// Rolls open transactions back, disconnects everybody and writes a checkpoint ("fast").
    pub async fn shut_down(&mut self) {
        self.child.stop(Signal::INT, STOP_GRACE).await;
    }

    /// As in a crash of the server: the next start recovers from the log ("immediate").
    pub async fn crash(&mut self) {
        self.child.stop(Signal::QUIT, STOP_GRACE).await;
    }

    /// `SIGKILL` to the server process; its backends notice by themselves.
    pub async fn kill(&mut self) {
        self.child.kill();
        self.child.finished().await;
    }

    /// Starts it again on the same data and port, whatever ended it.
    pub async fn restart(&mut self) -> Result<()> {
        if self.child.exited().is_none() {
            self.shut_down().await;
        }
        let deadline = clock::monotonic() + START_MAX;
        loop {
            self.child = spawn(&self.bin, &self.data, self.port.number, &self.log, &self.pids)?;
            match self.ready().await {
                Ok(()) => return Ok(()),
                // After a kill the old backends hold shared memory until they notice.
                Err(_) if clock::monotonic() < deadline => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub async fn stop(mut self) {
        self.shut_down().await;
        self.pids.forget("postgres");
    }

    async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port.number)
            .username(USER)
            .password(&self.password)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
            .connect()
            .await
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = clock::monotonic() + START_MAX;
        loop {
            if let Some(status) = self.child.exited() {
                bail!("postgres ended while starting: {status}\n{}", last_lines(&self.log, 15));
            }
            match self.connect("postgres").await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(error) if clock::monotonic() > deadline => {
                    let log = last_lines(&self.log, 15);
                    return Err(error).context(format!("postgres did not answer\n{log}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

fn append(file: &Path, text: &str) -> Result<()> {
    let opened = fs::OpenOptions::new().append(true).open(file);
    let written = opened.and_then(|mut opened| opened.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", file.display()))
}

fn spawn(bin: &Path, data: &Path, port: u16, log: &Path, pids: &PidFiles) -> Result<Child> {
    let mut command = Command::new(bin.join("postgres"));
    command.arg("-D").arg(data).arg("-p").arg(port.to_string());
    for (setting, value) in SETTINGS {
        command.arg("-c").arg(format!("{setting}={value}"));
    }
    forget_postgres(&mut command);
    log_to(&mut command, log)?;
    step_down(&mut command);
    let child = Child::spawn("postgres", command, Orphan::Quit)?;
    pids.record(&child)?;
    Ok(child)
}

/// A cluster as `initdb` leaves it. Copying one takes a fraction of making one.
struct Template {
    data: PathBuf,
    password: String,
}

impl Template {
    async fn ready(python: &Python) -> Result<Self> {
        let folder = python.folder.join("postgres-template");
        let data = folder.join("data");
        let secret = folder.join("password");
        let lock = python.folder.join("postgres-template.lock");
        let _only_one = tokio::task::spawn_blocking(move || FileLock::take(&lock)).await??;
        // The password is moved into place last.
        if let Ok(password) = fs::read_to_string(&secret) {
            return Ok(Self { data, password });
        }
        remove_folder(&folder)?;
        create_folder(&data)?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        give_away(&data)?;
        let password: String =
            random_bytes::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let draft = folder.join("password.draft");
        write_secret(&draft, &password)?;
        give_away(&draft)?;

        let mut initdb = Command::new(python.postgres_bin.join("initdb"));
        initdb
            .arg("-D")
            .arg(&data)
            .args(["--username", USER, "--encoding", "UTF8", "--locale", "C.UTF-8"])
            .args(["--locale-provider", "builtin", "--lc-messages", "C"])
            // Other users of this machine reach the port too.
            .args(["--auth", "scram-sha-256", "--no-sync", "--no-instructions", "--pwfile"])
            .arg(&draft);
        forget_postgres(&mut initdb);
        let log = folder.join("initdb.log");
        log_to(&mut initdb, &log)?;
        step_down(&mut initdb);
        let status = Child::spawn("initdb", initdb, Orphan::Kill)?.finished().await;
        if !status.success() {
            bail!("initdb failed: {status}\n{}", last_lines(&log, 15));
        }
        fs::rename(&draft, &secret)?;
        Ok(Self { data, password })
    }
}

/// Readable by nobody else from the moment it exists.
fn write_secret(path: &Path, secret: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(secret.as_bytes())?;
    Ok(())
}

/// The caller's `PGDATA`, `PGPORT` and the like are about other servers.
fn forget_postgres(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(|name| name.starts_with("PG")) {
            command.env_remove(variable);
        }
    }
}

fn must_step_down() -> bool {
    cfg!(target_os = "linux") && rustix::process::geteuid().is_root()
}

fn give_away(path: &Path) -> Result<()> {
    if must_step_down() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY))
            .with_context(|| format!("give {} to uid {NOBODY}", path.display()))?;
    }
    Ok(())
}

/// For a root owner: the command runs as [`NOBODY`], which keeps the one capability to pass
/// through folders that only root may enter, such as root's home with the cache in it.
fn step_down(command: &mut Command) {
    if !must_step_down() {
        return;
    }
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            #[cfg(target_os = "linux")]
            become_nobody()?;
            Ok(())
        });
    }
}

#[cfg(target_os = "linux")]
fn become_nobody() -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    use rustix::thread;

    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    // Keeps the capabilities over the change of user, and in access(2), which initdb asks whether
    // it may execute the server.
    thread::set_capabilities_secure_bits(thread::CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    thread::set_thread_groups(&[])?;
    thread::set_thread_res_gid(group, group, group)?;
    thread::set_thread_res_uid(user, user, user)?;
    let pass = thread::CapabilitySet::DAC_OVERRIDE;
    let sets = thread::CapabilitySets { effective: pass, permitted: pass, inheritable: pass };
    thread::set_capabilities(None, sets)?;
    thread::configure_capability_in_ambient_set(pass, true)
}

/// With permissions and, where it matters, the owner.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    create_folder(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    give_away(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            give_away(&target)?;
        }
    }
    Ok(())
}
