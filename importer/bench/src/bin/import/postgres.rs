//! Into PostgreSQL, against `psql \copy` of the same rows, encoded before, into a table of the same
//! definition: one connection each, one transaction per object.

use std::time::Instant;

use anyhow::{Result, bail};
use apache_avro::Codec;
use weirgate_common::ledger::Ledger;
use weirgate_importer_bench::Set;

use crate::system::{Bench, System, cpu_seconds, median};

/// Rows of an object, objects of a round, how many go together: each alone, and the small ones also
/// as the protocol gathers them when many wait.
const SIZES: [(i64, u64, usize); 5] =
    [(100_000, 20, 1), (10_000, 100, 1), (10_000, 99, 3), (1_000, 500, 1), (1_000, 500, 20)];

pub async fn run(system: &System, rounds: usize) -> Result<()> {
    println!("PostgreSQL, snappy, over TCP; CPU in seconds per million rows");
    println!(
        "rows/object   together   weirgate rows/s   psql rows/s   ratio   importer CPU   backend CPU   ratio"
    );
    for (rows, objects, together) in SIZES {
        let file = format!("impressions-{rows}-{together}.avro");
        std::fs::write(
            system.folder.join(&file),
            Set::impressions(rows).file(Codec::Snappy, "snappy"),
        )?;
        let table = format!("impressions_{rows}_{together}");
        let mut bench = system.bench(&system.database_url(), &table).await?;
        // Makes the table, the plan and the connection.
        bench.import(&file, 1, 1).await?;
        let encoded = system.folder.join(format!("impressions-{rows}-{together}.copy"));
        let encoded = encoded.display();
        system.psql(&[
            &format!("CREATE TABLE limit_{rows}_{together} (LIKE {table} INCLUDING ALL)"),
            &format!("\\copy {table} TO '{encoded}' (FORMAT binary)\n"),
        ])?;
        let script = system.folder.join("copy.sql");
        let line = format!("\\copy limit_{rows}_{together} FROM '{encoded}' (FORMAT binary)\n");
        std::fs::write(&script, line.repeat(usize::try_from(objects)?))?;
        let backend = backend(&bench).await?.to_string();

        let million = rows as f64 * objects as f64 / 1e6;
        let (mut ours, mut limit, mut ratios) = (vec![], vec![], vec![]);
        let (mut importer_cpu, mut backend_cpu) = (vec![], vec![]);
        for round in 0..rounds {
            system.psql(&[&format!("TRUNCATE {table}, limit_{rows}_{together}"), "CHECKPOINT"])?;
            let copy = || {
                let start = Instant::now();
                system.psql_file(&script).map(|()| start.elapsed().as_secs_f64())
            };
            let before = if round % 2 == 0 { Some(copy()?) } else { None };
            let cpu = [cpu_seconds("self")?, cpu_seconds(&backend)?];
            let start = Instant::now();
            bench.import(&file, objects, together).await?;
            let seconds = start.elapsed().as_secs_f64();
            importer_cpu.push((cpu_seconds("self")? - cpu[0]) / million);
            backend_cpu.push((cpu_seconds(&backend)? - cpu[1]) / million);
            let peer = match before {
                Some(seconds) => seconds,
                None => copy()?,
            };
            ours.push(million * 1e6 / seconds);
            limit.push(million * 1e6 / peer);
            ratios.push(peer / seconds);
        }
        let (importer_cpu, backend_cpu) = (median(importer_cpu), median(backend_cpu));
        println!(
            "{rows:11} {together:10} {:17.0} {:13.0} {:7.2} {importer_cpu:14.2} {backend_cpu:13.2} {:7.2}",
            median(ours),
            median(limit),
            median(ratios),
            importer_cpu / backend_cpu,
        );
    }
    Ok(())
}

async fn backend(bench: &Bench) -> Result<i32> {
    let Ledger::Postgres(pool) = &bench.ledger else { bail!("this is about PostgreSQL") };
    Ok(sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(pool).await?)
}
