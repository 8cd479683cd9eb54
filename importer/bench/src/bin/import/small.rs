//! Small objects: the real worker takes them from a queue and an object store in memory and puts
//! them into PostgreSQL over TCP, in groups and one transaction each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use apache_avro::Codec;
use weirgate_common::config::Config;
use weirgate_common::ledger::Ledger;
use weirgate_common::telemetry::Health;
use weirgate_importer::import::Importer;
use weirgate_importer::protocol::Grouping;
use weirgate_importer::schemas::Schemas;
use weirgate_importer::sink::Sink;
use weirgate_importer::worker::{Worker, World};
use weirgate_importer_bench::Set;
use weirgate_tests::fake::{FakeQueue, FakeStore, Faults};

use crate::system::{System, cpu_seconds, median};

const OBJECTS: u64 = 20_000;

const ROWS: i64 = 10;

/// What the ledger holds in the end, at least.
const LEDGER: u64 = 10_000_000;

/// Messages and objects in memory, the rest as it is.
struct Memory;

impl World for Memory {
    type Queue = FakeQueue;
    type Objects = FakeStore;
    type Sink = Sink;
    type Ledger = Ledger;
}

struct Small<'s> {
    system: &'s System,
    config: Arc<Config>,
    file: bytes::Bytes,
    /// Objects imported so far.
    objects: u64,
}

pub async fn run(system: &System, rounds: usize) -> Result<()> {
    let mut small = Small::new(system)?;
    println!("{OBJECTS} objects of {ROWS} rows, PostgreSQL over TCP, 4 slots");
    println!(
        "objects/s grouped   objects/s one by one   ratio   CPU us/object grouped   one by one"
    );
    // Makes the table.
    small.import(Grouping::default(), 100).await?;
    let (mut grouped, mut single, mut ratios) = (vec![], vec![], vec![]);
    let (mut grouped_cpu, mut single_cpu) = (vec![], vec![]);
    for round in 0..rounds {
        let first = if round % 2 == 0 { Some(small.one_by_one().await?) } else { None };
        let (rate, cpu) = small.import(Grouping::default(), OBJECTS).await?;
        let (other, other_cpu) = match first {
            Some(first) => first,
            None => small.one_by_one().await?,
        };
        grouped.push(rate);
        grouped_cpu.push(cpu);
        single.push(other);
        single_cpu.push(other_cpu);
        ratios.push(rate / other);
    }
    println!(
        "{:17.0} {:22.0} {:7.1} {:23.0} {:12.0}",
        median(grouped),
        median(single),
        median(ratios),
        median(grouped_cpu),
        median(single_cpu),
    );
    Ok(())
}

/// What a long ledger costs.
pub async fn ledger(system: &System, rounds: usize) -> Result<()> {
    let mut small = Small::new(system)?;
    small.import(Grouping::default(), 100).await?;
    let short = small.rates(rounds).await?;
    let start = Instant::now();
    system.psql(&[
        "ALTER TABLE weirgate.object DROP CONSTRAINT object_pkey",
        "DROP INDEX weirgate.object_identity, weirgate.object_committed_at",
        // Far from the ids in use; keys by the hour and in no order within it, like those to come.
        &format!(
            "INSERT INTO weirgate.object (id, feed, bucket, key, etag, sequencer, table_name, state,
                 rows, rejected_rows, bytes, received_at, committed_at, worker)
             SELECT 1000000000 + n, 'small', 'bench', 'dt=' || to_char(timestamp '2026-01-01' + n * interval '1 second',
                 'YYYY-MM-DD/HH24/') || md5(n::text), 'x', '01', 'small', 'committed',
                 10, 0, 1000, now(), now() - n * interval '1 second', 'bench'
             FROM generate_series(1, {LEDGER}) AS n"
        ),
        "ALTER TABLE weirgate.object ADD PRIMARY KEY (id)",
        "CREATE UNIQUE INDEX object_identity ON weirgate.object
             (feed, bucket, key, etag, (CASE state WHEN 'committed' THEN 0 ELSE id END))",
        "CREATE INDEX object_committed_at ON weirgate.object (committed_at)",
        "VACUUM ANALYZE weirgate.object",
        "CHECKPOINT",
    ])?;
    let filled = start.elapsed().as_secs();
    let long = small.rates(rounds).await?;
    println!("ledger short: {short:.0} objects/s; with {LEDGER} rows more (filled in {filled} s):");
    println!("{long:.0} objects/s, {:+.1} %", 100.0 * (long / short - 1.0));
    Ok(())
}

impl<'s> Small<'s> {
    fn new(system: &'s System) -> Result<Self> {
        let text = format!(
            "database = \"{}\"\n\
             [fleet.bench]\nqueue = \"https://sqs.eu-central-1.amazonaws.com/1/bench\"\n\
             [feed.small]\nfleet = \"bench\"\nobjects = \"s3://bench/**\"\ntable = \"small\"\n",
            system.database_url()
        );
        let config = Config::parse(&text, &BTreeMap::new())
            .map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let file = Set::impressions(ROWS).file(Codec::Snappy, "snappy").into();
        Ok(Small { system, config: Arc::new(config), file, objects: 0 })
    }

    async fn one_by_one(&mut self) -> Result<(f64, f64)> {
        let alone = Grouping { objects_max: 1, ..Grouping::default() };
        self.import(alone, OBJECTS).await
    }

    /// Objects per second, in groups; the median of the rounds.
    async fn rates(&mut self, rounds: usize) -> Result<f64> {
        let mut rates = Vec::new();
        for _ in 0..rounds {
            self.system.psql(&["CHECKPOINT"])?;
            rates.push(self.import(Grouping::default(), OBJECTS).await?.0);
        }
        Ok(median(rates))
    }

    /// Lets a worker import new objects; objects per second, and our CPU in microseconds for each.
    async fn import(&mut self, grouping: Grouping, objects: u64) -> Result<(f64, f64)> {
        let store = FakeStore::new(false, Faults::none());
        let dead_letters = FakeQueue::new(Faults::none(), None);
        let queue = FakeQueue::new(Faults::none(), None);
        for number in self.objects..self.objects + objects {
            let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let object = store.put(
                "bench",
                &format!("dt=2026-12-31/23/{scattered:032x}"),
                self.file.clone(),
            );
            let event = serde_json::json!({"Records": [{
                "eventVersion": "2.1", "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": object.bucket}, "object": {
                    "key": object.key, "size": object.size, "eTag": object.etag,
                    "sequencer": object.sequencer}}}]});
            queue.put(event.to_string(), BTreeMap::new());
        }
        self.objects += objects;
        let ledger = Ledger::open(&self.config.database, 6).await?;
        let importer = Importer {
            objects: store,
            schemas: Arc::new(Schemas::open(None, ledger.clone()).await?),
            sink: Sink::new(&ledger),
            worker: "bench".to_owned(),
        };
        let worker: Worker<Memory> = Worker {
            config: self.config.clone(),
            fleet: "bench".to_owned(),
            queue: queue.clone(),
            dead_letters: dead_letters.clone(),
            receives_max: u32::MAX,
            ledger,
            importer,
            grouping,
            health: Health::default(),
        };
        let cpu = cpu_seconds("self")?;
        let start = Instant::now();
        let done = async {
            while !queue.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            start.elapsed().as_secs_f64()
        };
        let (ended, end) = tokio::sync::oneshot::channel();
        let watched = async {
            // The worker waits for this; nothing is left to do if nobody listens.
            let _ = ended.send(done.await);
            Duration::ZERO
        };
        worker.run(watched).await;
        let seconds = end.await?;
        let cpu = cpu_seconds("self")? - cpu;
        anyhow::ensure!(dead_letters.is_empty(), "an object was dead-lettered");
        Ok((objects as f64 / seconds, 1e6 * cpu / objects as f64))
    }
}
