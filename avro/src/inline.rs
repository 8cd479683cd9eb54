//! Records inside messages instead of files: one datum behind a few bytes that tell its schema.
//!
//! The datum itself is a block of one row: `plan.rows(datum, 1)`, or a file of one record.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use thiserror::Error;

use super::container::MAGIC;

/// How to find the schema a datum was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchemaKey {
    /// CRC-64-AVRO, as [`super::schema::Schema::fingerprint`] gives it.
    Fingerprint(i64),
    /// The id a Confluent-compatible registry gave it.
    Registry(u32),
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum InlineError {
    #[error("the record is empty")]
    Empty,
    #[error("the record ends inside its {framing} header")]
    Truncated { framing: &'static str },
    #[error(
        "the record starts with {found:#04x}: neither single-object encoding (c3 01) nor a \
         registry's framing (00)"
    )]
    Framing { found: u8 },
    #[error("the record is not base64")]
    Base64,
}

/// Takes the framing off a datum: single-object encoding (`c3 01`, the fingerprint
/// little-endian) or Confluent's wire format (`00`, the registry's id big-endian).
pub fn unframe(bytes: &[u8]) -> Result<(SchemaKey, &[u8]), InlineError> {
    match bytes {
        [] => Err(InlineError::Empty),
        [0xc3, 0x01, rest @ ..] => match rest.split_first_chunk::<8>() {
            Some((key, datum)) => Ok((SchemaKey::Fingerprint(i64::from_le_bytes(*key)), datum)),
            None => Err(InlineError::Truncated { framing: "single-object" }),
        },
        [0x00, rest @ ..] => match rest.split_first_chunk::<4>() {
            Some((key, datum)) => Ok((SchemaKey::Registry(u32::from_be_bytes(*key)), datum)),
            None => Err(InlineError::Truncated { framing: "registry" }),
        },
        [0xc3] => Err(InlineError::Truncated { framing: "single-object" }),
        [found, ..] => Err(InlineError::Framing { found: *found }),
    }
}

/// A file that holds the datum as its only record, so that records in messages take the way of
/// files, with every check on it.
pub fn container(schema_json: &str, datum: &[u8]) -> Vec<u8> {
    // No other block follows that it could be confused with.
    const SYNC: [u8; 16] = [0; 16];
    let mut file = MAGIC.to_vec();
    let mut bytes = |length: usize, parts: &[&[u8]]| {
        write_long(&mut file, i64::try_from(length).unwrap_or(i64::MAX));
        parts.iter().for_each(|part| file.extend_from_slice(part));
    };
    bytes(1, &[]);
    bytes("avro.schema".len(), &[b"avro.schema"]);
    bytes(schema_json.len(), &[schema_json.as_bytes()]);
    bytes(0, &[&SYNC]);
    bytes(1, &[]);
    bytes(datum.len(), &[datum, &SYNC]);
    file
}

/// Zigzag, seven bits at a time.
fn write_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// The bytes of a record that came as text, since SQS and SNS bodies are UTF-8: base64 of either
/// alphabet, padded or not, with surrounding white space.
pub fn from_base64(text: &str) -> Result<Vec<u8>, InlineError> {
    let lenient =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) { alphabet::URL_SAFE } else { alphabet::STANDARD };
    GeneralPurpose::new(&alphabet, lenient).decode(text.trim()).map_err(|_| InlineError::Base64)
}

#[cfg(test)]
mod tests {
    use super::super::container::Reader;
    use super::super::limits::Limits;
    use super::super::plan::{Plan, Target};
    use super::super::schema::Schema;
    use super::super::table::{Dialect, Masks, TableDef};
    use super::*;

    #[test]
    fn framings() {
        let single = [&[0xc3, 1][..], &7i64.to_le_bytes(), b"x"].concat();
        assert_eq!(unframe(&single), Ok((SchemaKey::Fingerprint(7), &b"x"[..])));
        assert_eq!(unframe(&[0, 0, 0, 1, 0, 9]), Ok((SchemaKey::Registry(256), &[9][..])));
        for len in 0..10 {
            assert!(unframe(&single[..len]).is_err());
        }
        assert_eq!(unframe(b"{"), Err(InlineError::Framing { found: b'{' }));
    }

    #[test]
    fn text() {
        for text in ["AP/+", "AP_-", " AP/+\n"] {
            assert_eq!(from_base64(text), Ok(vec![0, 0xff, 0xfe]));
        }
        assert_eq!(from_base64("w4E"), from_base64("w4E="));
        assert_eq!(from_base64("{}"), Err(InlineError::Base64));
    }

    #[test]
    fn a_datum_makes_a_file_of_one_record() {
        let json = r#"{"type":"record","name":"R","fields":[{"name":"id","type":"string"}]}"#;
        let text = "x".repeat(300);
        let mut datum = Vec::new();
        write_long(&mut datum, 300);
        datum.extend_from_slice(text.as_bytes());
        let file = container(json, &datum);
        let mut reader = Reader::new(Limits::default());
        reader.push(&file);
        assert_eq!(reader.read_header().unwrap().unwrap().writer.json, json);
        let block = reader.next_block().unwrap().unwrap();
        assert_eq!((block.rows, block.data), (1, datum.as_slice()));
        assert!(reader.next_block().unwrap().is_none());
        reader.finish().unwrap();
        let read: Vec<_> = apache_avro::Reader::new(file.as_slice()).unwrap().collect();
        assert_eq!(read.len(), 1);
    }

    #[test]
    fn a_datum_is_a_block_of_one_row() {
        let limits = Limits::default();
        let json = r#"{"type":"record","name":"R","fields":[{"name":"id","type":"long"}]}"#;
        let schema = Schema::parse(json, &limits).unwrap();
        let reference = apache_avro::Schema::parse_str(json).unwrap();
        let mut writer =
            apache_avro::GenericSingleObjectWriter::new_with_capacity(&reference, 64).unwrap();
        let mut message = Vec::new();
        let record = vec![("id".to_owned(), apache_avro::types::Value::Long(3))];
        writer.write_value_ref(&apache_avro::types::Value::Record(record), &mut message).unwrap();
        let (key, datum) = unframe(&message).unwrap();
        assert_eq!(key, SchemaKey::Fingerprint(schema.fingerprint()));
        let (masks, dialect) = (Masks::new(), Dialect::Postgres);
        let table = TableDef::new(&schema, &[], false, &masks).unwrap();
        let target = Target { dialect, columns: &table.columns, masks: &masks, limits: &limits };
        let plan = Plan::compile(&schema, None, &target).unwrap();
        let mut out = Vec::new();
        plan.transcode_copy(datum, 1, &plan.constants(0, &[]).unwrap(), &mut out).unwrap();
        assert_eq!(out, [0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert!(
            plan.transcode_copy(
                &[datum, &[0]].concat(),
                1,
                &plan.constants(0, &[]).unwrap(),
                &mut out
            )
            .is_err()
        );
    }
}
