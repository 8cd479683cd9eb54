//! The schemas of records that come in messages: from a folder, and from the ledger, which keeps
//! every schema that was ever imported.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use bytes::Bytes;
use weirgate_avro::container::{KnownSchemas, MAGIC};
use weirgate_avro::inline::{self, SchemaKey};
use weirgate_avro::limits::Limits;
use weirgate_avro::schema::Schema;
use weirgate_common::fault;
use weirgate_common::ledger::Ledger;

use crate::failure::Failure;

/// More schemas than this are made up per record; the memory is then worth more than the lookup.
const KNOWN_MAX: usize = 1_000;

pub struct Schemas {
    folder: Option<PathBuf>,
    ledger: Ledger,
    known: Mutex<HashMap<SchemaKey, Arc<str>>>,
    /// The schemas of files.
    pub(crate) parsed: Arc<KnownSchemas>,
}

impl Schemas {
    /// Reads the folder, so that a wrong one is found before the first message.
    pub async fn open(folder: Option<PathBuf>, ledger: Ledger) -> anyhow::Result<Self> {
        let schemas = Schemas { folder, ledger, known: Mutex::default(), parsed: Arc::default() };
        if let Some(folder) = &schemas.folder {
            let found = schemas.read(folder.clone()).await;
            let found = found.with_context(|| {
                format!("cannot read the folder importer.schemas = {}", folder.display())
            })?;
            tracing::info!(folder = %folder.display(), schemas = found.len(), "schemas read");
        }
        Ok(schemas)
    }

    /// The record as a file, which it may be already.
    pub async fn as_file(&self, name: &str, content: &Bytes) -> Result<Bytes, Failure> {
        if content.starts_with(MAGIC) {
            return Ok(content.clone());
        }
        let (key, datum) = inline::unframe(content)
            .map_err(|error| Failure::permanent("bad_body", format!("{name}: {error}")))?;
        match self.find(key).await? {
            Some(schema) => Ok(inline::container(&schema, datum).into()),
            None => Err(self.unknown(name, key)),
        }
    }

    async fn find(&self, key: SchemaKey) -> Result<Option<Arc<str>>, Failure> {
        if let Some(schema) = self.lock().get(&key) {
            return Ok(Some(schema.clone()));
        }
        // Somebody may have added the file since: that is how an unknown schema is cured.
        if let Some(folder) = &self.folder {
            let found = self.read(folder.clone()).await;
            let mut found = found.map_err(|error| {
                let detail = format!("cannot read {}: {error}", folder.display());
                Failure::new(fault::Fault::Transient, "schemas_unreadable", detail)
            })?;
            if let Some(schema) = found.remove(&key) {
                return Ok(Some(self.remember(key, schema)));
            }
        }
        let SchemaKey::Fingerprint(fingerprint) = key else { return Ok(None) };
        let found = self.ledger.schema(fingerprint).await.map_err(|error| {
            Failure::new(error.fault(), "schemas_unreadable", fault::chain(&error))
        })?;
        Ok(found.map(|schema| self.remember(key, schema.into())))
    }

    async fn read(&self, folder: PathBuf) -> std::io::Result<HashMap<SchemaKey, Arc<str>>> {
        let read = tokio::task::spawn_blocking(move || read_folder(&folder));
        read.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
    }

    fn remember(&self, key: SchemaKey, schema: Arc<str>) -> Arc<str> {
        let mut known = self.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(key, schema.clone());
        schema
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SchemaKey, Arc<str>>> {
        // The map is whole after every statement, whoever panicked while holding it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unknown(&self, name: &str, key: SchemaKey) -> Failure {
        let folder = match &self.folder {
            Some(folder) => folder.display().to_string(),
            None => "a folder that importer.schemas names".to_owned(),
        };
        let detail = match key {
            SchemaKey::Fingerprint(fingerprint) => format!(
                "{name}: no schema with the fingerprint {:016x} (CRC-64-AVRO) is known; put it as \
                 NAME.avsc into {folder}, or import a file that has it, then replay",
                fingerprint.cast_unsigned()
            ),
            SchemaKey::Registry(id) => format!(
                "{name}: no schema with the registry's id {id} is known; put it as {id}.avsc into \
                 {folder}, then replay"
            ),
        };
        Failure::permanent("unknown_schema", detail)
    }
}

/// Every `*.avsc` of the folder under its fingerprint, and those that are named by a number under
/// the registry's id as well. One that is no schema is told and left out: it must not keep the
/// others from their records.
fn read_folder(folder: &Path) -> std::io::Result<HashMap<SchemaKey, Arc<str>>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "avsc") {
            continue;
        }
        let read = std::fs::read_to_string(&path).context("unreadable").and_then(|json| {
            let schema = Schema::parse(&json, &Limits::default())?;
            Ok((Arc::from(json), schema.fingerprint()))
        });
        let (json, fingerprint): (Arc<str>, i64) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(file = %path.display(), "no schema: {error:#}");
                continue;
            }
        };
        let id = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        found.extend(id.map(|id| (SchemaKey::Registry(id), json.clone())));
        found.insert(SchemaKey::Fingerprint(fingerprint), json);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use weirgate_common::config::Database;

    use super::*;

    const JSON: &str = r#"{"type":"record","name":"R","fields":[{"name":"id","type":"long"}]}"#;

    #[tokio::test]
    async fn a_record_finds_its_schema_in_the_folder_or_in_the_ledger() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite { path: folder.path().join("w.db") };
        let ledger = Ledger::open(&database, 1).await.unwrap();
        let schemas = Schemas::open(Some(folder.path().into()), ledger.clone()).await.unwrap();
        let fingerprint = Schema::parse(JSON, &Limits::default()).unwrap().fingerprint();
        let single = Bytes::from([&[0xc3, 1][..], &fingerprint.to_le_bytes(), &[6]].concat());
        let framed = Bytes::from_static(&[0, 0, 0, 0, 7, 6]);

        let unknown = schemas.as_file("messages:m", &single).await.unwrap_err();
        assert_eq!(unknown.code, "unknown_schema");
        assert!(unknown.detail.contains(&format!("{:016x}", fingerprint.cast_unsigned())));
        ledger.record_schema(fingerprint, JSON, weirgate_common::clock::now()).await.unwrap();
        let file = schemas.as_file("messages:m", &single).await.unwrap();
        assert_eq!(file, inline::container(JSON, &[6]));

        let unknown = schemas.as_file("messages:m", &framed).await.unwrap_err();
        assert!(unknown.detail.contains("7.avsc"));
        std::fs::write(folder.path().join("broken.avsc"), "{").unwrap();
        std::fs::write(folder.path().join("7.avsc"), JSON).unwrap();
        assert_eq!(schemas.as_file("messages:m", &framed).await.unwrap(), file);
        assert_eq!(schemas.as_file("messages:m", &file).await.unwrap(), file);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_told_at_once() {
        let database = Database::Sqlite { path: ":memory:".into() };
        let ledger = Ledger::open(&database, 1).await.unwrap();
        let error = Schemas::open(Some("no/such".into()), ledger).await.err().unwrap();
        assert!(format!("{error:#}").contains("no/such"));
    }
}
