//! `write = "upsert"`: the row of the newest object.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use apache_avro::types::Value;
use proptest::prelude::*;
use weirgate_common::fault::Fault;
use weirgate_importer::sink::Outcome;

use crate::bench::{Bench, Place, Upload, cases, file, null, record, some};

const KEYED: &str = "write = \"upsert\"\nkey = [\"id\"]";

const NARROW: &str = r#"{"type": "record", "name": "R", "fields": [
    {"name": "id", "type": ["null", "long"]},
    {"name": "n", "type": "long"}
]}"#;

const WIDE: &str = r#"{"type": "record", "name": "R", "fields": [
    {"name": "note", "type": "string"},
    {"name": "id", "type": ["null", "long"]},
    {"name": "n", "type": "long"}
]}"#;

/// A file of rows `(id, n)`; a wide one has a note that tells `n` as well.
fn rows(wide: bool, rows: &[(i64, i64)]) -> Vec<u8> {
    let row = |(id, n): &(i64, i64)| {
        let (id, n, note) = (some(Value::Long(*id)), Value::Long(*n), format!("note {n}"));
        match wide {
            true => record(&[("note", Value::String(note)), ("id", id), ("n", n)]),
            false => record(&[("id", id), ("n", n)]),
        }
    };
    file(if wide { WIDE } else { NARROW }, rows.iter().map(row).collect())
}

/// What `id, n` gives for these.
fn expected(rows: &[(i64, i64)]) -> Vec<Vec<Option<String>>> {
    rows.iter().map(|(id, n)| vec![Some(id.to_string()), Some(n.to_string())]).collect()
}

pub(crate) async fn the_newest_object_wins(
    place: impl Future<Output = Result<Place>>,
) -> Result<()> {
    let bench = Bench::new(&place.await?, KEYED)?;
    // Of two rows in one object, the last.
    bench.import(&Upload::new("b", 20, rows(false, &[(1, 10), (2, 20), (1, 11)]))).await?;
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 11), (2, 20)]));
    // An older object arrives late: only what nobody else wrote is new.
    let late = Upload::new("a", 10, rows(false, &[(1, 1), (3, 3)]));
    let outcome = bench.import(&late).await?;
    assert_eq!(outcome, Outcome::Committed { rows: 2, rejected: 0, replaced: 0 });
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 11), (2, 20), (3, 3)]));
    assert_eq!(bench.import(&late).await?, Outcome::AlreadyCommitted);
    // Newer ones, with a column more and a column less.
    bench.import(&Upload::new("c", 30, rows(true, &[(2, 22), (3, 33)]))).await?;
    bench.import(&Upload::new("d", 40, rows(false, &[(3, 34)]))).await?;
    let row = |id: &str, n: &str, note: Option<&str>| {
        vec![Some(id.to_owned()), Some(n.to_owned()), note.map(str::to_owned)]
    };
    assert_eq!(
        bench.rows("id, n, note").await?,
        [row("1", "11", None), row("2", "22", Some("note 22")), row("3", "34", None)],
        "a row is written over as a whole"
    );
    Ok(())
}

pub(crate) async fn overwritten_and_written_again(
    place: impl Future<Output = Result<Place>>,
) -> Result<()> {
    let bench = Bench::new(&place.await?, KEYED)?;
    let version = |sequencer: &str, at: i64, list: &[(i64, i64)]| Upload {
        sequencer: Some(sequencer.to_owned()),
        ..Upload::new("k", at, rows(false, list))
    };
    let (a, b) = ([(1, 1), (2, 2)], [(1, 10), (3, 30)]);
    bench.import(&version("0A", 1, &a)).await?;
    bench.import(&version("0B", 2, &b)).await?;
    // An overwritten object is no deletion of its rows.
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 10), (2, 2), (3, 30)]));
    // A again is the newest again; A's first event, once more, is not.
    let again = bench.import(&version("0C", 3, &a)).await?;
    assert_eq!(again, Outcome::Committed { rows: 2, rejected: 0, replaced: 1 });
    assert_eq!(bench.import(&version("0A", 1, &a)).await?, Outcome::AlreadyCommitted);
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 1), (2, 2), (3, 30)]));
    // By S3's order of a key's versions, whatever the clocks said.
    bench.import(&version("0E", 1, &[(1, 5)])).await?;
    bench.import(&version("0D", 9, &[(1, 4)])).await?;
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 5), (2, 2), (3, 30)]));
    assert_eq!(bench.strays().await?, 0);
    Ok(())
}

pub(crate) async fn rows_without_a_key_are_bad(
    place: impl Future<Output = Result<Place>>,
) -> Result<()> {
    let place = place.await?;
    let bytes = || {
        let row = |id: Value| record(&[("id", id), ("n", Value::Long(7))]);
        file(NARROW, vec![row(some(Value::Long(1))), row(null())])
    };
    let bench = Bench::new(&place, KEYED)?;
    let failure = bench.refusal(&Upload::new("a", 1, bytes())).await?;
    assert_eq!((failure.fault, failure.code), (Fault::Permanent, "bad_row"));
    assert!(failure.detail.contains("row 1, field id: null"), "{}", failure.detail);

    let bench = Bench::new(&place, &format!("{KEYED}\non_bad_row = \"quarantine\""))?;
    let outcome = bench.import(&Upload::new("a", 1, bytes())).await?;
    assert_eq!(outcome, Outcome::Committed { rows: 1, rejected: 1, replaced: 0 });
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 7)]));

    let bench = Bench::new(&place, "write = \"upsert\"\nkey = [\"ident\"]")?;
    let failure = bench.refusal(&Upload::new("a", 1, bytes())).await?;
    assert_eq!(failure.code, "incompatible_schema");
    assert!(failure.detail.contains("key names \"ident\""), "{}", failure.detail);
    Ok(())
}

pub(crate) async fn a_users_own_table(place: impl Future<Output = Result<Place>>) -> Result<()> {
    let bench = Bench::new(&place.await?, KEYED)?;
    let (table, upload) = (bench.table(), Upload::new("a", 1, rows(false, &[(1, 5), (2, 6)])));
    bench.execute(&format!("CREATE TABLE {table} (\"ID\" bigint, n bigint)")).await?;
    bench.execute(&format!("INSERT INTO {table} VALUES (1, 1), (9, 9)")).await?;
    let failure = bench.refusal(&upload).await?;
    assert_eq!(failure.code, "incompatible_table");
    let remedy = format!("CREATE UNIQUE INDEX ON {} (\"id\")", bench.name);
    assert!(failure.detail.contains(&remedy), "{}", failure.detail);
    bench.execute(&format!("CREATE UNIQUE INDEX {}_key ON {table} (\"ID\")", bench.name)).await?;
    bench.import(&upload).await?;
    assert_eq!(bench.rows("\"ID\", n").await?, expected(&[(1, 5), (2, 6), (9, 9)]));
    Ok(())
}

#[derive(Clone, Debug)]
struct Step {
    key: u8,
    /// Whether the clock stands still between two versions of a key.
    same_time: bool,
    wide: bool,
    rows: Vec<(i64, i64)>,
}

/// A history of objects, and indices into it: each at least once, in any order.
fn history() -> impl Strategy<Value = (Vec<Step>, Vec<usize>)> {
    let row = (0..5_i64, 0..4_i64);
    let step = (0..3_u8, any::<bool>(), any::<bool>(), prop::collection::vec(row, 0..5))
        .prop_map(|(key, same_time, wide, rows)| Step { key, same_time, wide, rows });
    prop::collection::vec(step, 1..12).prop_flat_map(|steps| {
        let indices = 0..steps.len();
        let again = prop::collection::vec(indices.clone(), 0..6);
        let order = again.prop_map(move |again| indices.clone().chain(again).collect::<Vec<_>>());
        (Just(steps), order.prop_shuffle())
    })
}

pub(crate) async fn any_order_ends_the_same(
    place: impl Future<Output = Result<Place>>,
) -> Result<()> {
    let place = place.await?;
    for (case, (steps, order)) in cases(&place, history()) {
        let bench = Bench::new(&place, KEYED)?;
        let (mut at, mut uploads, mut table) = (0, Vec::<Upload>::new(), BTreeMap::new());
        for (index, step) in steps.iter().enumerate() {
            let key = format!("k{}", step.key);
            let same_key = uploads.last().is_some_and(|last| last.key == key);
            at += i64::from(!(same_key && step.same_time));
            let sequencer = Some(format!("{index:04X}"));
            let bytes = rows(step.wide, &step.rows);
            uploads.push(Upload { sequencer, ..Upload::new(&key, at, bytes) });
            for (id, n) in &step.rows {
                let note = step.wide.then(|| format!("note {n}"));
                table.insert(*id, vec![Some(id.to_string()), Some(n.to_string()), note]);
            }
        }
        let delivered: Vec<Upload> = order.iter().map(|index| uploads[*index].clone()).collect();
        let told = || format!("case {case}: {order:?} of {steps:#?}");
        bench.deliver(&delivered).await.with_context(told)?;
        // The table has a column once an object had it.
        let wide = steps.iter().any(|step| step.wide);
        let rows: Vec<_> = table
            .into_values()
            .map(|mut row| {
                row.truncate(if wide { 3 } else { 2 });
                row
            })
            .collect();
        let columns = if wide { "id, n, note" } else { "id, n" };
        assert_eq!(bench.rows(columns).await?, rows, "{}", told());
        assert_eq!(bench.strays().await?, 0, "{}", told());
    }
    Ok(())
}
