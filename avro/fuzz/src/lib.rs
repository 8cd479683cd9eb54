//! The fuzz targets, as functions: the crate's own tests run them on the seeds.

use weirgate_avro::cells::CellSink;
use weirgate_avro::codec::Decompressor;
use weirgate_avro::container::Reader;
use weirgate_avro::envelope::{DELETE, PUT, TRUNCATE, image};
use weirgate_avro::evolve::diff;
use weirgate_avro::fault::Fault;
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::{Plan, Target};
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{Dialect, Masks, SqlType, TableDef};

/// A whole file: header, schema, blocks, codecs, rows. The first byte sets the size of the pushes.
pub fn container(input: &[u8]) {
    let Some((chunk, file)) = input.split_first() else { return };
    let limits = limits();
    let mut reader = Reader::new(limits.clone());
    let (mut decompressor, mut plain, mut rows) = (None, Vec::new(), 0u64);
    for bytes in file.chunks(usize::from(*chunk) * 8 + 1) {
        reader.push(bytes);
        let Ok(header) = reader.read_header() else { return };
        let Some(header) = header else { continue };
        let schema = header.writer.json.clone();
        let decompressor =
            decompressor.get_or_insert_with(|| Decompressor::new(header.codec, &limits));
        loop {
            let block = match reader.next_block() {
                Ok(Some(block)) => block,
                Ok(None) => break,
                Err(_) => return,
            };
            assert_eq!(block.first_row, rows);
            rows = rows.saturating_add(block.rows);
            let Ok(data) = decompressor.decompress(&block, &mut plain) else { return };
            assert!(data.len() <= limits.decompressed_bytes);
            transcode(&schema, None, block.rows, data);
        }
    }
    let _ = reader.finish();
}

/// Schema text: parsing, canonical form, fingerprint, table.
pub fn schema_text(input: &[u8]) {
    let limits = limits();
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(schema) = Schema::parse(text, &limits) else { return };
    let canonical = schema.canonical();
    // The canonical form is a schema, and its own canonical form.
    if canonical.len() <= limits.schema_bytes
        && let Ok(again) = Schema::parse(&canonical, &limits)
    {
        assert_eq!(again.canonical(), canonical);
        assert_eq!(again.fingerprint(), schema.fingerprint());
    }
    if let Ok(table) = TableDef::new(&schema, &[], true, &Masks::new()) {
        for dialect in [Dialect::Postgres, Dialect::Sqlite] {
            table.create_table_sql(dialect, "t");
            assert_eq!(diff(dialect, &table.columns, &table.columns), []);
        }
    }
}

/// A block of a schema that the input spells.
pub fn block(input: &[u8]) {
    let mut rest = input;
    let schema = schema(&mut rest);
    let Some((rows, block)) = rest.split_first() else { return };
    transcode(&schema, None, u64::from(*rows), block);
}

/// A block of one schema read as another.
pub fn resolve(input: &[u8]) {
    let mut rest = input;
    let writer = schema(&mut rest);
    let field = |field: &str| writer.replacen("\"fields\":[", &format!("\"fields\":[{field},"), 1);
    // Unlike schemas rarely resolve: let the reader differ a little, or not at all.
    let reader = match rest.first() {
        Some(0..=63) => writer.replacen("\"int\"", "\"long\"", 1),
        Some(64..=127) => writer.replace("\"long\"", "\"double\""),
        Some(128..=159) => field(r#"{"name":"new","type":["null","string"],"default":"x"}"#),
        Some(160..=191) => writer.replacen("\"name\":\"f0\"", "\"name\":\"z\",\"default\":null", 1),
        _ => schema(&mut rest),
    };
    let Some((rows, block)) = rest.split_first() else { return };
    transcode(&writer, Some(&reader), u64::from(*rows), block);
}

/// What orders the changes of each kind of source.
const SOURCES: [&str; 4] = [
    r#"{"name":"lsn","type":["null","long"]}"#,
    r#"{"name":"file","type":"string"},{"name":"pos","type":"long"},{"name":"row","type":"int"}"#,
    r#"{"name":"commit_lsn","type":["string","null"]},{"name":"change_lsn","type":["null","string"]}"#,
    r#"{"name":"ts_ms","type":"long"}"#,
];

/// A block of Debezium's envelopes around rows of a schema that the input spells.
pub fn changes(input: &[u8]) {
    let mut rest = input;
    let kind = next(&mut rest);
    let row = schema(&mut rest);
    let source = SOURCES[usize::from(kind) % SOURCES.len()];
    let envelope = format!(
        r#"{{"type":"record","name":"Envelope","fields":[{{"name":"before","type":["null",{row}]}},
            {{"name":"after","type":["null","R"]}},{{"name":"op","type":"string"}},
            {{"name":"source","type":{{"type":"record","name":"Source","fields":[{source}]}}}}]}}"#
    );
    let writer = match kind & 4 {
        0 => envelope,
        // With tombstones.
        _ => format!("[\"null\",{envelope}]"),
    };
    let limits = limits();
    let Ok(writer) = Schema::parse(&writer, &limits) else { return };
    let image = image(&writer).unwrap();
    let masks = Masks::new();
    let Ok(table) = TableDef::new(&image, &[], true, &masks) else { return };
    let key = ["f0".to_owned()];
    let plans = [Dialect::Postgres, Dialect::Sqlite].map(|dialect| {
        let target = Target { dialect, columns: &table.columns, masks: &masks, limits: &limits };
        Plan::compile_changes(&writer, &key, &target)
    });
    let [Ok(postgres), Ok(sqlite)] = plans else { return };
    let Some((rows, block)) = rest.split_first() else { return };
    let constants = postgres.constants(1, &[]).unwrap();
    let mut cursor = postgres.rows(block, u64::from(*rows));
    let (mut out, mut copied) = (Vec::new(), 0);
    loop {
        out.clear();
        let before = cursor.remaining();
        let result = cursor.copy(&constants, &mut out, 1 << 14);
        copied += check_changes(&out, &postgres);
        match result {
            Ok(()) if cursor.remaining() == 0 => break,
            Ok(()) => assert!(cursor.remaining() < before, "no progress"),
            Err(Fault::Row(_)) => {
                if let Some(json) = cursor.refused_json() {
                    serde_json::from_str::<serde::de::IgnoredAny>(&json).unwrap();
                }
            }
            Err(Fault::Corrupt(_)) => break,
        }
    }
    assert!(copied <= 2 * u64::from(*rows), "an update of the key is two rows");
    let mut sink = Sink { columns: sqlite.columns().len() + 2, row: 0 };
    let mut cursor = sqlite.rows(block, u64::from(*rows));
    while cursor.remaining() > 0 {
        let before = cursor.remaining();
        let _ = cursor.visit(&constants, &mut sink);
        if cursor.remaining() == before {
            break;
        }
    }
}

/// Small enough that the fuzzer meets them.
fn limits() -> Limits {
    Limits {
        header_bytes: 1 << 16,
        schema_bytes: 1 << 15,
        schema_depth: 64,
        block_bytes: 1 << 16,
        decompressed_bytes: 1 << 18,
        blocks: 64,
        value_depth: 16,
        empty_values: 64,
        decimal_bytes: 256,
        field_bytes: 1 << 16,
        ..Limits::default()
    }
}

/// A schema any bytes spell; takes what it uses off `bytes`.
fn schema(bytes: &mut &[u8]) -> String {
    let mut names = 0;
    let fields: Vec<_> = (0..next(bytes) % 6 + 1)
        .map(|index| format!(r#"{{"name":"f{index}","type":{}}}"#, ty(bytes, 0, &mut names)))
        .collect();
    format!(r#"{{"type":"record","name":"R","fields":[{}]}}"#, fields.join(","))
}

fn next(bytes: &mut &[u8]) -> u8 {
    match bytes.split_first() {
        Some((first, rest)) => {
            *bytes = rest;
            *first
        }
        None => 0,
    }
}

const PLAIN: [&str; 24] = [
    r#""null""#,
    r#""boolean""#,
    r#""int""#,
    r#""long""#,
    r#""float""#,
    r#""double""#,
    r#""bytes""#,
    r#""string""#,
    r#"{"type":"bytes","logicalType":"decimal","precision":10,"scale":3}"#,
    r#"{"type":"bytes","logicalType":"decimal","precision":90,"scale":45}"#,
    r#"{"type":"bytes","logicalType":"big-decimal"}"#,
    r#"{"type":"string","logicalType":"uuid"}"#,
    r#"{"type":"int","logicalType":"date"}"#,
    r#"{"type":"int","logicalType":"time-millis"}"#,
    r#"{"type":"long","logicalType":"time-micros"}"#,
    r#"{"type":"long","logicalType":"timestamp-millis"}"#,
    r#"{"type":"long","logicalType":"timestamp-micros"}"#,
    r#"{"type":"long","logicalType":"timestamp-nanos"}"#,
    r#"{"type":"long","logicalType":"local-timestamp-millis"}"#,
    r#"["null","R"]"#,
    r#"["null","long"]"#,
    r#"["string","null"]"#,
    r#"["null","double","string"]"#,
    r#"["int"]"#,
];

fn ty(bytes: &mut &[u8], depth: usize, names: &mut usize) -> String {
    let kind = next(bytes);
    if depth > 3 || kind % 32 < 24 {
        return PLAIN[usize::from(kind) % PLAIN.len()].to_owned();
    }
    *names += 1;
    let name = *names;
    match kind % 32 - 24 {
        0 | 1 => format!(r#"{{"type":"array","items":{}}}"#, ty(bytes, depth + 1, names)),
        2 => format!(r#"{{"type":"map","values":{}}}"#, ty(bytes, depth + 1, names)),
        3 => {
            let fields: Vec<_> = (0..next(bytes) % 3)
                .map(|index| {
                    format!(r#"{{"name":"g{index}","type":{}}}"#, ty(bytes, depth + 1, names))
                })
                .collect();
            format!(r#"{{"type":"record","name":"N{name}","fields":[{}]}}"#, fields.join(","))
        }
        4 => format!(r#"{{"type":"enum","name":"N{name}","symbols":["A","B"],"default":"A"}}"#),
        5 => format!(r#"{{"type":"fixed","name":"N{name}","size":{}}}"#, next(bytes) % 20),
        6 => format!(r#"{{"type":"fixed","name":"N{name}","size":12,"logicalType":"duration"}}"#),
        _ => format!(r#"{{"type":"fixed","name":"N{name}","size":16,"logicalType":"uuid"}}"#),
    }
}

/// Transcodes a block both ways and checks all there is to check about what comes out.
fn transcode(writer: &str, reader: Option<&str>, rows: u64, block: &[u8]) {
    let limits = limits();
    let Ok(writer) = Schema::parse(writer, &limits) else { return };
    let reader = reader.map(|json| Schema::parse(json, &limits));
    let Ok(reader) = reader.transpose() else { return };
    let masks = Masks::new();
    let wanted = reader.as_ref().unwrap_or(&writer);
    let Ok(table) = TableDef::new(wanted, &[], true, &masks) else { return };
    let plans = [Dialect::Postgres, Dialect::Sqlite].map(|dialect| {
        let target = Target { dialect, columns: &table.columns, masks: &masks, limits: &limits };
        Plan::compile(&writer, reader.as_ref(), &target)
    });
    let [Ok(postgres), Ok(sqlite)] = plans else { return };
    let constants = postgres.constants(1, &[]).unwrap();
    let mut cursor = postgres.rows(block, rows);
    let mut out = Vec::new();
    let mut stored = 0;
    loop {
        out.clear();
        let before = cursor.remaining();
        let result = cursor.copy(&constants, &mut out, 1 << 14);
        let tuples = check_tuples(&out, &postgres);
        stored += tuples;
        match result {
            Ok(()) if cursor.remaining() == 0 => break,
            Ok(()) => assert!(cursor.remaining() < before, "no progress"),
            Err(Fault::Row(fault)) => {
                assert_eq!(before - cursor.remaining(), tuples + 1, "{fault}");
                if let Some(json) = cursor.refused_json() {
                    // Not parsed to a value: its numbers may be beyond a double's range.
                    serde_json::from_str::<serde::de::IgnoredAny>(&json).unwrap();
                }
            }
            Err(Fault::Corrupt(_)) => break,
        }
    }
    assert!(stored <= rows);
    let mut sink = Sink { columns: sqlite.columns().len(), row: 0 };
    let mut cursor = sqlite.rows(block, rows);
    while cursor.remaining() > 0 {
        let before = cursor.remaining();
        let _ = cursor.visit(&constants, &mut sink);
        if cursor.remaining() == before {
            break;
        }
    }
}

/// Walks the tuples; their number.
fn check_tuples(mut bytes: &[u8], plan: &Plan) -> u64 {
    let mut tuples = 0;
    while let Some((count, rest)) = bytes.split_first_chunk::<2>() {
        assert_eq!(usize::from(u16::from_be_bytes(*count)), plan.columns().len());
        bytes = rest;
        for column in plan.columns() {
            let (length, rest) = bytes.split_first_chunk::<4>().unwrap();
            bytes = rest;
            let length = i32::from_be_bytes(*length);
            if length == -1 {
                assert!(column.nullable);
                continue;
            }
            let (field, rest) = bytes.split_at(length as usize);
            bytes = rest;
            check_field(field, &column.sql_type);
        }
        tuples += 1;
    }
    assert!(bytes.is_empty());
    tuples
}

/// Walks tuples to be staged: the columns, the version, and what the row is. Their number.
fn check_changes(mut bytes: &[u8], plan: &Plan) -> u64 {
    let mut tuples = 0;
    while let Some((count, rest)) = bytes.split_first_chunk::<2>() {
        let columns = plan.columns();
        assert_eq!(usize::from(u16::from_be_bytes(*count)), columns.len() + 2);
        bytes = rest;
        let fields: Vec<Option<&[u8]>> = (0..columns.len() + 2)
            .map(|_| {
                let (length, rest) = bytes.split_first_chunk::<4>().unwrap();
                let length = usize::try_from(i32::from_be_bytes(*length)).ok();
                let field = &rest[..length.unwrap_or(0)];
                bytes = &rest[field.len()..];
                length.map(|_| field)
            })
            .collect();
        let change = std::str::from_utf8(fields[columns.len() + 1].unwrap()).unwrap();
        assert!([PUT, DELETE, TRUNCATE].contains(&change), "{change}");
        assert!(!fields[columns.len()].unwrap().is_empty(), "no version");
        for (field, column) in fields.iter().zip(columns) {
            match field {
                Some(field) => check_field(field, &column.sql_type),
                None => assert!(column.nullable || change != PUT),
            }
        }
        tuples += 1;
    }
    assert!(bytes.is_empty());
    tuples
}

fn check_field(field: &[u8], sql_type: &SqlType) {
    match sql_type {
        SqlType::Text => assert!(!std::str::from_utf8(field).unwrap().contains('\0')),
        SqlType::Jsonb => {
            assert_eq!(field[0], 1);
            check_json(&field[1..]);
        }
        SqlType::Boolean => assert!(matches!(field, [0 | 1])),
        SqlType::Integer | SqlType::Real | SqlType::Date => assert_eq!(field.len(), 4),
        SqlType::Uuid | SqlType::Interval => assert_eq!(field.len(), 16),
        SqlType::Numeric(_) => {
            let words: Vec<_> =
                field.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            assert_eq!(usize::from(words[0]) + 4, words.len());
            assert!(matches!(words[2], 0 | 0x4000) && words[3] < 0x4000);
            assert!(words[4..].iter().all(|group| *group < 10_000));
            assert!(words[4..].first() != Some(&0) && words[4..].last() != Some(&0));
        }
        SqlType::Bytea => {}
        _ => assert_eq!(field.len(), 8),
    }
}

fn check_json(text: &[u8]) {
    let text = std::str::from_utf8(text).unwrap();
    let mut rest = text;
    while let Some(place) = rest.find('\\') {
        assert!(!rest[place..].starts_with("\\u0000"), "jsonb holds no NUL");
        // The escaped character may be a backslash itself.
        rest = &rest[place + 2..];
    }
    serde_json::from_str::<serde::de::IgnoredAny>(text).unwrap();
}

struct Sink {
    columns: usize,
    row: usize,
}

impl CellSink<'_> for Sink {
    type Error = ();
    fn null(&mut self) {
        self.row += 1;
    }
    fn integer(&mut self, _: i64) {
        self.row += 1;
    }
    fn real(&mut self, value: f64) {
        assert!(!value.is_nan());
        self.row += 1;
    }
    fn text(&mut self, text: &str) {
        self.computed_text(text);
    }
    fn computed_text(&mut self, text: &str) {
        assert!(!text.contains('\0'));
        self.row += 1;
    }
    fn blob(&mut self, _: &[u8]) {
        self.row += 1;
    }
    fn computed_blob(&mut self, _: &[u8]) {
        self.row += 1;
    }
    fn end_row(&mut self) -> Result<(), ()> {
        assert_eq!(self.row, self.columns);
        self.row = 0;
        Ok(())
    }
    fn discard_row(&mut self) {
        self.row = 0;
    }
}
