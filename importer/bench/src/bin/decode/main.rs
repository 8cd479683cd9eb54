//! Decoding speed, one thread, against other readers in the same run:
//! `cargo run --release --bin decode [SCALE [ROUNDS]]`, for SCALE times 200,000 impressions. Rounds
//! are interleaved, figures are medians. With FILES set to a folder the files are kept there, for
//! `fastavro_rows.py` to read.

mod peers;

use std::hint::black_box;
use std::time::Instant;

use apache_avro::Codec;
use weirgate_avro::codec::Decompressor;
use weirgate_avro::container::Reader;
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::{Plan, Target};
use weirgate_avro::table::{Dialect, Masks, TableDef};
use weirgate_importer_bench::Set;

/// Into COPY tuples, as the importer does it: chunks pushed, blocks out, one output buffer.
fn weirgate(file: &[u8]) -> u64 {
    let limits = Limits::default();
    let mut reader = Reader::new(limits.clone());
    let (mut plain, mut out, mut rows) = (Vec::new(), Vec::new(), 0);
    let mut state = None;
    for chunk in file.chunks(64 << 10) {
        reader.push(chunk);
        if state.is_none() {
            let Some(header) = reader.read_header().unwrap() else { continue };
            let masks = Masks::new();
            let table = TableDef::new(&header.writer.schema, &[], true, &masks).unwrap();
            let (dialect, columns) = (Dialect::Postgres, &table.columns);
            let target = Target { dialect, columns, masks: &masks, limits: &limits };
            let plan = Plan::compile(&header.writer.schema, None, &target).unwrap();
            let constants = plan.constants(1, &[]).unwrap();
            state = Some((Decompressor::new(header.codec, &limits), plan, constants));
        }
        let Some((decompressor, plan, constants)) = &mut state else { continue };
        while let Some(block) = reader.next_block().unwrap() {
            let data = decompressor.decompress(&block, &mut plain).unwrap();
            out.clear();
            plan.transcode_copy(data, block.rows, constants, &mut out).unwrap();
            black_box(&out);
            rows += block.rows;
        }
    }
    reader.finish().unwrap();
    rows
}

/// Framing and decompression alone.
fn framing(file: &[u8]) -> u64 {
    let limits = Limits::default();
    let mut reader = Reader::new(limits.clone());
    let (mut plain, mut rows) = (Vec::new(), 0);
    let mut decompressor = None;
    for chunk in file.chunks(64 << 10) {
        reader.push(chunk);
        if let Some(header) = reader.read_header().unwrap() {
            decompressor.get_or_insert_with(|| Decompressor::new(header.codec, &limits));
        }
        while let Some(block) = reader.next_block().unwrap() {
            let decompressor = decompressor.as_mut().unwrap();
            black_box(decompressor.decompress(&block, &mut plain).unwrap());
            rows += block.rows;
        }
    }
    rows
}

/// Nothing but our own work on one data set, uncompressed, for a profiler.
fn profile(only: &str, scale: i64, rounds: u64) {
    for set in Set::all(scale).iter().filter(|set| set.name == only) {
        let file = set.file(Codec::Null, "null");
        let mut best = f64::MAX;
        for _ in 0..rounds {
            let start = Instant::now();
            weirgate(&file);
            best = best.min(start.elapsed().as_nanos() as f64 / set.rows() as f64);
        }
        println!("{only}: {best:.1} ns per row at best");
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap());
    let scale = arguments.next().unwrap_or(1);
    let rounds = arguments.next().unwrap_or(5);
    if let Ok(only) = std::env::var("PROFILE") {
        return profile(&only, scale as i64, rounds);
    }
    let codecs = [
        ("null", Codec::Null),
        ("snappy", Codec::Snappy),
        ("deflate", Codec::Deflate(Default::default())),
        ("zstandard", Codec::Zstandard(Default::default())),
    ];
    println!("ns per row; in brackets how many times weirgate's");
    println!(
        "data         codec      weirgate  framing  apache value   apache serde   avro_fast      arrow-avro"
    );
    for set in Set::all(scale as i64) {
        for (name, codec) in codecs {
            if name != "snappy" && name != "null" && set.name != "impressions" {
                continue;
            }
            let file = set.file(codec, name);
            if let Some(folder) = std::env::var_os("FILES") {
                let path = std::path::Path::new(&folder).join(format!("{}-{name}.avro", set.name));
                std::fs::write(path, &file).unwrap();
            }
            let readers: [&dyn Fn() -> u64; 6] = [
                &|| weirgate(&file),
                &|| framing(&file),
                &|| peers::apache_value(&file),
                &|| peers::apache_serde(set.name, &file),
                &|| peers::avro_fast(set.name, &file),
                &|| peers::arrow(&file),
            ];
            let mut times = vec![Vec::new(); readers.len()];
            for _ in 0..rounds {
                for (reader, times) in readers.iter().zip(&mut times) {
                    let start = Instant::now();
                    assert_eq!(reader(), set.rows());
                    times.push(start.elapsed().as_nanos() as f64 / set.rows() as f64);
                }
            }
            let medians: Vec<f64> = times
                .iter_mut()
                .map(|times| {
                    times.sort_by(f64::total_cmp);
                    times[times.len() / 2]
                })
                .collect();
            print!("{:12} {name:10} {:8.0}  {:7.0}", set.name, medians[0], medians[1]);
            for median in &medians[2..] {
                print!("  {median:6.0} ({:4.1})", median / medians[0]);
            }
            println!();
        }
    }
}
