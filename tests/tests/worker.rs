//! The real worker with everything behind it in memory, on a clock that jumps to whatever comes
//! next: hours of faults, kills and drains in milliseconds. The seed fixes what goes wrong at which
//! occasion; threads decide which of two occasions at the same moment comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use apache_avro::Codec;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weirgate_common::clock;
use weirgate_common::config::{Config, Database};
use weirgate_common::dead_letter::Reason;
use weirgate_common::ledger::Ledger;
use weirgate_common::telemetry::Health;
use weirgate_importer::event::ObjectCreated;
use weirgate_importer::import::Importer;
use weirgate_importer::protocol::Grouping;
use weirgate_importer::schemas::Schemas;
use weirgate_importer::sink::admission::RowState;
use weirgate_importer::worker::Worker;
use weirgate_tests::avro::file;
use weirgate_tests::fake::{Defect, Fake, FakeJournal, FakeQueue, FakeSink, FakeStore, Faults};

/// More than the queue's redrive policy lets a message come.
const RECEIVES_MAX: u32 = 5;

const SEEDS: u64 = 60;

/// The schemas of records in messages, of which there are none here.
static SCHEMAS: LazyLock<Arc<Schemas>> = LazyLock::new(|| {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(async {
        let database = Database::Sqlite { path: ":memory:".into() };
        let ledger = Ledger::open(&database, 1).await.expect("a ledger in memory");
        Arc::new(Schemas::open(None, ledger).await.expect("there is no folder"))
    })
});

struct World {
    rng: SmallRng,
    config: Arc<Config>,
    queue: FakeQueue,
    dead_letters: FakeQueue,
    store: FakeStore,
    sink: FakeSink,
    /// Rows of the newest version of each key, if it can be imported.
    newest: BTreeMap<String, Option<u64>>,
}

struct Running {
    work: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rate = [0.0, 0.02, 0.1][rng.random_range(0..3)];
        let healed_at = clock::monotonic() + Duration::from_secs(120);
        let faults = Faults::until(seed, rate, healed_at);
        let dead_letters = FakeQueue::new(Faults::none(), None);
        let redrive = Some((RECEIVES_MAX, dead_letters.clone()));
        let text = "database = \"sqlite://unused.db\"\n\
            [fleet.f]\nqueue = \"https://sqs.eu-west-1.amazonaws.com/1/f\"\n\
            [feed.a]\nfleet = \"f\"\nobjects = \"s3://b/a/**\"\ntable = \"a\"\n\
            [feed.b]\nfleet = \"f\"\nobjects = \"s3://b/b/**\"\ntable = \"b\"\n";
        World {
            config: Arc::new(Config::parse(text, &BTreeMap::new()).expect("it is valid")),
            queue: FakeQueue::new(faults.clone(), redrive),
            store: FakeStore::new(rng.random_bool(0.5), faults.clone()),
            sink: FakeSink::new(faults),
            dead_letters,
            newest: BTreeMap::new(),
            rng,
        }
    }

    fn publish(&mut self) {
        for _ in 0..self.rng.random_range(1..80) {
            let records = self.rng.random_range(1..=2);
            let objects: Vec<ObjectCreated> = (0..records).map(|_| self.put()).collect();
            let records = objects.iter().map(|object| {
                serde_json::json!({"eventName": "ObjectCreated:Put", "s3": {
                    "bucket": {"name": object.bucket}, "object": {
                        "key": object.key, "size": object.size, "eTag": object.etag,
                        "versionId": object.version_id, "sequencer": object.sequencer}}})
            });
            let body = serde_json::json!({ "Records": records.collect::<Vec<_>>() }).to_string();
            for _ in 0..if self.rng.random_bool(0.1) { 2 } else { 1 } {
                self.queue.put(body.clone(), BTreeMap::new());
            }
        }
    }

    /// Writes an object, perhaps over an older one.
    fn put(&mut self) -> ObjectCreated {
        let folder = if self.rng.random_bool(0.5) { "a" } else { "b" };
        let key = match self.rng.random_bool(0.1) {
            true => format!("{folder}/hot"),
            false => format!("{folder}/{}", self.newest.len()),
        };
        let rows = match self.rng.random_bool(0.05) {
            true => self.rng.random_range(500..5_000),
            false => self.rng.random_range(0..20),
        };
        let mut content = file(&key, rows, Codec::Null);
        let poison = self.rng.random_bool(0.05);
        if poison {
            content.truncate(content.len() / 2);
        }
        self.newest.insert(key.clone(), (!poison).then_some(rows));
        self.store.put("b", &key, content)
    }

    fn start(&self) -> Running {
        let importer = Importer {
            objects: self.store.clone(),
            schemas: SCHEMAS.clone(),
            sink: self.sink.clone(),
            worker: "fake".to_owned(),
        };
        let worker: Worker<Fake> = Worker {
            config: self.config.clone(),
            fleet: "f".to_owned(),
            queue: self.queue.clone(),
            dead_letters: self.dead_letters.clone(),
            receives_max: RECEIVES_MAX,
            ledger: FakeJournal,
            importer,
            grouping: Grouping::default(),
            health: Health::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let grace = worker.config.importer.drain_grace;
        let shutdown = async move {
            // A sender that is gone is a kill, which ends the worker itself.
            let _ = stopped.await;
            grace
        };
        Running { work: tokio::spawn(worker.run(shutdown)), stop }
    }

    /// Two workers; one of them is killed or told to stop now and then, and another takes its place.
    async fn run(&mut self) {
        let mut workers = vec![self.start(), self.start()];
        let until = clock::monotonic() + Duration::from_secs(6 * 3600);
        while !self.queue.is_empty() {
            assert!(clock::monotonic() < until, "{} messages are left", self.queue.len());
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(1..20_000))).await;
            if self.rng.random_bool(0.2) {
                let one = workers.remove(0);
                match self.rng.random_bool(0.5) {
                    // What it has sent arrives, but nobody hears the answer.
                    true => one.work.abort(),
                    false => stop(one).await,
                }
                workers.push(self.start());
            }
        }
        for worker in workers {
            stop(worker).await;
        }
    }

    /// What is wrong with the end, if something is.
    fn check(&self) -> Result<(), String> {
        let dead: BTreeSet<String> = self.dead_letters.messages().iter().flat_map(keys).collect();
        let ledger = self.sink.ledger();
        let mut rows = 0;
        for (key, newest) in &self.newest {
            let versions = ledger.get(key).map(Vec::as_slice).unwrap_or_default();
            let committed = versions.iter().filter(|row| row.state == RowState::Committed).count();
            let found = self.sink.rows_of(key);
            rows += found;
            match newest {
                _ if committed > 1 => return Err(format!("{key} is there {committed} times")),
                // Of a dead-lettered one, an older or a newer version may be there.
                _ if dead.contains(key) => {}
                None => return Err(format!("{key} is poison, and nobody was told")),
                Some(_) if committed == 0 => return Err(format!("{key} is lost")),
                Some(newest) if found != *newest => {
                    return Err(format!("{found} of {newest} rows of {key} are there"));
                }
                Some(_) => {}
            }
        }
        match self.sink.rows() - rows {
            0 => Ok(()),
            strange => Err(format!("{strange} rows are of no object in the ledger")),
        }
    }
}

async fn stop(worker: Running) {
    // It may have ended by itself: then nobody listens, and its result tells why.
    let _ = worker.stop.send(());
    worker.work.await.expect("a worker ends well");
}

fn keys(message: &weirgate_common::queue::Message) -> Vec<String> {
    let body: serde_json::Value = serde_json::from_str(&message.body).expect("an event");
    let records = body["Records"].as_array().into_iter().flatten();
    records.filter_map(|it| it["s3"]["object"]["key"].as_str().map(str::to_owned)).collect()
}

fn paused<T>(test: impl Future<Output = T>) -> T {
    // Before the clock is paused: it asks a database.
    LazyLock::force(&SCHEMAS);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().expect("a runtime starts").block_on(test)
}

#[test]
#[expect(clippy::print_stdout, reason = "a failure must name its seed")]
fn the_worker_keeps_its_promises_under_any_fault() {
    for seed in 0..SEEDS {
        paused(async {
            println!("seed {seed}");
            let mut world = World::new(seed);
            world.publish();
            world.run().await;
            world.check().expect("everything is there once");
        });
    }
}

/// Or else the test above could not fail.
#[test]
fn the_check_sees_what_a_broken_database_does() {
    for (defect, told) in [
        (Defect::RowsLost, "rows of"),
        (Defect::LedgerLost, "is lost"),
        (Defect::AllLost, "is lost"),
    ] {
        paused(async {
            let mut world = World::new(1);
            world.sink = FakeSink::broken(defect);
            world.publish();
            world.run().await;
            let error = world.check().expect_err("something is wrong");
            assert!(error.contains(told), "{defect:?}: {error}");
        });
    }
}

/// Nothing goes wrong: small objects go together, poison is named, and the rest is there.
#[test]
fn small_objects_share_transactions_and_poison_stands_alone() {
    paused(async {
        let mut world = World::new(0);
        let faults = Faults::none();
        world.queue =
            FakeQueue::new(faults.clone(), Some((RECEIVES_MAX, world.dead_letters.clone())));
        world.store = FakeStore::new(true, faults.clone());
        world.sink = FakeSink::new(faults);
        for number in 0..200 {
            let key = format!("a/{number}");
            let mut content = file(&key, 10, Codec::Null);
            if number == 77 {
                content.truncate(content.len() - 3);
            }
            let object = world.store.put("b", &key, content);
            let event = serde_json::json!({"Records": [{"eventName": "ObjectCreated:Put", "s3": {
                "bucket": {"name": "b"}, "object": {"key": key, "size": object.size,
                "eTag": object.etag, "versionId": object.version_id}}}]});
            world.queue.put(event.to_string(), BTreeMap::new());
        }
        let started_at = clock::monotonic();
        let worker = world.start();
        while !world.queue.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = clock::monotonic() - started_at;
        stop(worker).await;
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!((world.sink.rows(), world.sink.ledger().len()), (1_990, 199));
        assert!(world.sink.transactions() <= 12, "{} transactions", world.sink.transactions());
        let letters = world.dead_letters.messages();
        assert_eq!(letters.iter().flat_map(keys).collect::<Vec<_>>(), ["a/77"]);
        let reason = Reason::from_attributes(&letters[0].attributes).expect("it has a reason");
        assert_eq!((reason.code.as_str(), reason.attempts), ("corrupt_object", 1));
    });
}
