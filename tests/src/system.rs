//! A fleet under test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_sdk_s3::primitives::ByteStream;
use rustix::process::Signal;
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, OnceCell};
use weirgate_common::clock;
use weirgate_common::queue::{Depth, Message, Queue};
use weirgate_local::fleet::{Clients, Endpoints, Fleet, Tuning};
use weirgate_local::launcher::{Launcher, Limits};
use weirgate_local::process::{Child, Orphan, log_to};
use weirgate_local::programs::Program;
use weirgate_local::progress::Progress;
use weirgate_local::world::{Options, World};

pub use weirgate_local::world::DatabaseKind;

/// A condition that takes longer than this is a failure. Generous: two cores may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// All tests of a binary share one runtime, since they share one world and its connections.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime starts"));

static WORLD: OnceCell<Mutex<World>> = OnceCell::const_new();

/// Runs a test, or a part of one, on the shared runtime.
pub fn run<T>(test: impl Future<Output = Result<T>>) -> Result<T> {
    RUNTIME.block_on(test)
}

pub struct System {
    pub fleet: Fleet,
    pub clients: Clients,
    pub endpoints: Endpoints,
    programs: PathBuf,
    folder: PathBuf,
    environment: BTreeMap<String, String>,
    database: DatabaseKind,
}

impl System {
    /// A fleet of its own in the world of this test binary. `programs` is
    /// `env!("CARGO_BIN_EXE_weirgate-programs")`, `world` the binary's name.
    pub async fn start(
        programs: &str,
        world: &str,
        name: &str,
        database: DatabaseKind,
        tuning: Tuning,
    ) -> Result<Self> {
        let options = Options { database: DatabaseKind::Postgres, ..Options::new(world) };
        let world =
            WORLD.get_or_try_init(|| async { World::start(options).await.map(Mutex::new) }).await?;
        let mut world = world.lock().await;
        let fleet = world.add_fleet(name, database, tuning).await?;
        Ok(System {
            clients: world.clients.clone(),
            endpoints: world.endpoints.clone(),
            programs: PathBuf::from(programs),
            folder: world.folder.clone(),
            environment: world.environment_of(&fleet),
            fleet,
            database,
        })
    }

    /// Ends the PostgreSQL of the world at once, without a clean shutdown, and starts it again.
    pub async fn crash_postgres(&self, away: Duration) -> Result<()> {
        let mut world = WORLD.get().context("the world runs")?.lock().await;
        let postgres = world.postgres.as_mut().context("the world has PostgreSQL")?;
        postgres.crash().await;
        tokio::time::sleep(away).await;
        postgres.restart().await
    }

    /// The same as an administrator does it.
    pub async fn restart_postgres(&self, away: Duration) -> Result<()> {
        let mut world = WORLD.get().context("the world runs")?.lock().await;
        let postgres = world.postgres.as_mut().context("the world has PostgreSQL")?;
        postgres.shut_down().await;
        tokio::time::sleep(away).await;
        postgres.restart().await
    }

    /// Adds lines to the fleet's feed in its `weirgate.toml`, and one before everything else.
    pub fn configure(&self, top: &str, feed: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.fleet.config)?;
        let text = text.replace("\nwrite ", &format!("\n{feed}\nwrite "));
        std::fs::write(&self.fleet.config, format!("{top}\n{text}"))?;
        Ok(())
    }

    pub fn importer(&self, name: &str) -> Result<Process> {
        self.importer_with(name, &[])
    }

    pub fn importer_with(&self, name: &str, environment: &[(&str, &str)]) -> Result<Process> {
        let program = Program::in_executable(self.programs.clone(), "importer");
        let mut command = program.command(&self.environment);
        command.env("WEIRGATE_INSTANCE_ID", name).envs(environment.iter().copied());
        let log = self.folder.join(format!("{}-{name}.log", self.fleet.name));
        log_to(&mut command, &log)?;
        Ok(Process { child: Child::spawn(name, command, Orphan::Kill)?, log })
    }

    /// A scaler as a service.
    pub fn scaler(&self, name: &str) -> Result<Process> {
        let program = Program::in_executable(self.programs.clone(), "scaler").arg("run");
        let log = self.folder.join(format!("{}-{name}.log", self.fleet.name));
        let mut command = program.command(&self.environment);
        log_to(&mut command, &log)?;
        Ok(Process { child: Child::spawn(name, command, Orphan::Kill)?, log })
    }

    /// Real importer processes for whatever instances the group has.
    pub async fn launcher(&self, limits: Limits) -> Result<Launcher> {
        let world = WORLD.get().context("the world runs")?.lock().await;
        let program = Program::in_executable(self.programs.clone(), "importer");
        Ok(Launcher::start(&world, &self.fleet, program, limits, Progress::Quiet))
    }

    /// Halts LocalStack where it stands, or lets it go on: an outage that loses nothing.
    pub async fn signal_localstack(&self, signal: Signal) -> Result<()> {
        let world = WORLD.get().context("the world runs")?.lock().await;
        let pid = i32::try_from(world.localstack.pid())?;
        let pid = rustix::process::Pid::from_raw(pid).context("LocalStack runs")?;
        Ok(rustix::process::kill_process_group(pid, signal)?)
    }

    /// Runs `weirgate` to its end; its exit code and standard output.
    pub async fn weirgate(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.program("weirgate", arguments, &[]).await
    }

    /// Runs a program to its end; its exit code and everything it printed.
    pub async fn program(
        &self,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<(i32, String)> {
        let program = Program::in_executable(self.programs.clone(), name);
        let mut command = program.command(&self.environment);
        command.args(arguments).envs(environment.iter().copied());
        command.stdin(std::process::Stdio::null());
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, output)
            .await
            .with_context(|| format!("{name} {arguments:?} did not end"))??;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code().unwrap_or(-1), text))
    }

    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        self.clients
            .s3
            .put_object()
            .bucket(&self.fleet.data_plane.bucket)
            .key(key)
            .body(ByteStream::from(bytes))
            .send()
            .await?;
        Ok(())
    }

    pub async fn delete(&self, key: &str) -> Result<()> {
        let bucket = &self.fleet.data_plane.bucket;
        self.clients.s3.delete_object().bucket(bucket).key(key).send().await?;
        Ok(())
    }

    /// All keys of the bucket.
    pub async fn list(&self) -> Result<Vec<String>> {
        let list = self.clients.s3.list_objects_v2().bucket(&self.fleet.data_plane.bucket);
        let mut pages = list.into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            keys.extend(
                page?.contents().iter().filter_map(|object| object.key()).map(str::to_owned),
            );
        }
        Ok(keys)
    }

    pub fn queue(&self) -> Queue {
        Queue::new(self.clients.sqs.clone(), &self.fleet.data_plane.queue_url)
    }

    pub fn dead_letter_queue(&self) -> Queue {
        Queue::new(self.clients.sqs.clone(), &self.fleet.data_plane.dead_letter_queue_url)
    }

    pub async fn send(&self, body: &str) -> Result<()> {
        let sent = self.queue().send(&[(body.to_owned(), BTreeMap::new())]).await;
        sent.into_iter().collect::<Result<(), _>>()?;
        Ok(())
    }

    pub async fn depth(&self) -> Result<Depth> {
        Ok(self.queue().depth().await?)
    }

    /// Waits until every message is settled: none visible, in flight or delayed, on readings that
    /// span a few seconds. A message whose lease has just run out is in none of the counts for up
    /// to a second.
    pub async fn drained(&self) -> Result<()> {
        self.drained_within(PATIENCE).await
    }

    pub async fn drained_within(&self, patience: Duration) -> Result<()> {
        let empty_since = std::cell::Cell::new(None);
        self.within(patience, "the queue is drained", async || {
            if self.depth().await?.total() > 0 {
                empty_since.set(None);
                return Ok(false);
            }
            let now = clock::monotonic();
            let since = empty_since.get().unwrap_or(now);
            empty_since.set(Some(since));
            Ok(now.saturating_sub(since) >= Duration::from_secs(2))
        })
        .await
    }

    /// Takes all dead letters out of their queue.
    pub async fn dead_letters(&self) -> Result<Vec<Message>> {
        let queue = self.dead_letter_queue();
        let mut letters = Vec::new();
        loop {
            let received =
                queue.receive(10, Duration::from_secs(1), Duration::from_secs(60)).await?;
            if received.is_empty() {
                return Ok(letters);
            }
            letters.extend(received);
        }
    }

    /// Runs statements on PostgreSQL.
    pub async fn execute(&self, statement: &str) -> Result<()> {
        let mut connection = PgConnection::connect(&self.fleet.database).await?;
        sqlx::raw_sql(statement).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// Ends everybody else's sessions on the fleet's PostgreSQL database.
    pub async fn end_sessions(&self) -> Result<()> {
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await
    }

    /// By a text, two numbers each from PostgreSQL.
    pub async fn groups(&self, sql: &str) -> Result<BTreeMap<String, (i64, i64)>> {
        let mut connection = PgConnection::connect(&self.fleet.database).await?;
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(sql).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(rows.into_iter().map(|(name, one, other)| (name, (one, other))).collect())
    }

    /// One number from the database.
    pub async fn number(&self, sql: &str) -> Result<i64> {
        self.value(sql).await
    }

    /// One text from the database.
    pub async fn text(&self, sql: &str) -> Result<String> {
        self.value(sql).await
    }

    async fn value<T>(&self, sql: &str) -> Result<T>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
        T: for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite> + Send + Unpin,
    {
        match self.database {
            DatabaseKind::Postgres => {
                let mut connection = PgConnection::connect(&self.fleet.database).await?;
                let value = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
                connection.close().await?;
                Ok(value)
            }
            DatabaseKind::Sqlite => {
                let mut connection = SqliteConnection::connect(&self.fleet.database).await?;
                let sql = sql.replace("weirgate.", "weirgate_");
                let value = sqlx::query_scalar(&sql).fetch_one(&mut connection).await?;
                connection.close().await?;
                Ok(value)
            }
        }
    }

    /// Rows in the feed's table; zero when there is no table, or no database file, yet.
    pub async fn rows(&self) -> Result<i64> {
        match self.number("SELECT count(*) FROM impressions").await {
            Err(error) if is_missing_table(&error) => Ok(0),
            other => other,
        }
    }

    /// The proof from outside: that many rows, none twice, and a ledger that agrees.
    pub async fn assert_rows(&self, expected: u64) -> Result<()> {
        let expected = i64::try_from(expected)?;
        assert_eq!(self.rows().await?, expected, "rows in the table");
        let distinct = self.number("SELECT count(DISTINCT id) FROM impressions").await?;
        assert_eq!(distinct, expected, "rows that are there once");
        let ledger = self
            .number(
                "SELECT CAST(coalesce(sum(rows), 0) AS bigint) FROM weirgate.object
                 WHERE state = 'committed'",
            )
            .await?;
        assert_eq!(ledger, expected, "rows in the ledger");
        Ok(())
    }

    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
        self.within(PATIENCE, what, condition).await
    }

    pub async fn within(
        &self,
        patience: Duration,
        what: &str,
        condition: impl AsyncFn() -> Result<bool>,
    ) -> Result<()> {
        let started = clock::monotonic();
        while !condition().await? {
            if clock::monotonic().saturating_sub(started) > patience {
                bail!("waited {patience:?} in vain until {what} ({})", self.fleet.name);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// A running importer or scaler; killed when dropped.
pub struct Process {
    pub child: Child,
    log: PathBuf,
}

impl Process {
    /// Drains it. A killed one would leave a receive behind that still takes messages.
    pub async fn stop(mut self) {
        self.child.stop(Signal::TERM, PATIENCE).await;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn is_missing_table(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["no such table", "does not exist", "unable to open database file"]
        .iter()
        .any(|sign| text.contains(sign))
}
