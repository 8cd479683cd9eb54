//! Real parts: a PostgreSQL, the stub's objects, and importers on them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use weirgate_common::clock;
use weirgate_common::config::{Config, Feed};
use weirgate_common::ledger::Ledger;
use weirgate_importer::event::ObjectCreated;
use weirgate_importer::import::{Importer, Request, Settled};
use weirgate_importer::object::Objects;
use weirgate_importer::schemas::Schemas;
use weirgate_importer::sink::Sink;
use weirgate_local::world::{DatabaseKind, Options, World};

pub struct System {
    pub world: World,
    /// The stub's objects, and files for `psql`.
    pub folder: PathBuf,
    pub stub_url: String,
    _stub: Stub,
}

/// The default of `importer.slots`. All of them share the one connection.
const SLOTS: usize = 4;

/// One importer with one connection, and the feed that it works for.
pub struct Bench {
    importer: Importer,
    pub ledger: Ledger,
    feed: Arc<Feed>,
    objects: u64,
}

/// Gone when dropped, also after an error.
struct Stub(std::process::Child);

impl Drop for Stub {
    fn drop(&mut self) {
        // Whatever it says, the stub is gone then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl System {
    pub async fn start() -> Result<Self> {
        let options = Options { database: DatabaseKind::Postgres, ..Options::new("bench") };
        let world = World::start(options).await?;
        let folder = world.folder.join("files");
        std::fs::create_dir_all(&folder)?;
        let mut stub = Stub(
            Command::new(std::env::current_exe()?)
                .arg("stub")
                .arg(&folder)
                .stdout(Stdio::piped())
                .spawn()?,
        );
        let mut port = String::new();
        BufReader::new(stub.0.stdout.take().context("the stub's output is piped")?)
            .read_line(&mut port)?;
        let stub_url = format!("http://127.0.0.1:{}", port.trim());
        let system = Self { world, folder, stub_url, _stub: stub };
        // The local system saves on durability; here it is part of what is measured.
        let durable =
            ["fsync = on", "full_page_writes = on"].map(|it| format!("ALTER SYSTEM SET {it}"));
        system.psql(&[&durable[0], &durable[1], "SELECT pg_reload_conf()"])?;
        // Fails unless they are on: nothing else may overrule them.
        system.psql(&[
            "SELECT 1 / (current_setting('fsync') = 'on')::int / (current_setting('full_page_writes') = 'on')::int",
        ])?;
        Ok(system)
    }

    pub async fn stop(self) {
        self.world.stop().await;
    }

    pub fn database_url(&self) -> String {
        self.world.fleet.database.clone()
    }

    /// Runs statements one by one, each a transaction of its own, in one session.
    pub fn psql(&self, statements: &[&str]) -> Result<()> {
        let script = self.folder.join("script.sql");
        std::fs::write(&script, statements.join("\n;\n"))?;
        self.psql_file(&script)
    }

    pub fn psql_file(&self, script: &Path) -> Result<()> {
        let postgres = self.world.postgres.as_ref().context("the world has PostgreSQL")?;
        let status = Command::new(postgres.program("psql"))
            .args(["-q", "-X", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
            .arg(script)
            .arg(self.database_url())
            .status()?;
        anyhow::ensure!(status.success(), "psql: {status}");
        Ok(())
    }

    pub async fn bench(&self, database: &str, table: &str) -> Result<Bench> {
        let text = format!(
            "database = \"{database}\"\n\
             [fleet.bench]\nqueue = \"https://sqs.eu-central-1.amazonaws.com/1/bench\"\n\
             [feed.impressions]\nfleet = \"bench\"\nobjects = \"s3://bench/**\"\ntable = \"{table}\"\n"
        );
        let config = Config::parse(&text, &BTreeMap::new())
            .map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let s3 = self.world.clients.s3.config().to_builder().endpoint_url(&self.stub_url);
        let client = aws_sdk_s3::Client::from_conf(s3.build());
        let ledger = Ledger::open(&config.database, 1).await?;
        Ok(Bench {
            importer: Importer {
                objects: Objects::new(client, 5 << 30),
                schemas: Arc::new(Schemas::open(None, ledger.clone()).await?),
                sink: Sink::new(&ledger),
                worker: "bench".to_owned(),
            },
            ledger,
            feed: Arc::new(config.feeds["impressions"].clone()),
            objects: 0,
        })
    }
}

impl Bench {
    /// Imports FILE as `objects` new objects, so many `together` in one transaction, as many
    /// transactions at a time as an importer has slots; the rows. Each is a task of its own, as they
    /// are in an importer.
    pub async fn import(&mut self, file: &str, objects: u64, together: usize) -> Result<u64> {
        let first = self.objects;
        self.objects += objects;
        let names: Vec<String> =
            (first..self.objects).map(|number| format!("{file}/{number}")).collect();
        let import = |keys: &[String]| {
            let import = import_keys(self.importer.clone(), self.feed.clone(), keys.to_vec());
            async { tokio::spawn(import).await? }
        };
        stream::iter(names.chunks(together).map(import).collect::<Vec<_>>())
            .buffer_unordered(SLOTS)
            .try_fold(0, async |sum, rows| Ok(sum + rows))
            .await
    }
}

async fn import_keys(importer: Importer, feed: Arc<Feed>, keys: Vec<String>) -> Result<u64> {
    let request = |key: String| Request {
        object: ObjectCreated {
            bucket: "bench".to_owned(),
            key,
            etag: "x".to_owned(),
            version_id: None,
            size: None,
            sequencer: None,
            at: None,
            content: None,
        },
        received_at: clock::now(),
    };
    let requests: Vec<Request> = keys.into_iter().map(request).collect();
    let mut sum = 0;
    for settled in importer.import("impressions", &feed, &requests).await {
        match settled.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))? {
            Settled::Committed { rows, .. } => sum += rows,
            other => anyhow::bail!("a new object is committed, not {other:?}"),
        }
    }
    Ok(sum)
}

/// User and system time of a process so far, its threads included, in seconds.
pub fn cpu_seconds(process: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // After the name, which may hold anything.
    let fields = stat.rsplit(") ").next().context("the name ends")?;
    let ticks: u64 = fields.split(' ').skip(11).take(2).flat_map(str::parse::<u64>).sum();
    // USER_HZ is 100 on every architecture of Linux.
    Ok(ticks as f64 / 100.0)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
