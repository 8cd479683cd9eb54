//! The readers we compare with, each given a whole file in memory and asked to decode every row.

use std::hint::black_box;
use std::io::Cursor;

use serde::Deserialize;

#[derive(Deserialize)]
#[allow(dead_code)]
pub(crate) struct Impression<D> {
    auction_id: String,
    at: i64,
    user_id: i64,
    campaign_id: i64,
    creative_id: i32,
    site: String,
    country: Option<String>,
    city: Option<String>,
    device: Device,
    price: D,
    bid: f64,
    score: Option<f64>,
    viewable: bool,
    served_at: Option<i64>,
    segments: Vec<String>,
}

#[derive(Deserialize)]
enum Device {
    #[serde(rename = "DESKTOP")]
    Desktop,
    #[serde(rename = "PHONE")]
    Phone,
    #[serde(rename = "TABLET")]
    Tablet,
    #[serde(rename = "TV")]
    Tv,
}

#[derive(Deserialize)]
#[allow(dead_code)]
pub(crate) struct Point {
    id: i64,
    at: i64,
    sensor: i32,
    level: f64,
}

#[derive(Deserialize)]
#[allow(dead_code)]
pub(crate) struct Order {
    id: i64,
    customer: Customer,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Customer {
    name: String,
    email: Option<String>,
    since: i32,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Line {
    sku: String,
    count: i32,
    price: f64,
}

pub(crate) fn apache_value(file: &[u8]) -> u64 {
    let reader = apache_avro::Reader::new(file).unwrap();
    reader.map(|value| u64::from(black_box(value).is_ok())).sum()
}

pub(crate) fn apache_serde(set: &str, file: &[u8]) -> u64 {
    fn count<T: serde::de::DeserializeOwned>(file: &[u8]) -> u64 {
        let reader = apache_avro::Reader::new(file).unwrap();
        reader
            .into_deser_iter::<T>()
            .map(|row| {
                black_box(row.unwrap());
                1
            })
            .sum()
    }
    match set {
        "impressions" => count::<Impression<apache_avro::Decimal>>(file),
        "narrow" => count::<Point>(file),
        _ => count::<Order>(file),
    }
}

pub(crate) fn avro_fast(set: &str, file: &[u8]) -> u64 {
    use serde_avro_fast::object_container_file_encoding::Reader;
    fn count<T: serde::de::DeserializeOwned>(file: &[u8]) -> u64 {
        let mut reader = Reader::from_slice(file).unwrap();
        let rows = reader
            .deserialize::<T>()
            .map(|row| {
                black_box(row.unwrap());
                1
            })
            .sum();
        rows
    }
    match set {
        "impressions" => count::<Impression<f64>>(file),
        "narrow" => count::<Point>(file),
        _ => count::<Order>(file),
    }
}

pub(crate) fn arrow(file: &[u8]) -> u64 {
    let reader = arrow_avro::reader::ReaderBuilder::new()
        .with_batch_size(8192)
        .build(Cursor::new(file))
        .unwrap();
    reader.map(|batch| black_box(batch.unwrap()).num_rows() as u64).sum()
}
