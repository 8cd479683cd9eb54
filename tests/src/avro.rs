//! Avro files whose rows can be recognised: `id` is `<object>-<row>`, unique over a whole test.

use apache_avro::types::Record;
use apache_avro::{Codec, Schema, Writer};

pub const SCHEMA: &str = r#"{"type": "record", "name": "Impression", "namespace": "ads", "fields": [
    {"name": "id", "type": "string"},
    {"name": "n", "type": "long"},
    {"name": "price", "type": ["null", "double"]}
]}"#;

/// The same with one more field.
pub const WIDER_SCHEMA: &str = r#"{"type": "record", "name": "Impression", "namespace": "ads", "fields": [
    {"name": "id", "type": "string"},
    {"name": "n", "type": "long"},
    {"name": "price", "type": ["null", "double"]},
    {"name": "country", "type": "string"}
]}"#;

/// The same with a field of another, incompatible type.
pub const OTHER_SCHEMA: &str = r#"{"type": "record", "name": "Impression", "namespace": "ads", "fields": [
    {"name": "id", "type": "string"},
    {"name": "n", "type": "string"},
    {"name": "price", "type": ["null", "double"]}
]}"#;

/// What a feed may read [`SCHEMA`] as: a field less, a wider type, a field with a default.
pub const READER_SCHEMA: &str = r#"{"type": "record", "name": "Impression", "namespace": "ads", "fields": [
    {"name": "id", "type": "string"},
    {"name": "n", "type": "double"},
    {"name": "source", "type": "string", "default": "web"}
]}"#;

/// The same with smaller numbers.
pub const NARROW_SCHEMA: &str = r#"{"type": "record", "name": "Impression", "namespace": "ads", "fields": [
    {"name": "id", "type": "string"},
    {"name": "n", "type": "int"},
    {"name": "price", "type": ["null", "float"]}
]}"#;

/// A file of `rows` rows of [`SCHEMA`].
pub fn file(object: &str, rows: u64, codec: Codec) -> Vec<u8> {
    file_with(SCHEMA, object, rows, codec)
}

pub fn file_with(json: &str, object: &str, rows: u64, codec: Codec) -> Vec<u8> {
    let schema = Schema::parse_str(json).expect("the schemas of the tests are valid");
    let mut writer = Writer::builder()
        .schema(&schema)
        .codec(codec)
        .writer(Vec::new())
        .build()
        .expect("writing to memory");
    for row in 0..rows {
        writer
            .append_value(record(json, &schema, object, row))
            .expect("the record fits its schema");
    }
    writer.into_inner().expect("writing to memory")
}

/// Row `row` of an object; `json` is the schema's text.
pub fn record<'s>(json: &str, schema: &'s Schema, object: &str, row: u64) -> Record<'s> {
    let mut record = Record::new(schema).expect("the schemas of the tests are records");
    // Row 3 of an object named so has an id that no database text can hold.
    let nul = if object == "nul" && row == 3 { "\0" } else { "" };
    record.put("id", format!("{object}-{row}{nul}"));
    let price = row as f64 / 4.0;
    match json {
        OTHER_SCHEMA => record.put("n", row.to_string()),
        NARROW_SCHEMA => record.put("n", row as i32),
        _ => record.put("n", row as i64),
    }
    match json {
        NARROW_SCHEMA => record.put("price", Some(price as f32)),
        _ => record.put("price", Some(price)),
    }
    record.put("country", "de");
    record
}
