//! Importer processes on the real local system: what arrives in the database, whatever happens.

mod database;
mod evolution;
mod keyed;
mod records;
mod types;

use std::time::Duration;

use anyhow::Result;
use apache_avro::{Bzip2Settings, Codec, DeflateSettings, XzSettings, ZstandardSettings};
use evolution::{ddl_told, schemas, versions_at_once};
use keyed::{changes, upsert};
use records::records;
use rustix::process::Signal;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Mutex;
use types::types;
use weirgate_common::dead_letter::Reason;
use weirgate_local::fleet::Tuning;
use weirgate_tests::avro::{READER_SCHEMA, file};
use weirgate_tests::{DatabaseKind, System, run};

async fn system(name: &str, database: DatabaseKind, tuning: Tuning) -> Result<System> {
    let programs = env!("CARGO_BIN_EXE_weirgate-programs");
    System::start(programs, "test-import", name, database, tuning).await
}

/// Runs a scenario once on each database, as tests of their own.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                let name = concat!(stringify!($name), "-s").replace('_', "-");
                super::run(super::$name(&name, super::DatabaseKind::Sqlite))
            })*
        }
        mod postgres {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                let name = concat!(stringify!($name), "-p").replace('_', "-");
                super::run(super::$name(&name, super::DatabaseKind::Postgres))
            })*
        }
    };
}

on_both!(
    every_codec,
    kill_in_import,
    duplicates,
    lease_runs_out,
    overwritten,
    poison,
    strangers,
    schemas,
    quarantine,
    masks_and_reader_schema,
    drain,
    records,
    versions_at_once,
    ddl_told,
    upsert,
    changes,
    types,
);

fn key(name: &str) -> String {
    format!("impressions/dt=2026-03-01/{name}.avro")
}

async fn every_codec(name: &str, database: DatabaseKind) -> Result<()> {
    let system = system(name, database, Tuning::default()).await?;
    let codecs = [
        ("null", Codec::Null),
        ("deflate", Codec::Deflate(DeflateSettings::default())),
        ("snappy", Codec::Snappy),
        ("zstandard", Codec::Zstandard(ZstandardSettings::default())),
        ("bzip2", Codec::Bzip2(Bzip2Settings::default())),
        ("xz", Codec::Xz(XzSettings::default())),
    ];
    for (codec_name, codec) in codecs {
        system
            .put(&key(&format!("with space+{codec_name}")), file(codec_name, 1_000, codec))
            .await?;
    }
    system.put(&key("no rows"), file("none", 0, Codec::Null)).await?;
    system.put(&key("no bytes"), Vec::new()).await?;
    // Leftovers of Spark are no objects of the feed, though they lie among them.
    system.put("impressions/dt=2026-03-01/_temporary/0/x.avro", b"half".to_vec()).await?;

    let _importer = system.importer("i-1")?;
    system.until("all objects are committed", async || Ok(committed(&system).await? == 8)).await?;
    system.drained().await?;
    system.assert_rows(6_000).await?;
    let captured =
        system.number("SELECT count(*) FROM impressions WHERE dt = '2026-03-01'").await?;
    assert_eq!(captured, 6_000);
    assert_eq!(system.dead_letters().await?.len(), 0);
    Ok(())
}

/// kill -9 while the transaction of an import is open.
async fn kill_in_import(name: &str, database: DatabaseKind) -> Result<()> {
    let tuning = Tuning {
        visibility: Duration::from_secs(3),
        lease: Duration::from_secs(3),
        ..Tuning::default()
    };
    let system = system(name, database, tuning).await?;
    let rows = 300_000;
    system.put(&key("large"), file("large", rows, Codec::Null)).await?;
    let mut killed = system.importer("i-killed")?;
    in_transaction(&system, database).await?;
    killed.child.signal(Signal::KILL);
    killed.child.finished().await;
    assert_eq!(system.rows().await?, 0, "nothing of an open transaction is seen");

    let _second = system.importer("i-second")?;
    system.drained().await?;
    system.assert_rows(rows).await?;
    assert_eq!(system.dead_letters().await?.len(), 0);
    Ok(())
}

async fn duplicates(name: &str, database: DatabaseKind) -> Result<()> {
    let system = system(name, database, Tuning::default()).await?;
    for object in 0..5 {
        let name = format!("o{object}");
        system.put(&key(&name), file(&name, 100, Codec::Snappy)).await?;
    }
    // Every notification three more times, as it is, and all of them in one message.
    let queue = system.queue();
    let mut bodies = Vec::new();
    while bodies.len() < 5 {
        let received = queue.receive(10, Duration::from_secs(1), Duration::from_secs(1)).await?;
        let body = |message: &weirgate_common::queue::Message| message.body.clone();
        bodies.extend(received.iter().map(body).filter(|body| body.contains("ObjectCreated")));
    }
    bodies.truncate(5);
    for _ in 0..3 {
        for body in &bodies {
            system.send(body).await?;
        }
    }
    let records: Vec<serde_json::Value> =
        bodies.iter().map(|body| record(body)).collect::<Result<_>>()?;
    let twice = [records.clone(), records].concat();
    system.send(&serde_json::json!({ "Records": twice }).to_string()).await?;

    let _importers = [system.importer("i-1")?, system.importer("i-2")?];
    system.until("the rows are there", async || Ok(system.rows().await? >= 500)).await?;
    system.drained().await?;
    // And once more after the objects are gone: the ledger knows that they are imported.
    for object in 0..5 {
        system.delete(&key(&format!("o{object}"))).await?;
    }
    for body in &bodies {
        system.send(body).await?;
    }
    system.drained().await?;
    system.assert_rows(500).await?;
    assert_eq!(system.dead_letters().await?.len(), 0);
    Ok(())
}

/// The inner record of a notification wrapped by SNS.
fn record(body: &str) -> Result<serde_json::Value> {
    let wrapped: serde_json::Value = serde_json::from_str(body)?;
    let event: serde_json::Value =
        serde_json::from_str(wrapped["Message"].as_str().unwrap_or_default())?;
    Ok(event["Records"][0].clone())
}

/// An importer is suspended in the middle of an import; another takes over; the first goes on.
async fn lease_runs_out(name: &str, database: DatabaseKind) -> Result<()> {
    let tuning = Tuning {
        visibility: Duration::from_secs(2),
        lease: Duration::from_secs(2),
        ..Tuning::default()
    };
    let system = system(name, database, tuning).await?;
    let rows = 300_000;
    system.put(&key("large"), file("large", rows, Codec::Null)).await?;
    let mut first = system.importer("i-first")?;
    in_transaction(&system, database).await?;
    first.child.signal(Signal::STOP);
    let second = system.importer("i-second")?;
    // It gets the message once the lease is over, and meets the first one's open transaction.
    system
        .until("the second importer waits for the object", async || {
            let log = second.log();
            Ok(log.contains("object_busy") || log.contains("database_busy"))
        })
        .await?;
    first.child.signal(Signal::CONT);
    system.drained().await?;
    system.assert_rows(rows).await?;
    assert_eq!(system.dead_letters().await?.len(), 0);
    Ok(())
}

async fn overwritten(name: &str, database: DatabaseKind) -> Result<()> {
    let system = system(name, database, Tuning::default()).await?;
    // Between event and read: the first version can no longer be read.
    system.put(&key("a"), file("a-old", 100, Codec::Snappy)).await?;
    system.put(&key("a"), file("a-new", 70, Codec::Snappy)).await?;
    let _importer = system.importer("i-1")?;
    system.until("the new version is there", async || Ok(system.rows().await? == 70)).await?;
    system.drained().await?;
    system.assert_rows(70).await?;
    // After the import: the rows of the old version go when those of the new one come.
    system.put(&key("a"), file("a-newest", 30, Codec::Snappy)).await?;
    system.until("the newest version is there", async || Ok(system.rows().await? == 30)).await?;
    system.drained().await?;
    system.assert_rows(30).await?;
    let old = system.number("SELECT count(*) FROM impressions WHERE id LIKE 'a-new-%'").await?;
    assert_eq!(old, 0);
    // Emptied: then its rows go, too.
    system.put(&key("a"), Vec::new()).await?;
    system.until("the rows are gone", async || Ok(system.rows().await? == 0)).await?;
    system.drained().await?;
    system.assert_rows(0).await?;
    assert_eq!(system.dead_letters().await?.len(), 0);
    Ok(())
}

async fn poison(name: &str, database: DatabaseKind) -> Result<()> {
    let system = system(name, database, Tuning::default()).await?;
    let good = file("cut", 5_000, Codec::Snappy);
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    system.put(&key("truncated"), good[..good.len() - 20].to_vec()).await?;
    system.put(&key("flipped"), flipped).await?;
    system.put(&key("no avro"), b"id,n\n1,2\n".to_vec()).await?;
    for object in 0..10 {
        let name = format!("good{object}");
        system.put(&key(&name), file(&name, 50, Codec::Snappy)).await?;
    }
    let _importer = system.importer("i-1")?;
    system.until("the good objects are there", async || Ok(system.rows().await? == 500)).await?;
    system.drained().await?;
    system.assert_rows(500).await?;

    let letters = system.dead_letters().await?;
    assert_eq!(letters.len(), 3);
    for letter in letters {
        let reason = Reason::from_attributes(&letter.attributes).expect("dead letters say why");
        assert_eq!(reason.code, "corrupt_object", "{reason:?}");
        let object = reason.object.expect("dead letters name the object");
        assert!(reason.detail.contains(&object), "{} does not name {object}", reason.detail);
        assert_eq!(reason.attempts, 1, "what is permanent is not tried again");
        assert!(letter.body.contains("ObjectCreated"), "the original body is kept");
    }
    let recorded = system
        .number("SELECT count(*) FROM weirgate.failure WHERE resolution = 'dead_lettered'")
        .await?;
    assert_eq!(recorded, 3);
    Ok(())
}

/// Messages that are no events, and events that are nobody's.
async fn strangers(name: &str, database: DatabaseKind) -> Result<()> {
    let system = system(name, database, Tuning::default()).await?;
    system.put(&key("good"), file("good", 10, Codec::Null)).await?;
    system.put("elsewhere/x.avro", file("x", 10, Codec::Null)).await?;
    let foreign = r#"{"Records":[{"eventVersion":"2.1","eventName":"ObjectCreated:Put","s3":
        {"bucket":{"name":"somebody-elses"},"object":{"key":"k.avro","eTag":"e","size":1}}}]}"#;
    for body in ["not json", "{\"hello\": 1}", foreign] {
        system.send(body).await?;
    }
    let gone = foreign
        .replace("somebody-elses", &system.fleet.data_plane.bucket)
        .replace("k.avro", "impressions/dt%3D2026-03-01/gone.avro");
    system.send(&gone).await?;

    let _importer = system.importer("i-1")?;
    system.until("the good object is there", async || Ok(system.rows().await? == 10)).await?;
    system.drained().await?;
    system.assert_rows(10).await?;
    let mut reasons = Vec::new();
    for letter in system.dead_letters().await? {
        reasons.extend(Reason::from_attributes(&letter.attributes).map(|reason| reason.code));
    }
    reasons.sort();
    assert_eq!(reasons, ["bad_body", "bad_body", "missing_object", "no_feed", "unknown_bucket"]);
    Ok(())
}

/// One row that the database cannot hold: the object is refused, or the row is.
async fn quarantine(name: &str, database: DatabaseKind) -> Result<()> {
    let system = system(name, database, Tuning::default()).await?;
    let importer = system.importer("i-1")?;
    system.put(&key("nul"), file("nul", 10, Codec::Null)).await?;
    let letters = async || Ok(system.dead_letter_queue().depth().await?.total() == 1);
    system.until("the object is refused", letters).await?;
    let letters = system.dead_letters().await?;
    let reason = Reason::from_attributes(&letters[0].attributes).expect("dead letters say why");
    assert_eq!(reason.code, "bad_row");
    assert!(reason.detail.contains("row 3, field id"), "{reason:?}");
    assert_eq!(system.rows().await?, 0);
    importer.stop().await;

    system.configure("", "on_bad_row = \"quarantine\"")?;
    let _importer = system.importer("i-2")?;
    system.send(&letters[0].body).await?;
    system.until("the other rows are there", async || Ok(system.rows().await? == 9)).await?;
    system.drained().await?;
    system.assert_rows(9).await?;
    let rejected = system
        .number(
            "SELECT count(*) FROM weirgate.rejected_row r JOIN weirgate.object o ON o.id = r.object
             WHERE r.ordinal = 3 AND r.record LIKE '%\"n\":3%' AND r.reason LIKE 'field id:%'
               AND o.rejected_rows = 1",
        )
        .await?;
    assert_eq!(rejected, 1);
    Ok(())
}

async fn masks_and_reader_schema(name: &str, database: DatabaseKind) -> Result<()> {
    let system = system(name, database, Tuning::default()).await?;
    let folder = tempfile::tempdir()?;
    let schema = folder.path().join("reader.avsc");
    std::fs::write(&schema, READER_SCHEMA)?;
    let feed =
        format!("schema = \"file:{}\"\ncolumns.id = {{ mask = \"sha256\" }}", schema.display());
    system.configure("mask_salt = \"pepper\"", &feed)?;
    let importer = system.importer("i-1")?;
    system.put(&key("one"), file("one", 10, Codec::Null)).await?;
    system.until("the rows are there", async || Ok(system.rows().await? == 10)).await?;
    system.drained().await?;
    system.assert_rows(10).await?;
    // As `printf 'pepperone-0' | sha256sum` says.
    let hash = "5cdf955d618a03e63dcb344864e581b99b9ad7a907b103fe83c3fe1e8ad0e37e";
    let masked = format!("SELECT count(*) FROM impressions WHERE id = '{hash}' AND n = 0.0");
    assert_eq!(system.number(&masked).await?, 1);
    let defaults = system.number("SELECT count(*) FROM impressions WHERE source = 'web'").await?;
    assert_eq!(defaults, 10);
    assert!(!importer.log().contains("pepper"), "the salt is a secret");
    Ok(())
}

/// SIGTERM: what runs is finished, what waits is given back at once, the exit code is zero.
async fn drain(name: &str, database: DatabaseKind) -> Result<()> {
    let tuning = Tuning {
        visibility: Duration::from_secs(600),
        lease: Duration::from_secs(600),
        slots: 1,
        ..Tuning::default()
    };
    let system = system(name, database, tuning).await?;
    let rows = 250_000;
    for object in 0..4 {
        let name = format!("o{object}");
        system.put(&key(&name), file(&name, rows, Codec::Null)).await?;
    }
    let mut first = system.importer("i-first")?;
    in_transaction(&system, database).await?;
    let status = first.child.stop(Signal::TERM, Duration::from_secs(20)).await;
    assert!(status.success(), "{status}:\n{}", first.log());
    // With leases of ten minutes, only what was released can be seen again.
    let depth = system.depth().await?;
    assert_eq!(depth.in_flight, 0, "{depth:?}");
    let committed = u64::try_from(committed(&system).await?)?;
    assert!((1..4).contains(&committed), "{committed} committed before the drain ended");
    system.assert_rows(committed * rows).await?;

    let _second = system.importer("i-second")?;
    system.drained().await?;
    system.assert_rows(4 * rows).await?;
    Ok(())
}

/// A role that may write the ledger, but make no table.
#[test]
fn a_missing_grant_is_named_and_loses_nothing() -> Result<()> {
    run(async {
        let system = system("grants", DatabaseKind::Postgres, Tuning::default()).await?;
        let (code, said) = system.weirgate(&["status"]).await?;
        assert_eq!(code, 1, "a database without a ledger is said to have none: {said}");
        let owner = system.importer("i-owner")?;
        system
            .until("the ledger is there", async || {
                Ok(committed(&system).await.is_ok() && owner.log().contains("importing"))
            })
            .await?;
        owner.stop().await;
        for statement in [
            "CREATE ROLE limited LOGIN PASSWORD 'limited'",
            "GRANT USAGE ON SCHEMA weirgate TO limited",
            "GRANT ALL ON ALL TABLES IN SCHEMA weirgate TO limited",
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA weirgate TO limited",
        ] {
            system.execute(statement).await?;
        }
        let (_, host) = system.fleet.database.split_once('@').expect("the URL names a user");
        let limited = format!("postgres://limited:limited@{host}");
        let importer = system.importer_with("i-limited", &[("WEIRGATE_DATABASE", &limited)])?;
        system.put(&key("one"), file("one", 10, Codec::Null)).await?;
        let letters = async || Ok(system.dead_letter_queue().depth().await?.total() == 1);
        system.until("the object is dead-lettered", letters).await?;
        importer.stop().await;
        let (_, list) = system.weirgate(&["dlq", "list"]).await?;
        assert!(list.contains("no_permission"), "{list}");

        // Once the grant is there, a replay brings the rows.
        system.execute("GRANT CREATE ON SCHEMA public TO limited").await?;
        let _importer = system.importer_with("i-granted", &[("WEIRGATE_DATABASE", &limited)])?;
        let (code, said) = system.weirgate(&["dlq", "replay", "--all", "--yes"]).await?;
        assert_eq!(code, 0, "{said}");
        system.until("the rows are there", async || Ok(system.rows().await? == 10)).await?;
        system.drained().await?;
        system.assert_rows(10).await?;
        assert_eq!(system.dead_letters().await?.len(), 0);
        Ok(())
    })
}

/// What is wrong with the configuration is said before anything starts.
#[test]
fn wrong_configuration_is_refused_with_its_line() -> Result<()> {
    run(async {
        let system = system("configuration", DatabaseKind::Sqlite, Tuning::default()).await?;
        let text = std::fs::read_to_string(&system.fleet.config)?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("weirgate.toml");
        std::fs::write(&path, text.replace("objects =", "object ="))?;
        let path = path.to_str().unwrap_or_default();
        let (code, said) = system.program("importer", &["--config", path], &[]).await?;
        assert_eq!(code, 2, "{said}");
        assert!(
            said.contains("unknown key `object`") && said.contains("did you mean `objects`?"),
            "{said}"
        );

        let (code, said) = system.program("importer", &["--fleet", "nobody"], &[]).await?;
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("no fleet `nobody`"), "{said}");

        let variable =
            format!("WEIRGATE_FLEET_{}_QUEUE", system.fleet.name.to_uppercase().replace('-', "_"));
        let url = system.fleet.data_plane.queue_url.replace(&system.fleet.name, "no-such-queue");
        let (code, said) = system.program("importer", &[], &[(&variable, &url)]).await?;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no-such-queue"), "{said}");
        Ok(())
    })
}

async fn committed(system: &System) -> Result<i64> {
    let count = "SELECT count(*) FROM weirgate.object WHERE state = 'committed'";
    Ok(system.number(count).await.unwrap_or(0))
}

/// Waits until an importer is in the middle of writing rows. The window is as long as the import:
/// some tenths of a second for the objects used here.
async fn in_transaction(system: &System, database: DatabaseKind) -> Result<()> {
    match database {
        DatabaseKind::Postgres => {
            // A connection per question would take longer than the answer.
            let connection = Mutex::new(PgConnection::connect(&system.fleet.database).await?);
            let copying = "SELECT count(*) FROM pg_stat_progress_copy
                           WHERE datname = current_database() AND tuples_processed > 0";
            system
                .until("an import copies its rows", async || {
                    let mut connection = connection.lock().await;
                    let count: i64 =
                        sqlx::query_scalar(copying).fetch_one(&mut *connection).await?;
                    Ok(count > 0)
                })
                .await
        }
        // SQLite's write-ahead log grows while the transaction spills its rows to it.
        DatabaseKind::Sqlite => {
            let file = system.fleet.database.trim_start_matches("sqlite://");
            let log = format!("{file}-wal");
            system
                .until("an import writes its rows", async || {
                    Ok(std::fs::metadata(&log).is_ok_and(|log| log.len() > 4 << 20))
                })
                .await
        }
    }
}
