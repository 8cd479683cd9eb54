//! Tables under schemas that change.

use anyhow::{Context as _, Result};
use apache_avro::Codec;
use weirgate_common::dead_letter::Reason;
use weirgate_local::fleet::Tuning;
use weirgate_tests::DatabaseKind;
use weirgate_tests::avro::{NARROW_SCHEMA, OTHER_SCHEMA, SCHEMA, WIDER_SCHEMA, file, file_with};

/// Three versions of the schema at the same time, for two importers; either may come first.
pub(super) async fn versions_at_once(name: &str, database: DatabaseKind) -> Result<()> {
    let system = super::system(name, database, Tuning::default()).await?;
    system.configure("", "evolve = \"widen\"")?;
    let schemas = [NARROW_SCHEMA, SCHEMA, WIDER_SCHEMA];
    for object in 0..24 {
        let name = format!("o{object}");
        let bytes = file_with(schemas[object % 3], &name, 10, Codec::Null);
        system.put(&super::key(&name), bytes).await?;
    }
    let _importers = [system.importer("i-1")?, system.importer("i-2")?];
    system.until("all rows are there", async || Ok(system.rows().await? == 240)).await?;
    system.drained().await?;
    system.assert_rows(240).await?;
    assert_eq!(system.dead_letters().await?.len(), 0);
    let wide = system.number("SELECT count(*) FROM impressions WHERE country = 'de'").await?;
    assert_eq!(wide, 80);
    let prices = system.number("SELECT count(*) FROM impressions WHERE price = 2.25").await?;
    assert_eq!(prices, 24, "each object's last row, whatever its schema");
    Ok(())
}

/// `weirgate schema` before the table is there, when it fits, when it must change, and when no
/// change would do.
pub(super) async fn ddl_told(name: &str, database: DatabaseKind) -> Result<()> {
    let system = super::system(name, database, Tuning::default()).await?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str, bytes: &[u8]| -> Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path.to_str().context("a path in UTF-8")?.to_owned())
    };
    let object = format!("s3://{}/{}", system.fleet.data_plane.bucket, super::key("one"));
    let told = async |file: &str| system.weirgate(&["schema", file, "--object", &object]).await;

    let one = path("one.avro", &file("one", 10, Codec::Null))?;
    let (code, text) = system.weirgate(&["schema", &one]).await?;
    assert!(code == 2 && text.contains("--object"), "{text}");
    let (code, text) = told(&one).await?;
    assert!(code == 0 && text.contains("create table") && text.contains("\"dt\""), "{text}");
    if database == DatabaseKind::Postgres {
        // What is told is what is run: the importer then finds nothing to do.
        for statement in text
            .lines()
            .filter(|line| !line.starts_with("--"))
            .collect::<Vec<_>>()
            .join("\n")
            .split_terminator(";\n")
        {
            system.execute(statement).await?;
        }
        let (_, text) = told(&one).await?;
        assert!(text.contains("fits as it is"), "{text}");
    }

    let _importer = system.importer("i-1")?;
    system.put(&super::key("one"), file("one", 10, Codec::Null)).await?;
    system.until("the rows are there", async || Ok(system.rows().await? == 10)).await?;
    let (code, text) = told(&path("same.avsc", SCHEMA.as_bytes())?).await?;
    assert!(code == 0 && text.contains("fits as it is"), "{text}");
    let (code, text) = told(&path("wider.avsc", WIDER_SCHEMA.as_bytes())?).await?;
    assert!(code == 0 && text.contains("alter table") && text.contains("country"), "{text}");

    let other = path("other.avsc", OTHER_SCHEMA.as_bytes())?;
    let (code, text) = told(&other).await?;
    assert!(code == 1 && text.contains("field n is text"), "{text}");
    let (code, text) = system.weirgate(&["schema", &other, "--object", &object, "--json"]).await?;
    let answer: serde_json::Value = serde_json::from_str(&text)?;
    assert!(code == 1 && answer["misfit"].is_string() && answer["exists"] == true, "{text}");
    Ok(())
}

pub(super) async fn schemas(name: &str, database: DatabaseKind) -> Result<()> {
    let system = super::system(name, database, Tuning::default()).await?;
    let _importer = system.importer("i-1")?;
    system.put(&super::key("one"), file("one", 10, Codec::Null)).await?;
    system.until("the table is there", async || Ok(system.rows().await? == 10)).await?;
    // One more field becomes a column; older files go on to fit.
    system.put(&super::key("wider"), file_with(WIDER_SCHEMA, "wider", 10, Codec::Null)).await?;
    system.until("the wider rows are there", async || Ok(system.rows().await? == 20)).await?;
    system.put(&super::key("two"), file("two", 10, Codec::Null)).await?;
    system.until("the older schema still fits", async || Ok(system.rows().await? == 30)).await?;
    let countries = system.number("SELECT count(country) FROM impressions").await?;
    assert_eq!(countries, 10);
    // A field of another type is refused, and says which.
    system.put(&super::key("other"), file_with(OTHER_SCHEMA, "other", 10, Codec::Null)).await?;
    system
        .until("it is dead-lettered", async || {
            Ok(system.dead_letter_queue().depth().await?.total() == 1)
        })
        .await?;
    system.drained().await?;
    system.assert_rows(30).await?;
    let letters = system.dead_letters().await?;
    let reason = Reason::from_attributes(&letters[0].attributes).expect("dead letters say why");
    assert_eq!(reason.code, "incompatible_schema");
    assert!(reason.detail.contains("field n") && reason.detail.contains("text"), "{reason:?}");
    Ok(())
}
