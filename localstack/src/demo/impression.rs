//! Ad impressions, as an exchange would log them: what the demo imports.

use anyhow::Result;
use apache_avro::types::Value;
use apache_avro::{Codec, Decimal, DeflateSettings, Schema, Writer};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

pub(super) const SCHEMA: &str = r#"{
  "type": "record", "name": "Impression", "namespace": "example.ads",
  "fields": [
    {"name": "auction_id", "type": {"type": "string", "logicalType": "uuid"}},
    {"name": "occurred_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    {"name": "campaign_id", "type": "long"},
    {"name": "creative_id", "type": "long"},
    {"name": "publisher", "type": "string"},
    {"name": "placement", "type": ["null", "string"], "default": null},
    {"name": "country", "type": "string"},
    {"name": "device", "type": {"type": "enum", "name": "Device",
      "symbols": ["PHONE", "TABLET", "DESKTOP", "TV"]}},
    {"name": "os", "type": ["null", "string"], "default": null},
    {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 6}},
    {"name": "bid_floor", "type": "double"},
    {"name": "viewability", "type": "double"},
    {"name": "clicked", "type": "boolean"},
    {"name": "segments", "type": {"type": "array", "items": "string"}}
  ]
}"#;

const PUBLISHERS: [&str; 5] =
    ["news.example", "weather.example", "sport.example", "games.example", "travel.example"];
const PLACEMENTS: [&str; 4] = ["top", "sidebar", "in-article", "footer"];
const COUNTRIES: [&str; 8] = ["DE", "FR", "GB", "IT", "JP", "NL", "PL", "US"];
const DEVICES: [&str; 4] = ["PHONE", "TABLET", "DESKTOP", "TV"];
const SYSTEMS: [&str; 4] = ["Android", "iOS", "Linux", "Windows"];
const SEGMENTS: [&str; 6] = ["autos", "cooking", "finance", "gardening", "music", "travel"];

/// An object's bytes, and what the table must hold once it is imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) rows: u64,
    /// Of the column `creative_id`: rows that are there but wrong change it.
    pub(super) checksum: i64,
}

/// `rows` impressions in a container file. The same arguments give the same impressions.
pub(super) fn encode(schema: &Schema, seed: u64, number: u64, rows: u64) -> Result<Encoded> {
    let mut random = SmallRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    // Both codecs every reader must know.
    let codec = match number % 2 {
        0 => Codec::Null,
        _ => Codec::Deflate(DeflateSettings::default()),
    };
    // The marker between blocks is random unless it is chosen.
    let mut writer = Writer::builder()
        .schema(schema)
        .writer(Vec::new())
        .codec(codec)
        .marker(random.random())
        .build()?;
    let mut checksum = 0;
    for _ in 0..rows {
        let creative = random.random_range(1..1_000_000_i64);
        checksum += creative;
        writer.append_value(impression(&mut random, creative))?;
    }
    Ok(Encoded { bytes: writer.into_inner()?, rows, checksum })
}

fn impression(random: &mut SmallRng, creative: i64) -> Value {
    let text = |value: &str| Value::String(value.to_owned());
    let nullable = |value: Option<&str>| match value {
        None => Value::Union(0, Box::new(Value::Null)),
        Some(value) => Value::Union(1, Box::new(text(value))),
    };
    let choose = |random: &mut SmallRng, from: &[&'static str]| {
        *from.choose(random).expect("the lists are not empty")
    };
    let day = 1_795_132_800_000_000_i64;
    let device = random.random_range(0..DEVICES.len());
    let placement = random.random_bool(0.8).then(|| choose(random, &PLACEMENTS));
    let system = random.random_bool(0.9).then(|| choose(random, &SYSTEMS));
    let price = random.random_range(1_000..25_000_000_i32);
    let segments = random.random_range(0..4);
    let fields = [
        ("auction_id", Value::Uuid(apache_avro::Uuid::from_u128(random.random()))),
        ("occurred_at", Value::TimestampMicros(day + random.random_range(0..86_400_000_000_i64))),
        ("campaign_id", Value::Long(random.random_range(1..5_000_i64))),
        ("creative_id", Value::Long(creative)),
        ("publisher", text(choose(random, &PUBLISHERS))),
        ("placement", nullable(placement)),
        ("country", text(choose(random, &COUNTRIES))),
        ("device", Value::Enum(u32::try_from(device).unwrap_or(0), DEVICES[device].to_owned())),
        ("os", nullable(system)),
        ("price", Value::Decimal(Decimal::from(price.to_be_bytes().to_vec()))),
        ("bid_floor", Value::Double(f64::from(random.random_range(0..500_u16)) / 100.0)),
        ("viewability", Value::Double(f64::from(random.random_range(0..=1_000_u16)) / 1_000.0)),
        ("clicked", Value::Boolean(random.random_bool(0.01))),
        (
            "segments",
            Value::Array((0..segments).map(|_| text(choose(random, &SEGMENTS))).collect()),
        ),
    ];
    Value::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(encoded: &Encoded) -> Vec<Value> {
        let reader = apache_avro::Reader::new(encoded.bytes.as_slice()).unwrap();
        reader.map(Result::unwrap).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_impressions() {
        let schema = Schema::parse_str(SCHEMA).unwrap();
        for number in 0..2 {
            let first = encode(&schema, 7, number, 50).unwrap();
            let again = encode(&schema, 7, number, 50).unwrap();
            let other = encode(&schema, 8, number, 50).unwrap();
            assert_eq!(read(&first).len(), 50);
            assert!(read(&first) == read(&again) && first.checksum == again.checksum);
            assert!(read(&first) != read(&other));
        }
    }

    #[test]
    fn an_object_may_be_empty() {
        let schema = Schema::parse_str(SCHEMA).unwrap();
        let empty = encode(&schema, 7, 3, 0).unwrap();
        assert_eq!(read(&empty), []);
        assert_eq!((empty.rows, empty.checksum), (0, 0));
    }
}
