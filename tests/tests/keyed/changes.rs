//! `write = "cdc"`: Debezium's changes, in the order of their source.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use apache_avro::types::Value;
use proptest::prelude::*;
use weirgate_common::fault::Fault;
use weirgate_importer::sink::Outcome;

use crate::bench::{Bench, Place, Upload, cases, file, null, record, some};

const KEYED: &str = "write = \"cdc\"\nkey = [\"id\"]";

/// The sources whose positions differ.
#[derive(Clone, Copy, Debug)]
enum Source {
    Postgres,
    Mysql,
    SqlServer,
    Other,
}

impl Source {
    fn fields(self) -> &'static str {
        match self {
            Source::Postgres => {
                r#"{"name": "sequence", "type": ["null", "string"]}, {"name": "lsn", "type": ["null", "long"]}"#
            }
            Source::Mysql => {
                r#"{"name": "file", "type": "string"}, {"name": "pos", "type": "long"},
                   {"name": "row", "type": "int"}"#
            }
            Source::SqlServer => {
                r#"{"name": "change_lsn", "type": ["null", "string"]},
                   {"name": "commit_lsn", "type": ["null", "string"]},
                   {"name": "event_serial_no", "type": ["null", "long"]}"#
            }
            Source::Other => r#"{"name": "db", "type": "string"}"#,
        }
    }

    /// `source` of a change at a position.
    fn at(self, position: u32) -> Value {
        let text = |text: String| Value::String(text);
        let fields = match self {
            Source::Postgres => {
                vec![("sequence", null()), ("lsn", some(Value::Long(position.into())))]
            }
            // Over the end of the six digits that MySQL begins with.
            Source::Mysql => vec![
                ("file", text(format!("mysql-bin.{:06}", 999_998 + position / 4))),
                ("pos", Value::Long(i64::from(position % 4 / 2) * 1_000)),
                ("row", Value::Int((position % 2) as i32)),
            ],
            Source::SqlServer => vec![
                ("change_lsn", some(text(format!("0000:{position:04x}")))),
                ("commit_lsn", some(text(format!("0000:{:04x}", position / 2)))),
                ("event_serial_no", null()),
            ],
            Source::Other => vec![("db", text("shop".to_owned()))],
        };
        let ts = match self {
            Source::Other => i64::from(position),
            _ => 1_700_000_000_000,
        };
        let connector = [("connector", text(format!("{self:?}"))), ("ts_ms", Value::Long(ts))];
        record(&[&connector[..], &fields].concat())
    }
}

/// As Debezium's Avro looks; a wide row has a note.
fn schema(source: Source, wide: bool) -> String {
    let note = if wide { r#", {"name": "note", "type": "string"}"# } else { "" };
    format!(
        r#"["null", {{"type": "record", "name": "Envelope", "namespace": "shop.public.orders", "fields": [
            {{"name": "before", "default": null, "type": ["null", {{"type": "record", "name": "Value", "fields": [
                {{"name": "id", "type": "long"}}, {{"name": "n", "type": ["null", "string"]}} {note}
            ]}}]}},
            {{"name": "after", "default": null, "type": ["null", "Value"]}},
            {{"name": "source", "type": {{"type": "record", "name": "Source", "fields": [
                {{"name": "connector", "type": "string"}}, {{"name": "ts_ms", "type": "long"}}, {}
            ]}}}},
            {{"name": "op", "type": "string"}},
            {{"name": "ts_ms", "type": ["null", "long"]}},
            {{"name": "transaction", "type": ["null", {{"type": "record", "name": "block", "fields": [
                {{"name": "id", "type": "string"}}, {{"name": "total_order", "type": "long"}}
            ]}}]}}
        ]}}]"#,
        source.fields()
    )
}

/// A row `(id, n)`.
type Row = (i64, u32);

#[derive(Clone, Debug)]
struct Change {
    op: &'static str,
    before: Option<Row>,
    after: Option<Row>,
    position: u32,
    wide: bool,
}

fn change(op: &'static str, before: Option<Row>, after: Option<Row>, position: u32) -> Change {
    Change { op, before, after, position, wide: false }
}

fn image(row: Option<Row>, wide: bool) -> Value {
    let Some((id, n)) = row else { return null() };
    let mut fields = vec![("id", Value::Long(id)), ("n", some(Value::String(format!("n{n}"))))];
    if wide {
        fields.push(("note", Value::String(format!("note {n}"))));
    }
    some(record(&fields))
}

fn envelope(source: Source, change: &Change) -> Value {
    let position = i64::from(change.position);
    let transaction =
        record(&[("id", Value::String("7".to_owned())), ("total_order", Value::Long(position))]);
    some(record(&[
        ("before", image(change.before, change.wide)),
        ("after", image(change.after, change.wide)),
        ("source", source.at(change.position)),
        ("op", Value::String(change.op.to_owned())),
        ("ts_ms", null()),
        ("transaction", some(transaction)),
    ]))
}

/// A file of changes of one schema; each delete is followed by its tombstone.
fn changes(source: Source, changes: &[Change]) -> Vec<u8> {
    let wide = changes.first().is_some_and(|change| change.wide);
    let mut rows = Vec::new();
    for change in changes {
        rows.push(envelope(source, change));
        if change.op == "d" {
            rows.push(null());
        }
    }
    file(&schema(source, wide), rows)
}

/// What `id, n` gives for these.
fn expected(rows: &[Row]) -> Vec<Vec<Option<String>>> {
    rows.iter().map(|(id, n)| vec![Some(id.to_string()), Some(format!("n{n}"))]).collect()
}

pub(crate) async fn every_operation(place: impl Future<Output = Result<Place>>) -> Result<()> {
    let bench = Bench::new(&place.await?, KEYED)?;
    let upload =
        |name: &str, list: &[Change]| Upload::new(name, 1, changes(Source::Postgres, list));
    let first = upload(
        "a",
        &[
            change("r", None, Some((1, 1)), 10),
            change("r", None, Some((2, 2)), 10),
            change("c", None, Some((3, 3)), 11),
            change("u", Some((1, 1)), Some((1, 4)), 12),
            change("d", Some((2, 2)), None, 13),
            change("m", None, None, 14),
            // The key of 3 becomes 5.
            change("u", Some((3, 3)), Some((5, 3)), 15),
        ],
    );
    let outcome = bench.import(&first).await?;
    assert_eq!(outcome, Outcome::Committed { rows: 8, rejected: 0, replaced: 0 }, "records");
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 4), (5, 3)]));
    // What the first file has overtaken changes nothing: not the updated, not the deleted, not
    // the one that had another key.
    let late = upload(
        "b",
        &[
            change("c", None, Some((2, 9)), 5),
            change("c", None, Some((3, 9)), 6),
            change("u", Some((1, 8)), Some((1, 9)), 7),
            change("d", Some((5, 8)), None, 8),
        ],
    );
    bench.import(&late).await?;
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 4), (5, 3)]));
    // A key comes back.
    bench.import(&upload("c", &[change("c", None, Some((2, 5)), 20)])).await?;
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 4), (2, 5), (5, 3)]));
    // Truncated between two inserts, of which the older arrives last.
    let truncate = [change("t", None, None, 30), change("c", None, Some((7, 7)), 31)];
    bench.import(&upload("d", &truncate)).await?;
    bench.import(&upload("e", &[change("c", None, Some((6, 6)), 29)])).await?;
    assert_eq!(bench.rows("id, n").await?, expected(&[(7, 7)]));
    bench.import(&upload("f", &truncate[..1])).await?;
    assert_eq!(bench.rows("id, n").await?, expected(&[(7, 7)]));
    // A snapshot taken at the very place of a change does not know of it yet.
    bench.import(&upload("g", &[change("u", None, Some((7, 8)), 40)])).await?;
    bench.import(&upload("h", &[change("r", None, Some((7, 7)), 40)])).await?;
    assert_eq!(bench.rows("id, n").await?, expected(&[(7, 8)]));
    let deleted = format!("SELECT count(*) FROM {}__deleted", bench.table());
    assert_eq!(bench.number(&deleted).await?, 1, "the truncate stands for all before it");
    Ok(())
}

pub(crate) async fn what_is_no_change(place: impl Future<Output = Result<Place>>) -> Result<()> {
    let place = place.await?;
    let upload = |list: &[Change]| Upload::new("a", 1, changes(Source::Postgres, list));
    let bench = Bench::new(&place, KEYED)?;
    for (list, expected) in [
        (change("d", None, None, 1), "row 0, field before: the change does not hold the row"),
        (change("x", None, None, 1), "row 0, field op: `x` is none of"),
        (change("c", None, None, 1), "row 0, field after: the change does not hold the row"),
    ] {
        let failure = bench.refusal(&upload(&[list])).await?;
        assert_eq!((failure.fault, failure.code), (Fault::Permanent, "bad_row"));
        assert!(failure.detail.contains(expected), "{}", failure.detail);
    }
    let unlogged = [
        ("id", Value::Long(1)),
        ("n", some(Value::String("__debezium_unavailable_value".to_owned()))),
    ];
    let mut fields = match envelope(Source::Postgres, &change("u", None, Some((1, 1)), 1)) {
        Value::Union(_, inner) => match *inner {
            Value::Record(fields) => fields,
            other => anyhow::bail!("{other:?}"),
        },
        other => anyhow::bail!("{other:?}"),
    };
    fields[1].1 = some(record(&unlogged));
    let bytes = file(&schema(Source::Postgres, false), vec![some(Value::Record(fields))]);
    let failure = bench.refusal(&Upload::new("a", 1, bytes)).await?;
    assert!(failure.detail.contains("field n:"), "{}", failure.detail);
    assert!(failure.detail.contains("REPLICA IDENTITY FULL"), "{}", failure.detail);

    let plain = r#"{"type": "record", "name": "R", "fields": [{"name": "id", "type": "long"}]}"#;
    let bytes = file(plain, vec![record(&[("id", Value::Long(1))])]);
    let failure = bench.refusal(&Upload::new("a", 1, bytes)).await?;
    assert_eq!(failure.code, "incompatible_schema");
    assert!(failure.detail.contains("no Debezium envelopes"), "{}", failure.detail);

    // The old key's delete does not go without the new one's row.
    let bench = Bench::new(&place, &format!("{KEYED}\non_bad_row = \"quarantine\""))?;
    let mut moved = envelope(Source::Postgres, &change("u", Some((1, 1)), Some((2, 1)), 2));
    if let Value::Union(_, inner) = &mut moved
        && let Value::Record(fields) = &mut **inner
    {
        let bad = [("id", Value::Long(2)), ("n", some(Value::String("\0".to_owned())))];
        fields[1].1 = some(record(&bad));
    }
    let created = envelope(Source::Postgres, &change("c", None, Some((1, 1)), 1));
    let bytes = file(&schema(Source::Postgres, false), vec![created, moved]);
    let outcome = bench.import(&Upload::new("a", 1, bytes)).await?;
    assert_eq!(outcome, Outcome::Committed { rows: 1, rejected: 1, replaced: 0 });
    assert_eq!(bench.rows("id, n").await?, expected(&[(1, 1)]));
    Ok(())
}

/// What happens to a source's table.
#[derive(Clone, Copy, Debug)]
enum Act {
    Put(i64),
    Delete(i64),
    Move(i64, i64),
    Truncate,
    Snapshot,
}

#[derive(Clone, Debug)]
struct History {
    source: Source,
    acts: Vec<Act>,
    /// These changes' rows have a note.
    wide: std::ops::Range<usize>,
    /// Where files end, and what is written a second time, in parts of the whole.
    cuts: Vec<prop::sample::Index>,
    again: Vec<(prop::sample::Index, prop::sample::Index)>,
    order: Vec<prop::sample::Index>,
}

fn history() -> impl Strategy<Value = History> {
    let id = || 0..4_i64;
    let act = prop_oneof![
        6 => id().prop_map(Act::Put),
        3 => id().prop_map(Act::Delete),
        2 => (id(), id()).prop_map(|(from, to)| Act::Move(from, to)),
        1 => Just(Act::Truncate),
        2 => Just(Act::Snapshot),
    ];
    let source = prop_oneof![
        Just(Source::Postgres),
        Just(Source::Mysql),
        Just(Source::SqlServer),
        Just(Source::Other),
    ];
    let index = any::<prop::sample::Index>;
    (
        source,
        prop::collection::vec(act, 1..25),
        (0..20_usize, 0..20_usize),
        prop::collection::vec(index(), 0..6),
        prop::collection::vec((index(), index()), 0..4),
        prop::collection::vec(index(), 40),
    )
        .prop_map(|(source, acts, (from, changes), cuts, again, order)| History {
            source,
            acts,
            wide: from..from + changes,
            cuts,
            again,
            order,
        })
}

/// The changes that the source logs, and what its table is like in the end: rows, and whether
/// each was written with a note.
fn play(history: &History) -> (Vec<Change>, BTreeMap<i64, (u32, bool)>) {
    let (mut log, mut table) = (Vec::new(), BTreeMap::new());
    let mut position = 1;
    for (n, act) in (0_u32..).zip(&history.acts) {
        // No two snapshots at one place: nothing would tell which is newer.
        position += u32::from(matches!(act, Act::Snapshot));
        let wide = history.wide.contains(&log.len());
        let old =
            |id: i64, table: &BTreeMap<i64, (u32, bool)>| table.get(&id).map(|row| (id, row.0));
        let mut logged = |op, before, after| {
            log.push(Change { op, before, after, position, wide });
        };
        match *act {
            Act::Put(id) => {
                let before = old(id, &table);
                logged(if before.is_some() { "u" } else { "c" }, before, Some((id, n)));
                table.insert(id, (n, wide));
            }
            Act::Delete(id) => {
                let Some(before) = old(id, &table) else { continue };
                logged("d", Some(before), None);
                table.remove(&id);
            }
            Act::Move(from, to) => {
                let (Some(before), None) = (old(from, &table), old(to, &table)) else { continue };
                logged("u", Some(before), Some((to, n)));
                table.remove(&from);
                table.insert(to, (n, wide));
            }
            Act::Truncate => {
                logged("t", None, None);
                table.clear();
            }
            // At the very place where the next change will be.
            Act::Snapshot => {
                for (id, row) in &mut table {
                    logged("r", None, Some((*id, row.0)));
                    row.1 = wide;
                }
                continue;
            }
        }
        position += 1;
    }
    (log, table)
}

/// Files of the changes: the log cut into pieces, and some pieces of it again, each of one schema,
/// in some order.
fn uploads(history: &History, log: &[Change]) -> Vec<Upload> {
    let mut ranges = Vec::new();
    let mut cuts: Vec<usize> = history.cuts.iter().map(|cut| cut.index(log.len())).collect();
    cuts.extend([0, log.len()]);
    cuts.sort_unstable();
    ranges.extend(cuts.windows(2).map(|cut| cut[0]..cut[1]));
    ranges.extend(history.again.iter().map(|(a, b)| {
        let (a, b) = (a.index(log.len()), b.index(log.len()));
        a.min(b)..a.max(b) + 1
    }));
    let mut files = Vec::new();
    for range in ranges {
        for piece in log[range].chunk_by(|one, next| one.wide == next.wide) {
            let mut piece = piece.to_vec();
            // Every third file is itself out of order.
            if files.len() % 3 == 2 {
                piece.reverse();
            }
            files.push(changes(history.source, &piece));
        }
    }
    let at = |index: usize| i64::try_from(index % 5).unwrap_or(0);
    let mut uploads: Vec<Upload> = files
        .into_iter()
        .enumerate()
        .map(|(index, bytes)| Upload::new(&format!("k{index}"), at(index), bytes))
        .collect();
    for (place, other) in history.order.iter().enumerate() {
        let length = uploads.len();
        uploads.swap(place % length, other.index(length));
    }
    let twice = uploads.first().cloned();
    uploads.extend(twice);
    uploads
}

pub(crate) async fn any_order_ends_the_same(
    place: impl Future<Output = Result<Place>>,
) -> Result<()> {
    let place = place.await?;
    for (case, history) in cases(&place, history()) {
        let (log, table) = play(&history);
        if log.is_empty() {
            continue;
        }
        let bench = Bench::new(&place, KEYED)?;
        let told = || format!("case {case}: {history:#?}\n{log:#?}");
        bench.deliver(&uploads(&history, &log)).await.with_context(told)?;
        let wide = log.iter().any(|change| change.wide);
        let rows: Vec<_> = table
            .iter()
            .map(|(id, (n, noted))| {
                let mut row = vec![Some(id.to_string()), Some(format!("n{n}"))];
                if wide {
                    row.push(noted.then(|| format!("note {n}")));
                }
                row
            })
            .collect();
        let columns = if wide { "id, n, note" } else { "id, n" };
        assert_eq!(bench.rows(columns).await?, rows, "{}", told());
        assert_eq!(bench.strays().await?, 0, "{}", told());
        let both = format!(
            "SELECT count(*) FROM {0} WHERE id IN (SELECT id FROM {0}__deleted)",
            bench.table()
        );
        assert_eq!(bench.number(&both).await?, 0, "there and deleted: {}", told());
    }
    Ok(())
}
