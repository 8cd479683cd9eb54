//! Damaged and malicious files end in an error, or in rows, but never in a panic, and never cost
//! more memory than the limits say.

use apache_avro::types::Value;
use apache_avro::{Codec, Schema as ReferenceSchema, Writer};
use weirgate_avro::cells::CellSink;
use weirgate_avro::codec::Decompressor;
use weirgate_avro::container::Reader;
use weirgate_avro::fault::Fault;
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::{Plan, Target};
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{Dialect, Masks, TableDef};

/// Every kind of shape, in few bytes.
const SCHEMA: &str = r#"{"type":"record","name":"R","fields":[
    {"name":"id","type":"long"},
    {"name":"name","type":["null","string"]},
    {"name":"kind","type":{"type":"enum","name":"K","symbols":["A","B"]}},
    {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":20,"scale":3}},
    {"name":"big","type":{"type":"bytes","logicalType":"big-decimal"}},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"key","type":{"type":"string","logicalType":"uuid"}},
    {"name":"tree","type":["null","R"]},
    {"name":"tags","type":{"type":"array","items":["null","string","double"]}},
    {"name":"map","type":{"type":"map","values":{"type":"array","items":"null"}}}]}"#;

fn file(codec: Codec) -> Vec<u8> {
    let schema = ReferenceSchema::parse_str(SCHEMA).unwrap();
    let mut writer =
        Writer::builder().schema(&schema).codec(codec).writer(Vec::new()).build().unwrap();
    for id in 0..3 {
        writer.append_value(record(id, 2)).unwrap();
    }
    writer.into_inner().unwrap()
}

fn record(id: i64, depth: usize) -> Value {
    let text = |text: &str| Value::Union(1, Box::new(Value::String(text.to_owned())));
    let tree = match depth {
        0 => Value::Union(0, Box::new(Value::Null)),
        _ => Value::Union(1, Box::new(record(id, depth - 1))),
    };
    let fields = [
        ("id", Value::Long(id)),
        ("name", text("weir ß")),
        ("kind", Value::Enum(1, "B".to_owned())),
        ("price", Value::Decimal(vec![1, 2, 3].into())),
        ("big", Value::BigDecimal("12.5".parse().unwrap())),
        ("at", Value::TimestampMicros(1_700_000_000_000_000)),
        ("key", Value::Uuid(apache_avro::Uuid::from_u128(7))),
        ("tree", tree),
        ("tags", Value::Array(vec![text("a"), Value::Union(2, Box::new(Value::Double(0.5)))])),
        ("map", Value::Map([("k".to_owned(), Value::Array(vec![Value::Null; 3]))].into())),
    ];
    Value::Record(fields.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

/// Imports a file into both formats, going on after refused rows. Returns the rows stored.
fn import(bytes: &[u8], limits: &Limits) -> Result<u64, String> {
    let show = |error: &dyn std::error::Error| error.to_string();
    let mut reader = Reader::new(limits.clone());
    reader.push(bytes);
    if reader.read_header().map_err(|error| show(&error))?.is_none() {
        return reader.finish().map(|()| 0).map_err(|error| show(&error));
    }
    let header = reader.header().unwrap().clone();
    let masks = Masks::new();
    let table =
        TableDef::new(&header.writer.schema, &[], true, &masks).map_err(|error| show(&error))?;
    let plans = [Dialect::Postgres, Dialect::Sqlite].map(|dialect| {
        let target = Target { dialect, columns: &table.columns, masks: &masks, limits };
        Plan::compile(&header.writer.schema, None, &target)
    });
    let [Ok(postgres), Ok(sqlite)] = plans else { return Err("no plan".to_owned()) };
    let constants = postgres.constants(1, &[]).map_err(|error| show(&error))?;
    let mut decompressor = Decompressor::new(header.codec, limits);
    let (mut plain, mut stored) = (Vec::new(), 0);
    while let Some(block) = reader.next_block().map_err(|error| show(&error))? {
        let data = decompressor.decompress(&block, &mut plain).map_err(|error| show(&error))?;
        let mut rows = postgres.rows(data, block.rows);
        let mut out = Vec::new();
        loop {
            match rows.copy(&constants, &mut out, 1 << 20) {
                Ok(()) if rows.remaining() == 0 => break,
                Ok(()) => out.clear(),
                Err(Fault::Row(_)) => {
                    if let Some(json) = rows.refused_json() {
                        serde_json::from_str::<serde_json::Value>(&json).expect("JSON");
                    }
                }
                Err(fault) => return Err(show(&fault)),
            }
        }
        let mut rows = sqlite.rows(data, block.rows);
        while rows.remaining() > 0 {
            let _ = rows.visit(&constants, &mut Nowhere);
        }
        stored += block.rows;
    }
    reader.finish().map(|()| stored).map_err(|error| show(&error))
}

struct Nowhere;

impl CellSink<'_> for Nowhere {
    type Error = ();
    fn null(&mut self) {}
    fn integer(&mut self, _: i64) {}
    fn real(&mut self, _: f64) {}
    fn text(&mut self, _: &str) {}
    fn computed_text(&mut self, _: &str) {}
    fn blob(&mut self, _: &[u8]) {}
    fn computed_blob(&mut self, _: &[u8]) {}
    fn end_row(&mut self) -> Result<(), ()> {
        Ok(())
    }
    fn discard_row(&mut self) {}
}

fn codecs() -> [Codec; 6] {
    [
        Codec::Null,
        Codec::Snappy,
        Codec::Deflate(Default::default()),
        Codec::Zstandard(Default::default()),
        Codec::Bzip2(Default::default()),
        Codec::Xz(Default::default()),
    ]
}

#[test]
fn truncation_at_every_byte() {
    for codec in codecs() {
        let file = file(codec);
        assert_eq!(import(&file, &Limits::default()), Ok(3));
        let whole: Vec<_> = (0..file.len())
            .filter(|len| import(&file[..*len], &Limits::default()).is_ok())
            .collect();
        assert_eq!(whole.len(), 1, "only the header alone is a whole file: {codec:?}");
    }
}

#[test]
fn every_bit_flipped() {
    for codec in codecs() {
        let file = file(codec);
        // A flipped bit may well leave a file that can be read; it may not panic.
        let limits = Limits { decompressed_bytes: 1 << 20, ..Limits::default() };
        for place in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[place] ^= 1 << bit;
                let _ = import(&damaged, &limits);
            }
        }
    }
}

#[test]
fn every_byte_replaced_by_the_extremes() {
    let file = file(Codec::Null);
    for place in 0..file.len() {
        for byte in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[place] = byte;
            let _ = import(&damaged, &Limits::default());
        }
    }
}

/// A file with one uncompressed block of these bytes.
fn block(schema: &str, rows: i64, bytes: &[u8]) -> Vec<u8> {
    let mut out = b"Obj\x01".to_vec();
    let long = |value: i64, out: &mut Vec<u8>| {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    };
    long(1, &mut out);
    for text in ["avro.schema", schema] {
        long(text.len() as i64, &mut out);
        out.extend_from_slice(text.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&[7; 16]);
    long(rows, &mut out);
    long(bytes.len() as i64, &mut out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(&[7; 16]);
    out
}

fn record_of(ty: &str) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{{"name":"x","type":{ty}}}]}}"#)
}

const MAX_VARINT: [u8; 10] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
const MIN_VARINT: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];

#[test]
fn huge_and_negative_lengths() {
    let nulls = r#"{"type":"array","items":"null"}"#;
    for ty in ["\"string\"", "\"bytes\"", nulls, r#"{"type":"map","values":"null"}"#] {
        for length in [&MAX_VARINT[..], &MIN_VARINT, &[0x80; 12], &[0xff; 10]] {
            let file = block(&record_of(ty), 1, length);
            assert!(import(&file, &Limits::default()).is_err(), "{ty} of {length:02x?}");
        }
    }
}

#[test]
fn arrays_of_nothing_are_bounded() {
    // 2^62 nulls in ten bytes, twice: as one run, and as a run that tells its size of zero.
    let nulls = record_of(r#"{"type":"array","items":"null"}"#);
    let plain = [&MAX_VARINT[..], &[0]].concat();
    let sized = [&MIN_VARINT[..], &[0, 0]].concat();
    for bytes in [plain, sized] {
        assert!(import(&block(&nulls, 1, &bytes), &Limits::default()).is_err());
    }
    let nothing = r#"{"type":"record","name":"R","fields":[]}"#;
    let file = block(
        &record_of(&format!(r#"{{"type":"array","items":{}}}"#, nothing.replace('R', "S"))),
        1,
        &MAX_VARINT,
    );
    assert!(import(&file, &Limits::default()).is_err());
    assert!(import(&block(&record_of("\"null\""), i64::MAX, &[]), &Limits::default()).is_err());
}

#[test]
fn values_nest_no_deeper_than_the_limit() {
    let schema = r#"{"type":"record","name":"R","fields":[{"name":"next","type":["null","R"]}]}"#;
    let chain = |depth: usize| [vec![2; depth], vec![0]].concat();
    // The root and two levels for each link.
    assert_eq!(import(&block(schema, 1, &chain(100)), &Limits::default()), Ok(1));
    assert!(import(&block(schema, 1, &chain(1_000_000)), &Limits::default()).is_err());
    let forever = r#"{"type":"record","name":"R","fields":[{"name":"next","type":"R"}]}"#;
    assert!(import(&block(forever, 1, &[]), &Limits::default()).is_err());
    assert!(import(&block(forever, 1, &[0]), &Limits::default()).is_err());
}

#[test]
fn schemas_are_bounded() {
    let limits = Limits::default();
    let nested = |depth: usize| {
        format!("{}\"int\"{}", r#"{"type":"array","items":"#.repeat(depth), "}".repeat(depth))
    };
    assert!(Schema::parse(&nested(400), &limits).is_ok());
    assert!(Schema::parse(&nested(100_000), &limits).is_err());
    let union = format!("[{}]", vec![r#"{"type":"array","items":"int"}"#; 5000].join(","));
    assert!(Schema::parse(&union, &limits).is_err());
    // Doubling references: 2^60 values if they were ever expanded.
    let mut fields = r#"{"name":"r0","type":{"type":"record","name":"R0","fields":[{"name":"x","type":"int"}]}}"#.to_owned();
    for level in 1..60 {
        let below = level - 1;
        fields += &format!(
            r#",{{"name":"r{level}","type":["null",{{"type":"record","name":"R{level}","fields":[
                {{"name":"a","type":["null","R{below}"]}},{{"name":"b","type":["null","R{below}"]}}]}}]}}"#
        );
    }
    let schema = format!(r#"{{"type":"record","name":"Top","fields":[{fields}]}}"#);
    let writer = Schema::parse(&schema, &limits).unwrap();
    let masks = Masks::new();
    let columns = TableDef::new(&writer, &[], false, &masks).unwrap().columns;
    let target =
        Target { dialect: Dialect::Postgres, columns: &columns, masks: &masks, limits: &limits };
    assert!(Plan::compile(&writer, Some(&writer), &target).is_ok());
}

#[test]
fn decimals_of_any_length_end_soon() {
    let ty = r#"{"type":"bytes","logicalType":"big-decimal"}"#;
    // A megabyte of digits, and a scale that asks for two billion zeros.
    let huge = vec![0x7f; 1 << 20];
    let mut inner = vec![0x80, 0x80, 0x80, 0x01];
    inner.extend_from_slice(&huge);
    inner.push(0);
    let mut bytes = vec![0x8a, 0x80, 0x80, 0x01];
    bytes.extend_from_slice(&inner);
    let _ = import(&block(&record_of(ty), 1, &bytes), &Limits::default());
    for scale in [&[0xfe, 0xff, 0xff, 0xff, 0x0f][..], &[0xff, 0xff, 0xff, 0xff, 0x0f]] {
        let inner = [&[2, 5][..], scale].concat();
        let bytes = [&[inner.len() as u8 * 2][..], &inner].concat();
        assert_eq!(import(&block(&record_of(ty), 1, &bytes), &Limits::default()), Ok(1));
    }
}
