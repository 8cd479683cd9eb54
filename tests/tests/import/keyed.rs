//! Rows written by key, by the whole system.

use anyhow::{Context as _, Result};
use apache_avro::Codec;
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
