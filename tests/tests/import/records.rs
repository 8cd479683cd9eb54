//! Records inside messages instead of files.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Codec, GenericSingleObjectWriter, Schema};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use weirgate_common::dead_letter::Reason;
use weirgate_local::fleet::Tuning;
use weirgate_tests::DatabaseKind;
use weirgate_tests::avro::{SCHEMA, WIDER_SCHEMA, file, record};

/// The record as a message's text, in single-object encoding.
fn single_object(id: &str) -> Result<String> {
    let schema = Schema::parse_str(SCHEMA)?;
    let mut writer = GenericSingleObjectWriter::new_with_capacity(&schema, 64)?;
    let mut message = Vec::new();
    writer.write_value(record(SCHEMA, &schema, id, 0).into(), &mut message)?;
    Ok(STANDARD.encode(message))
}

/// The record as a message's text, in the framing of a schema registry.
fn framed(registry_id: u32, json: &str, id: &str) -> Result<String> {
    let schema = Schema::parse_str(json)?;
    let writer = GenericDatumWriter::builder(&schema).build()?;
    let mut message = vec![0];
    message.extend(registry_id.to_be_bytes());
    message.extend(writer.write_value_to_vec(record(json, &schema, id, 0))?);
    Ok(STANDARD.encode(message))
}

pub(super) async fn records(name: &str, database: DatabaseKind) -> Result<()> {
    let system = super::system(name, database, Tuning::default()).await?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("7.avsc"), SCHEMA)?;
    let text = std::fs::read_to_string(&system.fleet.config)?;
    let feed = format!(
        "[feed.records]\nfleet = \"{}\"\nobjects = \"messages:\"\ntable = \"impressions\"\n",
        system.fleet.name
    );
    std::fs::write(&system.fleet.config, format!("{text}\n{feed}"))?;
    let schemas = folder.path().to_str().context("a path in UTF-8")?;
    let _importer = system.importer_with("i-1", &[("WEIRGATE_IMPORTER_SCHEMAS", schemas)])?;

    // Raw, through SNS, and what SNS delivers twice. The feed of objects goes on beside them.
    system.put(&super::key("object"), file("object", 10, Codec::Snappy)).await?;
    system.send(&framed(7, SCHEMA, "framed")?).await?;
    system.send(&STANDARD.encode(file("inline", 5, Codec::Snappy))).await?;
    let topic = &system.fleet.data_plane.topic_arn;
    let publish = system.clients.sns.publish().topic_arn(topic);
    publish.message(single_object("published")?).send().await?;
    let envelope = serde_json::json!({
        "Type": "Notification", "MessageId": "twice", "TopicArn": topic,
        "Timestamp": "2026-03-01T12:00:00.000Z", "Message": single_object("twice")?,
    });
    system.send(&envelope.to_string()).await?;
    system.send(&envelope.to_string()).await?;
    let there = async || Ok(system.rows().await? == 18);
    system.until("the records are there", there).await?;
    system.drained().await?;
    system.assert_rows(18).await?;

    // A schema that nobody knows yet, and one that only the ledger knows.
    system.send(&framed(8, WIDER_SCHEMA, "unknown")?).await?;
    let letters = async || Ok(system.dead_letter_queue().depth().await?.total() == 1);
    system.until("the record is dead-lettered", letters).await?;
    let letters = system.dead_letters().await?;
    let reason = Reason::from_attributes(&letters[0].attributes).context("a reason")?;
    assert_eq!(reason.code, "unknown_schema", "{reason:?}");
    assert!(reason.detail.contains("8.avsc"), "{reason:?}");
    std::fs::write(folder.path().join("8.avsc"), WIDER_SCHEMA)?;
    // The letter twice, as after a lost reply: replayed under its first name, it is loaded once.
    let letter = (letters[0].body.clone(), letters[0].attributes.clone());
    let sent = system.dead_letter_queue().send(&[letter.clone(), letter]).await;
    sent.into_iter().collect::<Result<Vec<()>, _>>()?;
    let (code, text) = system.weirgate(&["dlq", "replay", "--all", "--yes"]).await?;
    assert_eq!(code, 0, "{text}");
    system.until("the record is there", async || Ok(system.rows().await? == 19)).await?;
    system.drained().await?;
    system.assert_rows(19).await?;

    // What is neither JSON nor a record says so.
    let queue = system.queue();
    queue.send(&[("hello, world".to_owned(), BTreeMap::new())]).await;
    // Beside the letter that was looked at above.
    let letters = async || Ok(system.dead_letter_queue().depth().await?.total() == 2);
    system.until("it is dead-lettered", letters).await?;
    let letters = system.dead_letters().await?;
    let mut reasons = letters.iter().filter_map(|it| Reason::from_attributes(&it.attributes));
    let reason = reasons.find(|it| it.code == "bad_body").context("a reason")?;
    assert!(reason.detail.contains("not base64"), "{reason:?}");

    let (code, text) = system.weirgate(&["audit"]).await?;
    assert_eq!(code, 0, "{text}");
    Ok(())
}
