//! A feed, its table and the importer's sink, without queues and processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use apache_avro::types::Value;
use apache_avro::{Schema, Writer};
use proptest::prelude::{ProptestConfig, Strategy};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use sqlx::Executor as _;
use tokio::sync::OnceCell;
use weirgate_common::clock::Timestamp;
use weirgate_common::config::{Config, Database, Feed};
use weirgate_common::fault::Fault;
use weirgate_common::ledger::Ledger;
use weirgate_importer::event::ObjectCreated;
use weirgate_importer::failure::Failure;
use weirgate_importer::object::Object;
use weirgate_importer::rows::Opened;
use weirgate_importer::sink::{Destination as _, Job, Outcome, Refusal, Sink};
use weirgate_local::fleet::Tuning;
use weirgate_tests::{DatabaseKind, System};

/// Imports at the same time.
const AT_ONCE: usize = 4;

/// A database for benches, each with a table of its own.
#[derive(Clone)]
pub(crate) struct Place {
    ledger: Ledger,
    /// Removed with the last bench.
    _folder: Option<Arc<tempfile::TempDir>>,
}

pub(crate) async fn sqlite() -> Result<Place> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("w.db");
    let ledger = Ledger::open(&Database::Sqlite { path }, 4).await?;
    Ok(Place { ledger, _folder: Some(Arc::new(folder)) })
}

pub(crate) async fn postgres() -> Result<Place> {
    static PLACE: OnceCell<Place> = OnceCell::const_new();
    let place = PLACE.get_or_try_init(|| async {
        let programs = env!("CARGO_BIN_EXE_weirgate-programs");
        let (database, tuning) = (DatabaseKind::Postgres, Tuning::default());
        let system = System::start(programs, "test-keyed", "keyed", database, tuning).await?;
        let database = Database::parse(&system.fleet.database).map_err(anyhow::Error::msg)?;
        let ledger = Ledger::open(&database, 12).await?;
        anyhow::Ok(Place { ledger, _folder: None })
    });
    Ok(place.await?.clone())
}

/// An object as its event and its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) key: String,
    /// Seconds after noon.
    pub(crate) at: i64,
    pub(crate) sequencer: Option<String>,
    pub(crate) bytes: Vec<u8>,
}

impl Upload {
    /// The only version of a key.
    pub(crate) fn new(key: &str, at: i64, bytes: Vec<u8>) -> Self {
        Upload { key: key.to_owned(), at, sequencer: Some("0A".to_owned()), bytes }
    }
}

#[derive(Clone)]
pub(crate) struct Bench {
    place: Place,
    sink: Sink,
    feed: Arc<Feed>,
    /// Also the table's name.
    pub(crate) name: String,
}

impl Bench {
    /// A feed with these lines in its section.
    pub(crate) fn new(place: &Place, lines: &str) -> Result<Self> {
        static BENCHES: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", BENCHES.fetch_add(1, Ordering::Relaxed));
        let text = format!(
            "database = \"sqlite://w.db\"\n\
             [fleet.f]\nqueue = \"https://sqs.eu-west-1.amazonaws.com/1/f\"\n\
             [feed.{name}]\nfleet = \"f\"\nobjects = \"s3://b/**\"\ntable = \"{name}\"\n{lines}\n"
        );
        let mut config = Config::parse(&text, &BTreeMap::new())
            .map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let feed = Arc::new(config.feeds.remove(&name).context("the feed is there")?);
        Ok(Bench { place: place.clone(), sink: Sink::new(&place.ledger), feed, name })
    }

    pub(crate) async fn import(&self, upload: &Upload) -> Result<Outcome> {
        match self.attempt(&[upload]).await.pop().context("one outcome")? {
            Ok(outcome) => Ok(outcome),
            Err(failure) => anyhow::bail!("{}: {}", failure.code, failure.detail),
        }
    }

    /// Imports what is to be refused.
    pub(crate) async fn refusal(&self, upload: &Upload) -> Result<Failure> {
        match self.attempt(&[upload]).await.pop().context("one outcome")? {
            Ok(outcome) => anyhow::bail!("{upload:?} is not refused: {outcome:?}"),
            Err(failure) => Ok(failure),
        }
    }

    /// Imports objects of different keys in one transaction.
    async fn attempt(&self, uploads: &[&Upload]) -> Vec<Result<Outcome, Failure>> {
        let noon = Timestamp::parse("2026-03-01T12:00:00Z").expect("a time");
        let object = |upload: &&Upload| ObjectCreated {
            bucket: "b".to_owned(),
            key: upload.key.clone(),
            // What S3 does: equal content has equal ETags.
            etag: format!("{:x}-{:x}", upload.bytes.len(), fold(&upload.bytes)),
            version_id: None,
            size: Some(upload.bytes.len() as u64),
            sequencer: upload.sequencer.clone(),
            at: Some(Timestamp::from_unix_ms(noon.unix_ms() + upload.at * 1_000)),
            content: None,
        };
        let objects: Vec<ObjectCreated> = uploads.iter().map(object).collect();
        let names: Vec<String> =
            uploads.iter().map(|upload| format!("s3://b/{}", upload.key)).collect();
        let mut opened = Vec::new();
        for ((upload, object), object_name) in uploads.iter().zip(&objects).zip(&names) {
            let job = Job {
                feed_name: &self.name,
                feed: &self.feed,
                object,
                object_name,
                received_at: noon,
                worker: "w",
            };
            let file = Object::in_memory(object_name.clone(), upload.bytes.clone().into());
            let file = Opened::read_header(object_name.clone(), file, Arc::default()).await;
            let mut file = file.expect("the files of the tests are whole");
            if uploads.len() > 1 {
                assert_eq!(file.read_whole().await, Ok(true), "the files of the tests are small");
            }
            opened.push((job, file));
        }
        let outcome = |result| match result {
            Ok(outcome) => Ok(outcome),
            Err(Refusal::Own(failure) | Refusal::Joint(failure)) => Err(failure),
            Err(Refusal::Apart) => panic!("the files of the tests are small"),
        };
        self.sink.import(opened).await.into_iter().map(outcome).collect()
    }

    /// Imports all of them, alone and in groups, a few at the same time, as a fleet would: what is
    /// busy comes again.
    pub(crate) async fn deliver(&self, uploads: &[Upload]) -> Result<()> {
        let mut lanes = tokio::task::JoinSet::new();
        for lane in 0..AT_ONCE {
            let bench = self.clone();
            let mut left: Vec<Upload> =
                uploads.iter().skip(lane).step_by(AT_ONCE).cloned().collect();
            lanes.spawn(async move {
                while !left.is_empty() {
                    let mut group = left.split_off(left.len().saturating_sub(lane + 1));
                    // As the importer does; two versions of one key never meet in a transaction.
                    group.sort_by(|a, b| a.key.cmp(&b.key));
                    let (mut chosen, mut again) = (Vec::<Upload>::new(), Vec::new());
                    for upload in group {
                        let same = chosen.last().is_some_and(|last| last.key == upload.key);
                        if same { again.push(upload) } else { chosen.push(upload) }
                    }
                    let results = bench.attempt(&chosen.iter().collect::<Vec<_>>()).await;
                    for (upload, result) in chosen.into_iter().zip(results) {
                        match result {
                            Ok(_) => {}
                            Err(Failure { fault: Fault::Busy | Fault::Transient, .. }) => {
                                again.push(upload);
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                            Err(failure) => {
                                anyhow::bail!("{}: {}", failure.code, failure.detail)
                            }
                        }
                    }
                    left.extend(again);
                }
                Ok(())
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        Ok(())
    }

    /// The table in statements. PostgreSQL would look in the ledger's schema first, which has the
    /// name of the role.
    pub(crate) fn table(&self) -> String {
        match self.place.ledger {
            Ledger::Postgres(_) => format!("public.{}", self.name),
            Ledger::Sqlite(_) => self.name.clone(),
        }
    }

    /// Some columns of the table as text, in the order of the first.
    pub(crate) async fn rows(&self, columns: &str) -> Result<Vec<Vec<Option<String>>>> {
        let parts: Vec<String> = columns
            .split(", ")
            .map(|column| format!("coalesce(CAST({column} AS text), '~')"))
            .collect();
        let first = columns.split(", ").next().unwrap_or_default();
        let sql =
            format!("SELECT {} FROM {} ORDER BY {first}", parts.join(" || '|' || "), self.name);
        let lines: Vec<String> = match &self.place.ledger {
            Ledger::Postgres(pool) => sqlx::query_scalar(&sql).fetch_all(pool).await?,
            Ledger::Sqlite(pool) => sqlx::query_scalar(&sql).fetch_all(pool).await?,
        };
        let cell = |cell: &str| (cell != "~").then(|| cell.to_owned());
        Ok(lines.iter().map(|line| line.split('|').map(cell).collect()).collect())
    }

    /// Objects with rows in the table that the ledger does not account for.
    pub(crate) async fn strays(&self) -> Result<i64> {
        let table = &self.name;
        self.number(&format!(
            "SELECT count(*)
             FROM (SELECT _object, count(*) AS n FROM {table} GROUP BY _object) AS t
                  LEFT JOIN weirgate.object o
                  ON o.id = t._object AND o.table_name = '{table}' AND o.state = 'committed'
             WHERE o.id IS NULL OR t.n > o.rows"
        ))
        .await
    }

    /// One number; `weirgate.` in the dialect of the database.
    pub(crate) async fn number(&self, sql: &str) -> Result<i64> {
        let sql = self.place.ledger.sql(sql);
        Ok(match &self.place.ledger {
            Ledger::Postgres(pool) => sqlx::query_scalar(&sql).fetch_one(pool).await?,
            Ledger::Sqlite(pool) => sqlx::query_scalar(&sql).fetch_one(pool).await?,
        })
    }

    pub(crate) async fn execute(&self, sql: &str) -> Result<()> {
        match &self.place.ledger {
            Ledger::Postgres(pool) => pool.execute(sql).await.map(|_| ())?,
            Ledger::Sqlite(pool) => pool.execute(sql).await.map(|_| ())?,
        }
        Ok(())
    }
}

/// Numbered cases of a strategy, the same in every run: many on SQLite, fewer on PostgreSQL, which
/// takes longer over each.
pub(crate) fn cases<S: Strategy>(
    place: &Place,
    strategy: S,
) -> impl Iterator<Item = (u64, S::Value)> + use<S> {
    let cases = match place.ledger {
        Ledger::Postgres(_) => 24,
        Ledger::Sqlite(_) => 150,
    };
    (0..cases).map(move |case: u64| {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&case.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
        let tree = strategy.new_tree(&mut runner).expect("the strategy rejects nothing");
        (case, tree.current())
    })
}

/// FNV-1a: tells contents apart.
fn fold(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// An Avro file. Its sync marker is fixed, so that equal rows make equal files.
pub(crate) fn file(schema: &str, rows: Vec<Value>) -> Vec<u8> {
    let schema = Schema::parse_str(schema).expect("the schemas of the tests are valid");
    let mut writer = Writer::builder()
        .schema(&schema)
        .marker([7; 16])
        .writer(Vec::new())
        .build()
        .expect("writing to memory");
    for row in rows {
        writer.append_value(row).expect("the row fits its schema");
    }
    writer.into_inner().expect("writing to memory")
}

pub(crate) fn record(fields: &[(&str, Value)]) -> Value {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    Value::Record(fields.collect())
}

pub(crate) fn some(value: Value) -> Value {
    Value::Union(1, Box::new(value))
}

pub(crate) fn null() -> Value {
    Value::Union(0, Box::new(Value::Null))
}
