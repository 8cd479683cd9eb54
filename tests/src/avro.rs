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

/// A file of `rows` rows of [`SCHEMA`].
pub fn file(object: &str, rows: u64, codec: Codec) -> Vec<u8> {
    file_with(SCHEMA, object, rows, codec)
}

pub fn file_with(schema: &str, object: &str, rows: u64, codec: Codec) -> Vec<u8> {
    let n_is_text = schema == OTHER_SCHEMA;
    let schema = Schema::parse_str(schema).expect("the schemas of the tests are valid");
    let mut writer = Writer::builder()
        .schema(&schema)
        .codec(codec)
        .writer(Vec::new())
        .build()
        .expect("writing to memory");
    for row in 0..rows {
        let mut record = Record::new(&schema).expect("the schemas of the tests are records");
        // Row 3 of an object named so has an id that no database text can hold.
        let nul = if object == "nul" && row == 3 { "\0" } else { "" };
        record.put("id", format!("{object}-{row}{nul}"));
        match n_is_text {
            true => record.put("n", row.to_string()),
            false => record.put("n", row as i64),
        }
        record.put("price", Some(row as f64 / 4.0));
        record.put("country", "de");
        writer.append_value(record).expect("the record fits its schema");
    }
    writer.into_inner().expect("writing to memory")
}
