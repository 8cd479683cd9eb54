//! What the worker relies on, asked of the real things and of what stands in for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use apache_avro::Codec;
use weirgate_common::clock;
use weirgate_common::config::{Config, Database, Feed};
use weirgate_common::dead_letter::Reason;
use weirgate_common::fault::Fault;
use weirgate_common::ledger::Ledger;
use weirgate_importer::event::ObjectCreated;
use weirgate_importer::object::{Object, ObjectError, Objects, Store, display_name};
use weirgate_importer::rows::Opened;
use weirgate_importer::sink::{Destination, Job, Outcome, Refusal, Sink};
use weirgate_importer::sqs::Mailbox;
use weirgate_tests::avro::file;
use weirgate_tests::fake::{FakeQueue, FakeSink, FakeStore, Faults};
use weirgate_tests::{DatabaseKind, System, run};

const LEASE: Duration = Duration::from_secs(60);

#[test]
fn the_queue_in_memory() -> Result<()> {
    run(queue(&FakeQueue::new(Faults::none(), None)))
}

/// Asked of an empty queue.
pub(super) async fn queue(queue: &impl Mailbox) -> Result<()> {
    assert!(queue.answers().await);
    // More than a batch, with attributes that come back as they were.
    let reason = Reason {
        code: "corrupt_object".to_owned(),
        detail: "line one\nline two: é".to_owned(),
        feed: Some("impressions".to_owned()),
        object: None,
        message_id: "8f1e".to_owned(),
        attempts: 3,
        first_failed_at: clock::now(),
        replays: 0,
    };
    let messages: Vec<_> = (0..23).map(|n| (format!("body {n}"), reason.to_attributes())).collect();
    for sent in queue.send(&messages).await {
        sent?;
    }
    let received = receive(queue, 23, LEASE).await?;
    assert!(
        received.iter().all(|m| Reason::from_attributes(&m.attributes) == Some(reason.clone()))
    );
    assert!(received.iter().all(|m| m.receive_count == 1));
    assert!(queue.receive(10, Duration::ZERO, LEASE).await?.is_empty(), "all are leased");

    // Released ones come back, with a newer receipt.
    let release: Vec<_> =
        received.iter().take(2).map(|m| (m.receipt.clone(), Duration::ZERO)).collect();
    for released in queue.change_visibility(&release).await {
        released?;
    }
    let again = receive(queue, 2, LEASE).await?;
    assert!(again.iter().all(|m| m.receive_count == 2));

    // One result per entry, in order, also when one of them is refused.
    let mut receipts: Vec<String> = received[2..].iter().map(|m| m.receipt.clone()).collect();
    receipts[4] = "nonsense".to_owned();
    let results = queue.delete(&receipts).await;
    assert_eq!(results.len(), 21);
    let refused: Vec<usize> =
        results.iter().enumerate().filter(|(_, r)| r.is_err()).map(|(i, _)| i).collect();
    assert_eq!(refused, [4]);
    let error = results[4].as_ref().expect_err("refused");
    assert!(error.is_stale_receipt(), "{error}");
    assert_eq!(error.fault(), Fault::Permanent);

    // What is deleted is gone, and deleting it again is fine; a lease that ran out is told.
    for deleted in queue.delete(&receipts[..4]).await {
        deleted?;
    }
    let rest: Vec<_> = again.iter().map(|m| (m.receipt.clone(), Duration::from_secs(1))).collect();
    for changed in queue.change_visibility(&rest).await {
        changed?;
    }
    let again = receive(queue, 2, LEASE).await?;
    assert!(again.iter().all(|m| m.receive_count == 3));
    let receipts: Vec<_> = again.into_iter().map(|m| m.receipt).collect();
    for deleted in queue.delete(&receipts).await {
        deleted?;
    }
    Ok(())
}

async fn receive(
    queue: &impl Mailbox,
    count: usize,
    lease: Duration,
) -> Result<Vec<weirgate_common::queue::Message>> {
    let mut received = Vec::new();
    let until = clock::monotonic() + LEASE;
    while received.len() < count {
        anyhow::ensure!(clock::monotonic() < until, "{} of {count} came", received.len());
        received.extend(queue.receive(10, Duration::from_secs(1), lease).await?);
    }
    Ok(received)
}

#[test]
fn the_store_in_memory() -> Result<()> {
    run(async {
        for versioned in [false, true] {
            let fake = FakeStore::new(versioned, Faults::none());
            let put = async |key: &str, content: &[u8]| Ok(fake.put("b", key, content.to_vec()));
            let delete = async |key: &str| {
                fake.delete("b", key);
                Ok(())
            };
            store(&fake, put, delete).await?;
        }
        Ok(())
    })
}

#[test]
fn the_store() -> Result<()> {
    run(async {
        let system = super::system("store", DatabaseKind::Sqlite).await?;
        let (client, bucket) = (&system.clients.s3, &system.fleet.data_plane.bucket);
        let put = async |key: &str, content: &[u8]| {
            let body = content.to_vec().into();
            let put = client.put_object().bucket(bucket).key(key).body(body).send().await?;
            Ok(ObjectCreated {
                bucket: bucket.clone(),
                key: key.to_owned(),
                etag: put.e_tag.context("S3 tells it")?.trim_matches('"').to_owned(),
                version_id: put.version_id,
                size: Some(content.len() as u64),
                sequencer: None,
                at: None,
                content: None,
            })
        };
        let delete = async |key: &str| {
            client.delete_object().bucket(bucket).key(key).send().await?;
            Ok(())
        };
        store(&Objects::new(client.clone(), 1 << 20), put, delete).await
    })
}

async fn store<S: Store>(
    store: &S,
    put: impl AsyncFn(&str, &[u8]) -> Result<ObjectCreated>,
    delete: impl AsyncFn(&str) -> Result<()>,
) -> Result<()> {
    let first = put("a key+with é", b"first").await?;
    assert!(store.answers(&first.bucket).await);
    assert_eq!(read(store, &first).await?, b"first");
    let second = put("a key+with é", b"second").await?;
    assert_eq!(read(store, &second).await?, b"second");
    // The first is read as it was, or known to be overwritten; never as what it is now.
    match (&first.version_id, store.open(&first).await) {
        (Some(_), Ok(_)) => assert_eq!(read(store, &first).await?, b"first"),
        (None, Err(ObjectError::Superseded { .. })) => {}
        (version, opened) => panic!("version {version:?}: {:?}", opened.err()),
    }
    let empty = put("empty", b"").await?;
    assert_eq!(read(store, &empty).await?, b"");
    let gone = put("gone", b"soon").await?;
    delete("gone").await?;
    if gone.version_id.is_none() {
        let error = store.open(&gone).await.err().context("it is gone")?;
        assert!(matches!(error, ObjectError::Missing { .. }), "{error}");
        assert_eq!(error.fault(), Fault::Permanent);
    }
    Ok(())
}

async fn read(store: &impl Store, object: &ObjectCreated) -> Result<Vec<u8>> {
    let mut opened = store.open(object).await?;
    assert_eq!(Some(opened.size()), object.size);
    let mut content = Vec::new();
    while let Some(bytes) = opened.next().await? {
        content.extend_from_slice(&bytes);
    }
    Ok(content)
}

#[test]
fn the_sink_in_memory() -> Result<()> {
    let fake = FakeSink::new(Faults::none());
    run(sink(&fake, async || Ok(fake.rows())))
}

#[test]
fn the_sink_on_sqlite() -> Result<()> {
    run(real_sink("sink-s", DatabaseKind::Sqlite))
}

#[test]
fn the_sink_on_postgres() -> Result<()> {
    run(real_sink("sink-p", DatabaseKind::Postgres))
}

async fn real_sink(name: &str, database: DatabaseKind) -> Result<()> {
    let system: System = super::system(name, database).await?;
    let database = Database::parse(&system.fleet.database).map_err(anyhow::Error::msg)?;
    let ledger = Ledger::open(&database, 4).await?;
    let rows = async || system.number("SELECT count(*) FROM contract").await;
    let rows = async || Ok(u64::try_from(rows().await?)?);
    sink(&Sink::new(&ledger), rows).await?;
    // Each object has its own ledger row, and its rows carry that row's id.
    let strays = "SELECT count(*) FROM contract WHERE _object NOT IN
         (SELECT id FROM weirgate.object WHERE state = 'committed')";
    assert_eq!(system.number(strays).await?, 0);
    let counted = "SELECT CAST(sum(rows) AS bigint) FROM weirgate.object WHERE state = 'committed'";
    assert_eq!(
        system.number(counted).await?,
        system.number("SELECT count(*) FROM contract").await?
    );
    Ok(())
}

/// One version of an object.
struct Version {
    created: ObjectCreated,
    content: Vec<u8>,
}

fn version(key: &str, number: u32, rows: u64) -> Version {
    let content = file(&format!("{key}-{number}"), rows, Codec::Null);
    let created = ObjectCreated {
        bucket: "b".to_owned(),
        key: key.to_owned(),
        etag: format!("{key}-{number}"),
        version_id: None,
        size: Some(content.len() as u64),
        sequencer: Some(format!("{number:04X}")),
        at: Some(clock::now()),
        content: None,
    };
    Version { created, content }
}

async fn import(
    sink: &impl Destination,
    feed: &Feed,
    versions: &[&Version],
) -> Result<Vec<Result<Outcome, Refusal>>> {
    let names: Vec<String> = versions.iter().map(|it| display_name(&it.created)).collect();
    let mut objects = Vec::new();
    for (version, name) in versions.iter().zip(&names) {
        let object = Object::in_memory(name.clone(), version.content.clone().into());
        let opened = Opened::read_header(name.clone(), object, Arc::default()).await;
        let mut opened = opened.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        let whole = opened.read_whole().await.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        assert!(whole, "it is small");
        objects.push((job(feed, version, name), opened));
    }
    Ok(sink.import(objects).await)
}

fn job<'j>(feed: &'j Feed, version: &'j Version, name: &'j str) -> Job<'j> {
    Job {
        feed_name: "contract",
        feed,
        object: &version.created,
        object_name: name,
        received_at: clock::now(),
        worker: "contract",
    }
}

async fn sink(sink: &impl Destination, rows: impl AsyncFn() -> Result<u64>) -> Result<()> {
    let text = "database = \"sqlite://unused.db\"\n\
        [fleet.f]\nqueue = \"https://sqs.eu-west-1.amazonaws.com/1/f\"\n\
        [feed.contract]\nfleet = \"f\"\nobjects = \"s3://b/**\"\ntable = \"contract\"\n";
    let config = Config::parse(text, &BTreeMap::new());
    let config = config.map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let feed = &config.feeds["contract"];
    let committed = |rows, replaced| Ok(Outcome::Committed { rows, rejected: 0, replaced });
    let (already, superseded) = (Ok(Outcome::AlreadyCommitted), Ok(Outcome::Superseded));

    // Several at once, and one of them again.
    let (a1, b1) = (version("a", 1, 10), version("b", 1, 20));
    assert_eq!(import(sink, feed, &[&a1, &b1]).await?, [committed(10, 0), committed(20, 0)]);
    assert_eq!(rows().await?, 30);
    let (name, c1) = ("s3://b/x", version("c", 1, 5));
    let jobs = [job(feed, &a1, name), job(feed, &c1, name)];
    let settled = sink.settled(&jobs).await.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    assert_eq!(settled, [Some(Outcome::AlreadyCommitted), None]);
    assert_eq!(import(sink, feed, &[&c1, &a1]).await?, [committed(5, 0), already.clone()]);
    assert_eq!(rows().await?, 35);

    // A newer version replaces the older one, which comes too late from then on.
    let (a2, d1) = (version("a", 2, 7), version("d", 1, 0));
    assert_eq!(import(sink, feed, &[&d1, &a2]).await?, [committed(0, 0), committed(7, 1)]);
    assert_eq!(rows().await?, 32);
    assert_eq!(import(sink, feed, &[&a1]).await?, std::slice::from_ref(&superseded));
    let settled = sink.settled(&jobs).await.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    assert_eq!(settled, [Some(Outcome::Superseded), Some(Outcome::AlreadyCommitted)]);

    // What is wrong with one of them keeps nobody else out.
    let mut bad = version("bad", 1, 10);
    bad.content.truncate(bad.content.len() - 5);
    let e1 = version("e", 1, 3);
    let mut results = import(sink, feed, &[&bad, &e1]).await?;
    assert_eq!(results.pop(), Some(committed(3, 0)));
    let refusal = results.pop().and_then(Result::err).context("it is cut off")?;
    assert!(
        matches!(&refusal, Refusal::Own(failure) if failure.fault == Fault::Permanent),
        "{refusal:?}"
    );
    assert_eq!(rows().await?, 35);

    // Two at the same moment: its rows are there once.
    let f1 = version("f", 1, 4);
    let only = [&f1];
    let (one, other) = tokio::join!(import(sink, feed, &only), import(sink, feed, &only));
    let mut results = [one?.remove(0), other?.remove(0)];
    results.sort_by_key(|result| *result != committed(4, 0));
    assert_eq!(results[0], committed(4, 0));
    let busy = matches!(&results[1], Err(Refusal::Own(it) | Refusal::Joint(it)) if it.fault == Fault::Busy);
    assert!(busy || results[1] == already, "{:?}", results[1]);
    assert_eq!(rows().await?, 39);
    Ok(())
}
