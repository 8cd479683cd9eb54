//! Into PostgreSQL, against what one would write in Python: `peers.py`.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use apache_avro::Codec;
use weirgate_importer_bench::Set;

use crate::system::{System, median};

const ROWS: i64 = 100_000;
const OBJECTS: u64 = 3;

pub async fn run(system: &System, rounds: usize) -> Result<()> {
    let python = std::env::var("PYTHON").context("PYTHON names no interpreter; see peers.py")?;
    let file = "impressions-python.avro";
    let set = Set::impressions(ROWS);
    std::fs::write(system.folder.join(file), set.file(Codec::Snappy, "snappy"))?;
    let mut bench = system.bench(&system.database_url(), "impressions_python").await?;
    bench.import(file, 1, 1).await?;
    system.psql(&[
        "CREATE TABLE peer_psycopg (LIKE impressions_python)",
        "ALTER TABLE peer_psycopg DROP COLUMN _object",
    ])?;
    let peers = ["psycopg", "adbc"];
    let mut ratios = [vec![], vec![]];
    println!("PostgreSQL against Python, snappy, {ROWS} rows per object: rows/s (ratio)");
    for _ in 0..rounds {
        let start = Instant::now();
        bench.import(file, OBJECTS, 1).await?;
        let ours = (ROWS as f64) * OBJECTS as f64 / start.elapsed().as_secs_f64();
        print!("weirgate {ours:.0}");
        for (peer, ratios) in peers.into_iter().zip(&mut ratios) {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/import/peers.py");
            let output = Command::new(&python)
                .args([script, peer, &system.database_url()])
                .arg(system.folder.join(file))
                .arg(OBJECTS.to_string())
                .output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let theirs = ROWS as f64 * OBJECTS as f64 / text.trim().parse::<f64>()?;
            print!("   {peer} {theirs:.0} ({:.1})", ours / theirs);
            ratios.push(ours / theirs);
        }
        println!();
    }
    for (peer, ratios) in peers.into_iter().zip(ratios) {
        println!("times {peer}: {:.1}", median(ratios));
    }
    Ok(())
}
