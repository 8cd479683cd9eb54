//! A table's way into PostgreSQL and out again, through `psql`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use weirgate_importer::avro::copy::{COPY_HEADER, COPY_TRAILER};
use weirgate_importer::avro::table::{Column, quote};

/// Copies the tuples into a temporary table and returns what the server sends back for them.
pub(crate) fn round_trip(server: &str, create: &str, columns: &[Column], tuples: &[u8]) -> Vec<u8> {
    let names: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
    let names = names.join(", ");
    let create = create.replace("create table if not exists", "create temporary table");
    let create = create.replace('\n', " ");
    let mut psql = Command::new("psql")
        .args([server, "-qX", "-v", "ON_ERROR_STOP=1"])
        .args(["-c", &create])
        .args(["-c", &format!("copy held ({names}) from stdin (format binary)")])
        .args(["-c", &format!("copy held ({names}) to stdout (format binary)")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql");
    let mut stdin = psql.stdin.take().unwrap();
    let bytes = [COPY_HEADER, tuples, COPY_TRAILER].concat();
    let sender = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = psql.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{create}: {error}");
    sender.join().unwrap().unwrap();
    let body = output.stdout.strip_prefix(COPY_HEADER.as_slice()).expect("a COPY header");
    body.strip_suffix(COPY_TRAILER.as_slice()).expect("a COPY trailer").to_owned()
}
