//! Rows written by key, by the whole system.

use anyhow::{Context as _, Result};
use apache_avro::types::Value;
use apache_avro::{Codec, Schema, Writer};
use weirgate_local::fleet::Tuning;
use weirgate_tests::DatabaseKind;
use weirgate_tests::avro::{SCHEMA, WIDER_SCHEMA, file, file_with};

pub(super) async fn upsert(name: &str, database: DatabaseKind) -> Result<()> {
    let tuning = Tuning { write: "upsert".to_owned(), ..Tuning::default() };
    let system = super::system(name, database, tuning).await?;
    system.configure("", "key = [\"id\"]")?;
    let _importers = [system.importer("i-1")?, system.importer("i-2")?];
    // Objects of other keys have the same rows, the later one more of them and a column more.
    system.put(&super::key("first"), file("a", 10, Codec::Null)).await?;
    system.until("the rows are there", async || Ok(system.rows().await? == 10)).await?;
    system.put(&super::key("second"), file_with(WIDER_SCHEMA, "a", 12, Codec::Null)).await?;
    system.until("more rows are there", async || Ok(system.rows().await? == 12)).await?;
    system.drained().await?;
    let count = async |condition: &str| {
        system.number(&format!("SELECT count(*) FROM impressions WHERE {condition}")).await
    };
    assert_eq!(count("country = 'de'").await?, 12, "the newer object's rows");
    // Overwritten by fewer: its rows are the newest again, nobody's are deleted.
    system.put(&super::key("first"), file("a", 3, Codec::Null)).await?;
    system
        .until("they are written over", async || Ok(count("country IS NULL").await? == 3))
        .await?;
    system.drained().await?;
    assert_eq!(system.rows().await?, 12);
    assert_eq!(system.dead_letters().await?.len(), 0);

    let (code, text) = system.weirgate(&["audit", "--grace", "0s"]).await?;
    assert!(code == 0 && text.contains("written by key"), "{text}");
    system
        .number("UPDATE impressions SET _object = 999 WHERE id = 'a-9' RETURNING _object")
        .await?;
    let (code, text) = system.weirgate(&["audit", "--grace", "0s"]).await?;
    assert!(code == 1 && text.contains("_object 999: 1 of no committed object"), "{text}");

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("schema.avsc");
    std::fs::write(&path, SCHEMA)?;
    let path = path.to_str().context("a path in UTF-8")?;
    let object = format!("s3://{}/{}", system.fleet.data_plane.bucket, super::key("x"));
    let (code, text) = system.weirgate(&["schema", path, "--object", &object]).await?;
    assert!(code == 0 && text.contains("fits as it is"), "{text}");
    Ok(())
}

/// As Debezium's connector for PostgreSQL writes them.
const CHANGES: &str = r#"{"type": "record", "name": "Envelope", "fields": [
    {"name": "before", "type": ["null", {"type": "record", "name": "Value", "fields": [
        {"name": "id", "type": "string"}, {"name": "n", "type": "long"}]}]},
    {"name": "after", "type": ["null", "Value"]},
    {"name": "source", "type": {"type": "record", "name": "Source", "fields": [
        {"name": "connector", "type": "string"}, {"name": "ts_ms", "type": "long"},
        {"name": "lsn", "type": ["null", "long"]}]}},
    {"name": "op", "type": "string"}]}"#;

/// Operation, key, value, and the position in the source's log.
type Change = (&'static str, &'static str, i64, i64);

fn changes_file(changes: &[Change]) -> Result<Vec<u8>> {
    let schema = Schema::parse_str(CHANGES)?;
    let mut writer = Writer::new(&schema, Vec::new())?;
    for (op, id, n, lsn) in changes {
        let text = |text: &str| Value::String(text.to_owned());
        let row =
            Value::Record(vec![("id".to_owned(), text(id)), ("n".to_owned(), Value::Long(*n))]);
        let some = |value: Value| Value::Union(1, Box::new(value));
        let none = || Value::Union(0, Box::new(Value::Null));
        let (before, after) = match *op {
            "d" => (some(row), none()),
            _ => (none(), some(row)),
        };
        let source = Value::Record(vec![
            ("connector".to_owned(), text("postgresql")),
            ("ts_ms".to_owned(), Value::Long(1_700_000_000_000)),
            ("lsn".to_owned(), some(Value::Long(*lsn))),
        ]);
        writer.append_value(Value::Record(vec![
            ("before".to_owned(), before),
            ("after".to_owned(), after),
            ("source".to_owned(), source),
            ("op".to_owned(), text(op)),
        ]))?;
    }
    Ok(writer.into_inner()?)
}

/// Files of changes in the wrong order and more than once, for two importers.
pub(super) async fn changes(name: &str, database: DatabaseKind) -> Result<()> {
    let tuning = Tuning { write: "cdc".to_owned(), ..Tuning::default() };
    let system = super::system(name, database, tuning).await?;
    system.configure("", "key = [\"id\"]")?;
    let files: [&[Change]; 4] = [
        &[("d", "b", 2, 40), ("u", "a", 11, 50), ("c", "c", 3, 60)],
        &[("r", "a", 1, 10), ("r", "b", 2, 10)],
        &[("u", "a", 10, 20), ("d", "c", 3, 70), ("c", "c", 33, 80)],
        &[("c", "d", 4, 90), ("d", "d", 4, 95)],
    ];
    let _importers = [system.importer("i-1")?, system.importer("i-2")?];
    for round in 0..3 {
        for (number, changes) in files.iter().enumerate() {
            let key = super::key(&format!("changes-{round}-{number}"));
            system.put(&key, changes_file(changes)?).await?;
        }
    }
    system.put(&super::key("no-change"), file("a", 10, Codec::Null)).await?;
    system
        .until("all files are imported", async || Ok(super::committed(&system).await? == 12))
        .await?;
    system.drained().await?;
    assert_eq!(system.rows().await?, 2);
    let sum =
        system.number("SELECT CAST(sum(n) AS bigint) FROM impressions WHERE id IN ('a', 'c')");
    assert_eq!(sum.await?, 11 + 33);
    let letters = system.dead_letters().await?;
    assert_eq!(letters.len(), 1, "what is no change");
    Ok(())
}
