//! Peak memory of an importer process that imports one object of 1 GiB.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use apache_avro::Codec;
use sqlx::Connection as _;
use weirgate_importer_bench::Set;
use weirgate_local::process::{Child, Orphan, log_to};
use weirgate_local::programs::Program;

use crate::system::System;

const BYTES: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn run(system: &System) -> Result<()> {
    let set = Set::impressions(200_000);
    let (header, blocks) = (set.header("snappy"), set.blocks(Codec::Snappy));
    let times = BYTES.div_ceil(blocks.len() as u64);
    let mut file = BufWriter::new(File::create(system.folder.join("impressions"))?);
    file.write_all(&header)?;
    for _ in 0..times {
        file.write_all(&blocks)?;
    }
    file.flush()?;
    drop(file);
    let size = header.len() as u64 + times * blocks.len() as u64;

    let fleet = &system.world.fleet;
    let mut environment = system.world.environment_of(fleet);
    environment.insert("AWS_ENDPOINT_URL_S3".to_owned(), system.stub_url.clone());
    let mut command =
        Program::in_executable(std::env::current_exe()?, "importer").command(&environment);
    log_to(&mut command, &system.folder.join("importer.log"))?;
    let importer = Child::spawn("importer", command, Orphan::Kill)?;
    // The stub takes the first part of the key for its file.
    let event = serde_json::json!({"Records": [{"eventVersion": "2.1", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": fleet.data_plane.bucket},
               "object": {"key": "impressions/dt%3D1/big.avro", "size": size, "eTag": "x", "sequencer": "01"}}}]});
    let start = Instant::now();
    let queue = &fleet.data_plane.queue_url;
    system
        .world
        .clients
        .sqs
        .send_message()
        .queue_url(queue)
        .message_body(event.to_string())
        .send()
        .await?;
    let mut database = sqlx::PgConnection::connect(&system.database_url()).await?;
    let rows = loop {
        ensure!(start.elapsed() < PATIENCE, "the object is not committed after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let rows: Option<i64> =
            sqlx::query_scalar("SELECT rows FROM weirgate.object WHERE bytes = $1")
                .bind(i64::try_from(size)?)
                .fetch_optional(&mut database)
                .await
                // The importer makes the ledger's tables, which takes a moment.
                .unwrap_or_default();
        if let Some(rows) = rows {
            break rows;
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{}/status", importer.pid()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("Linux says")?;
    println!(
        "An object of {size} bytes, {rows} rows in {seconds:.1} s: the importer's peak is {}",
        peak.trim()
    );
    Ok(())
}
