//! `weirgate schema`: the DDL that a file's schema would run on its feed's table, before any file
//! of it is published.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use weirgate_avro::container::{MAGIC, Reader};
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::Target;
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{Column, Dialect};
use weirgate_common::config::{Config, Database, Feed, WriteMode};
use weirgate_common::fault::chain;
use weirgate_common::table;

use crate::address::Address;
use crate::screen::Screen;
use crate::world::World;

/// The command line leaves open what is meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unclear(String);

#[derive(Debug, serde::Serialize)]
struct Answer {
    feed: String,
    table: String,
    /// Whether the table is there already.
    exists: bool,
    /// To be run in this order; none when the rows fit into the table as it is.
    statements: Vec<String>,
    /// What the importer would warn of.
    notes: Vec<String>,
    /// Why the rows will not fit, whatever is run.
    misfit: Option<String>,
}

/// True when rows of the file's schema fit into the table once the statements have run.
pub(crate) async fn schema(
    world: &World,
    screen: &Screen,
    file: &Path,
    feed: Option<&str>,
    object: Option<&Address>,
) -> Result<bool> {
    let (name, feed) = choose(&world.config, feed, object)?;
    let captures = captures(name, feed, file, object)?;
    let (writer, limits) = (read(file)?, Limits::default());
    let reader = match &feed.schema {
        Some(json) => Some(Schema::parse(json, &limits)?),
        None => None,
    };
    let found = look(world, feed).await?;
    let existing = &found.columns;
    let dialect = match world.config.database {
        Database::Postgres { .. } => Dialect::Postgres,
        Database::Sqlite { .. } => Dialect::Sqlite,
    };
    let masks = table::masks(feed);
    let planned = || -> Result<(Vec<String>, Vec<String>)> {
        let wanted = table::wanted(feed, reader.as_ref().unwrap_or(&writer), &captures)?;
        let mut statements = table::ddl(dialect, feed, existing, &wanted)?;
        if !existing.is_empty() {
            table::check_key(feed, &wanted, &found.unique_keys)?;
        }
        if feed.write == WriteMode::Cdc {
            let key = table::key_columns(dialect, existing, &wanted);
            statements.extend(table::deleted_ddl(dialect, feed, &found.deleted, &key)?);
        }
        let target = Target { dialect, columns: &wanted.columns, masks: &masks, limits: &limits };
        let plan = table::plan(feed, &writer, reader.as_ref(), &target)?;
        Ok((statements, plan.notes()))
    };
    let ((statements, notes), misfit) = match planned() {
        Ok(planned) => (planned, None),
        Err(misfit) => (Default::default(), Some(chain(misfit.as_ref()))),
    };
    let answer = Answer {
        feed: name.to_owned(),
        table: feed.table.to_string(),
        exists: !existing.is_empty(),
        statements,
        notes,
        misfit,
    };
    show(screen, file, &answer)?;
    Ok(answer.misfit.is_none())
}

fn choose<'c>(
    config: &'c Config,
    name: Option<&str>,
    object: Option<&Address>,
) -> Result<(&'c str, &'c Feed), Unclear> {
    let known = || config.feeds.keys().cloned().collect::<Vec<_>>().join(", ");
    let mut found = config
        .feeds
        .iter()
        .filter(|(feed, _)| name.is_none_or(|name| name == *feed))
        .filter(|(_, feed)| object.is_none_or(|o| feed.objects.matches(&o.bucket, &o.key)));
    match (found.next(), found.next(), name, object) {
        (Some((name, feed)), None, _, _) => Ok((name, feed)),
        (Some(_), Some(_), _, _) => Err(Unclear(format!("say which --feed: {}", known()))),
        (None, _, Some(name), Some(object)) if config.feeds.contains_key(name) => {
            let takes = &config.feeds[name].objects;
            Err(Unclear(format!("feed {name} does not take {object}; it takes {takes}")))
        }
        (None, _, Some(name), _) => {
            Err(Unclear(format!("there is no feed {name}; there are: {}", known())))
        }
        (None, _, None, Some(object)) => {
            Err(Unclear(format!("no feed takes {object}; there are: {}", known())))
        }
        (None, _, None, None) => Err(Unclear("the configuration has no feed".to_owned())),
    }
}

/// The captures with a value each, which decides between `date` and `text`: from the object's
/// key, or from the end of the file's path where it is laid out like the keys.
fn captures(
    name: &str,
    feed: &Feed,
    file: &Path,
    object: Option<&Address>,
) -> Result<Vec<(String, String)>, Unclear> {
    let pattern = &feed.objects;
    if pattern.captures().is_empty() {
        return Ok(Vec::new());
    }
    let path = file.to_string_lossy();
    let ends = path.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| &path[at + 1..]);
    let mut keys: Vec<&str> = object.map(|object| object.key.as_str()).into_iter().collect();
    if object.is_none() {
        keys.push(&path);
        keys.extend(ends);
    }
    match keys.into_iter().find_map(|key| pattern.capture_values(pattern.bucket(), key)) {
        Some(values) => {
            let values = values.into_iter().map(str::to_owned);
            Ok(pattern.captures().iter().cloned().zip(values).collect())
        }
        None => Err(Unclear(format!(
            "feed {name} makes columns of parts of the key ({}); say --object s3://…, an object of \
             {pattern}, so that their types can be told",
            pattern.captures().join(", ")
        ))),
    }
}

/// The schema of an object container file, or the JSON of one.
fn read(file: &Path) -> Result<Schema> {
    let limits = Limits::default();
    let mut bytes = Vec::new();
    let opened = File::open(file).and_then(|input| {
        // No header is longer.
        input.take(limits.header_bytes as u64).read_to_end(&mut bytes)
    });
    opened.with_context(|| format!("cannot read {}", file.display()))?;
    let name = || format!("{} is no Avro file and no schema", file.display());
    if !bytes.starts_with(MAGIC) {
        let json = str::from_utf8(&bytes).with_context(name)?;
        return Schema::parse(json, &limits).with_context(name);
    }
    let mut reader = Reader::new(limits);
    reader.push(&bytes);
    if let Some(header) = reader.read_header().with_context(name)? {
        return Ok(header.writer.schema.clone());
    }
    reader.finish().with_context(name)?;
    bail!("{} ends inside its header", file.display())
}

/// What is there already.
#[derive(Default)]
struct Found {
    columns: Vec<Column>,
    unique_keys: Vec<Vec<String>>,
    /// Columns of the table that remembers deleted rows.
    deleted: Vec<Column>,
}

async fn look(world: &World, feed: &Feed) -> Result<Found> {
    match &world.config.database {
        // The first importer makes it.
        Database::Sqlite { path } if !path.exists() => Ok(Found::default()),
        _ => {
            let database = world.database().await?;
            Ok(Found {
                columns: database.table_columns(&feed.table).await?,
                unique_keys: database.unique_keys(&feed.table).await?,
                deleted: database.table_columns(&feed.table.of_deleted()).await?,
            })
        }
    }
}

/// SQL, so that it can be piped to the database's own client.
fn show(screen: &Screen, file: &Path, answer: &Answer) -> Result<()> {
    if screen.json {
        return Ok(screen.json(answer)?);
    }
    let (file, Answer { feed, table, .. }) = (file.display(), answer);
    if let Some(misfit) = &answer.misfit {
        screen
            .note(&format!("weirgate: {file} does not fit table {table} of feed {feed}: {misfit}"));
        return Ok(());
    }
    let what = match (answer.statements.is_empty(), answer.exists) {
        (true, _) => "fits as it is",
        (false, true) => "would be altered",
        (false, false) => "would be made",
    };
    let mut sql = format!("-- {file}: table {table} of feed {feed} {what}\n");
    for note in &answer.notes {
        sql.push_str(&format!("-- note: {note}\n"));
    }
    for statement in &answer.statements {
        sql.push_str(&format!("{statement};\n"));
    }
    Ok(screen.result(&sql)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn config() -> Config {
        let text = r#"
            database = "sqlite://w.db"
            [fleet.ads]
            queue = "https://sqs.eu-west-1.amazonaws.com/1/ads"
            [feed.a]
            fleet = "ads"
            objects = "s3://b/a/dt={dt}/**"
            table = "a"
            [feed.b]
            fleet = "ads"
            objects = "s3://b/b/**"
            table = "b"
        "#;
        Config::parse(text, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn the_feed_is_named_or_follows_from_the_object() {
        let config = config();
        let address = |text: &str| text.parse::<Address>().unwrap();
        assert_eq!(choose(&config, Some("b"), None).unwrap().0, "b");
        let object = address("s3://b/a/dt=2026-03-01/x");
        assert_eq!(choose(&config, None, Some(&object)).unwrap().0, "a");
        for (name, object, said) in [
            (None, None, "say which --feed: a, b"),
            (Some("c"), None, "there is no feed c"),
            (None, Some("s3://b/c/x"), "no feed takes s3://b/c/x"),
            (Some("b"), Some("s3://b/a/dt=1/x"), "it takes s3://b/b/**"),
        ] {
            let error = choose(&config, name, object.map(address).as_ref()).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn captures_come_from_the_object_or_from_a_path_laid_out_like_it() {
        let config = config();
        let captures = |path: &str, object: Option<&str>| {
            let object = object.map(|text| text.parse::<Address>().unwrap());
            captures("a", &config.feeds["a"], Path::new(path), object.as_ref())
        };
        let dt = Ok(vec![("dt".to_owned(), "2026-03-01".to_owned())]);
        let text = |given: Result<_, Unclear>| given.map_err(|error| error.to_string());
        assert_eq!(text(captures("out/a/dt=2026-03-01/x.avro", None)), dt);
        assert_eq!(text(captures("x.avro", Some("s3://b/a/dt=2026-03-01/x"))), dt);
        assert!(captures("x.avro", None).unwrap_err().to_string().contains("--object"));
    }
}
