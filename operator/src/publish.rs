//! `weirgate publish`: files to S3, the way a producer puts them there.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aws_sdk_s3::primitives::ByteStream;
use tokio::task::JoinSet;
use weirgate_common::clock::monotonic;
use weirgate_common::config::{Config, is_leftover};
use weirgate_common::{aws, fault};

use crate::address::Address;
use crate::screen::Screen;
use crate::text::{bytes, plural, span};
use crate::world::World;

/// S3 takes no more in one upload.
const OBJECT_BYTES_MAX: u64 = 5 << 30;

/// The first bytes of every Avro object-container file.
const AVRO_MAGIC: &[u8; 4] = b"Obj\x01";

/// One upload, decided before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
struct Upload {
    file: PathBuf,
    bucket: String,
    key: String,
    bytes: u64,
    /// The feeds that take the object; none means that nobody will import it.
    feeds: Vec<String>,
}

#[derive(Debug, serde::Serialize)]
struct Published {
    #[serde(flatten)]
    upload: Upload,
    etag: Option<String>,
    error: Option<String>,
}

pub(crate) async fn publish(
    world: &World,
    screen: &Screen,
    files: &[PathBuf],
    destination: &Address,
    parallel: usize,
) -> Result<bool> {
    let uploads = plan(&world.config, files, destination)?;
    for upload in &uploads {
        warn(screen, upload)?;
    }
    let client = aws::s3(&world.sdk);
    let started = monotonic();
    let mut waiting = uploads.iter().cloned();
    let mut running = JoinSet::new();
    let mut done: BTreeMap<String, Published> = BTreeMap::new();
    loop {
        while running.len() < parallel
            && let Some(upload) = waiting.next()
        {
            let client = client.clone();
            running.spawn(async move {
                let (etag, error) = match put(&client, &upload).await {
                    Ok(etag) => (etag, None),
                    Err(error) => (None, Some(error)),
                };
                Published { upload, etag, error }
            });
        }
        let Some(finished) = running.join_next().await else { break };
        let published = finished.context("an upload ended abnormally")?;
        report(screen, &published)?;
        done.insert(published.upload.key.clone(), published);
        screen.progress(&format!("{} of {}", done.len(), plural(uploads.len(), "object")));
    }
    screen.clear_progress();
    let failed = done.values().filter(|published| published.error.is_some()).count();
    if screen.json {
        screen.json(&done.into_values().collect::<Vec<_>>())?;
    } else {
        let total: u64 = done.values().filter(|p| p.error.is_none()).map(|p| p.upload.bytes).sum();
        let mut text = format!(
            "{} published, {} in {}",
            plural(uploads.len() - failed, "object"),
            bytes(total),
            span(monotonic() - started)
        );
        if failed > 0 {
            text.push_str(&format!("; {failed} failed"));
        }
        screen.result(&screen.paint.bold(&text))?;
    }
    Ok(failed == 0)
}

/// Where each file goes. A destination that ends with `/` is a folder; anything else names the
/// one object.
fn plan(config: &Config, files: &[PathBuf], destination: &Address) -> Result<Vec<Upload>> {
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    for file in files {
        let metadata =
            fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_name().with_context(|| format!("{} has no name", file.display()))?;
        if metadata.is_dir() {
            walk(file, &name.to_string_lossy(), &mut found)?;
        } else {
            found.push((file.clone(), name.to_string_lossy().into_owned()));
        }
    }
    let into_folder = destination.key.is_empty() || destination.key.ends_with('/');
    if !into_folder && found.len() > 1 {
        bail!(
            "{} is one object, but there are {} files; end it with / to put them into a folder",
            destination,
            found.len()
        );
    }
    let mut uploads = Vec::with_capacity(found.len());
    let mut taken: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (file, name) in found {
        let key = match into_folder {
            true => format!("{}{name}", destination.key),
            false => destination.key.clone(),
        };
        if let Some(other) = taken.insert(key.clone(), file.clone()) {
            bail!(
                "{} and {} would both become {key}; publish them to different folders",
                other.display(),
                file.display()
            );
        }
        let size =
            fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?.len();
        if size > OBJECT_BYTES_MAX {
            bail!(
                "{} is {}, S3 takes at most {} in one upload; split it",
                file.display(),
                bytes(size),
                bytes(OBJECT_BYTES_MAX)
            );
        }
        let feeds = config
            .feeds
            .iter()
            .filter(|(_, feed)| feed.objects.matches(&destination.bucket, &key))
            .map(|(name, _)| name.clone())
            .collect();
        uploads.push(Upload { file, bucket: destination.bucket.clone(), key, bytes: size, feeds });
    }
    Ok(uploads)
}

/// All files below a folder, in the order of their names.
fn walk(folder: &Path, name: &str, found: &mut Vec<(PathBuf, String)>) -> Result<()> {
    let unreadable = || format!("cannot read the folder {}", folder.display());
    let entries: Result<Vec<_>, _> = fs::read_dir(folder).with_context(unreadable)?.collect();
    let mut entries = entries.with_context(unreadable)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        // A link to a folder is not followed: it may lead back here.
        if entry.file_type().with_context(unreadable)?.is_dir() {
            walk(&path, &name, found)?;
        } else {
            found.push((path, name));
        }
    }
    Ok(())
}

/// What a producer would want to know before wondering where the rows are.
fn warn(screen: &Screen, upload: &Upload) -> Result<()> {
    let target = format!("s3://{}/{}", upload.bucket, upload.key);
    if is_leftover(&upload.key, upload.bytes) {
        screen
            .note(&format!("{target} looks like a marker of Spark or Hadoop: importers ignore it"));
    } else if upload.feeds.is_empty() {
        screen.note(&format!("no feed takes {target}: nobody will import it"));
    } else {
        let mut head = [0; AVRO_MAGIC.len()];
        let read = fs::File::open(&upload.file).and_then(|mut file| file.read(&mut head));
        let read = read.with_context(|| format!("cannot read {}", upload.file.display()))?;
        if head[..read] != AVRO_MAGIC[..] {
            screen.note(&format!(
                "{} is no Avro object-container file: importers will dead-letter it",
                upload.file.display()
            ));
        }
    }
    Ok(())
}

fn report(screen: &Screen, published: &Published) -> Result<()> {
    let upload = &published.upload;
    let target = format!("s3://{}/{}", upload.bucket, upload.key);
    if let Some(error) = &published.error {
        screen.note(&format!("{}: {error}", upload.file.display()));
    } else if !screen.json {
        let feeds = match upload.feeds.is_empty() {
            true => "no feed".to_owned(),
            false => upload.feeds.join(", "),
        };
        screen.clear_progress();
        screen.result(&format!("{target}  {}  {feeds}", bytes(upload.bytes)))?;
    }
    Ok(())
}

/// The object's entity tag, as events and the ledger spell it: without quotes.
async fn put(client: &aws_sdk_s3::Client, upload: &Upload) -> Result<Option<String>, String> {
    let body = ByteStream::from_path(&upload.file)
        .await
        .map_err(|error| format!("cannot be read: {}", fault::chain(&error)))?;
    let answer = client
        .put_object()
        .bucket(&upload.bucket)
        .key(&upload.key)
        .content_type("application/avro")
        .body(body)
        .send()
        .await
        .map_err(|error| {
            let target = format!("s3://{}/{}", upload.bucket, upload.key);
            format!("cannot be written to {target}: {}", aws::describe(&error))
        })?;
    Ok(answer.e_tag.map(|etag| etag.trim_matches('"').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::parse(
            "database = \"sqlite://w.db\"\n\
             [fleet.ads]\nqueue = \"https://sqs.eu-west-1.amazonaws.com/1/ads\"\n\
             [feed.imp]\nfleet = \"ads\"\nobjects = \"s3://ads/imp/**.avro\"\ntable = \"imp\"\n",
            &BTreeMap::new(),
        )
        .unwrap()
    }

    #[test]
    fn files_and_folders_become_keys() {
        let folder = tempfile::tempdir().unwrap();
        let day = folder.path().join("dt=1");
        fs::create_dir(&day).unwrap();
        fs::write(day.join("b.avro"), "12").unwrap();
        fs::write(day.join("a.avro"), "1").unwrap();
        fs::write(folder.path().join("c.txt"), "").unwrap();
        let destination: Address = "s3://ads/imp/".parse().unwrap();
        let files = [day.clone(), folder.path().join("c.txt")];
        let uploads = plan(&config(), &files, &destination).unwrap();
        let seen: Vec<_> =
            uploads.iter().map(|u| (u.key.as_str(), u.bytes, u.feeds.len())).collect();
        assert_eq!(
            seen,
            [("imp/dt=1/a.avro", 1, 1), ("imp/dt=1/b.avro", 2, 1), ("imp/c.txt", 0, 0)]
        );

        let object: Address = "s3://ads/imp/x.avro".parse().unwrap();
        let one = plan(&config(), &[day.join("a.avro")], &object).unwrap();
        assert_eq!(one[0].key, "imp/x.avro");
        let error = plan(&config(), &files, &object).unwrap_err().to_string();
        assert!(error.contains("end it with /"), "{error}");
        let twice = [day.join("a.avro"), day.join("a.avro")];
        let error = plan(&config(), &twice, &destination).unwrap_err().to_string();
        assert!(error.contains("would both become imp/a.avro"), "{error}");
        assert!(plan(&config(), &[folder.path().join("absent")], &destination).is_err());
    }
}
