//! The data sets, the same for the same seed: written in Avro's encoding by hand, since a
//! million rows through a general writer would take longer than the comparison.

use apache_avro::Codec;

pub struct Set {
    pub name: &'static str,
    pub schema: &'static str,
    /// Rows and their binary encoding, block by block.
    blocks: Vec<(u64, Vec<u8>)>,
}

const BLOCK_BYTES: usize = 64 << 10;

const SYNC: [u8; 16] = [0x57; 16];

const IMPRESSIONS: &str = r#"{"type":"record","name":"Impression","fields":[
    {"name":"auction_id","type":"string"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"user_id","type":"long"},
    {"name":"campaign_id","type":"long"},
    {"name":"creative_id","type":"int"},
    {"name":"site","type":"string"},
    {"name":"country","type":["null","string"]},
    {"name":"city","type":["null","string"]},
    {"name":"device","type":{"type":"enum","name":"Device","symbols":["DESKTOP","PHONE","TABLET","TV"]}},
    {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":12,"scale":6}},
    {"name":"bid","type":"double"},
    {"name":"score","type":["null","double"]},
    {"name":"viewable","type":"boolean"},
    {"name":"served_at","type":["null",{"type":"long","logicalType":"timestamp-millis"}]},
    {"name":"segments","type":{"type":"array","items":"string"}}]}"#;

const NARROW: &str = r#"{"type":"record","name":"Point","fields":[
    {"name":"id","type":"long"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"sensor","type":"int"},
    {"name":"level","type":"double"}]}"#;

const NESTED: &str = r#"{"type":"record","name":"Order","fields":[
    {"name":"id","type":"long"},
    {"name":"customer","type":{"type":"record","name":"Customer","fields":[
        {"name":"name","type":"string"},
        {"name":"email","type":["null","string"]},
        {"name":"since","type":"int"}]}},
    {"name":"lines","type":{"type":"array","items":{"type":"record","name":"Line","fields":[
        {"name":"sku","type":"string"},
        {"name":"count","type":"int"},
        {"name":"price","type":"double"}]}}}]}"#;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn long(out: &mut Vec<u8>, value: i64) {
    let mut rest = (value << 1) as u64 ^ (value >> 63) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn text(out: &mut Vec<u8>, text: &str) {
    long(out, text.len() as i64);
    out.extend_from_slice(text.as_bytes());
}

fn double(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_le_bytes());
}

const COUNTRIES: [&str; 8] = ["DE", "FR", "NL", "PL", "US", "BR", "IN", "JP"];
const CITIES: [&str; 8] =
    ["Berlin", "Paris", "Amsterdam", "Kraków", "New York", "São Paulo", "Bengaluru", "Osaka"];
const WORDS: [&str; 8] =
    ["sports", "news", "auto", "travel-europe", "food", "in-market", "garden", "retarget"];

const START: i64 = 1_780_000_000_000_000;

fn impression(random: &mut Random, index: i64, out: &mut Vec<u8>) {
    text(out, &format!("{:016x}{:08x}", random.next(), random.next() as u32));
    let at = START + index * 137 + random.below(1000) as i64;
    long(out, at);
    long(out, (random.next() >> 20) as i64);
    long(out, 100_000 + random.below(5000) as i64);
    long(out, random.below(90_000) as i64);
    text(out, &format!("www.site-{}.example.com", random.below(20_000)));
    match random.below(10) {
        0 => long(out, 0),
        n => {
            long(out, 1);
            text(out, COUNTRIES[n as usize % 8]);
        }
    }
    match random.below(4) {
        0 => long(out, 0),
        _ => {
            long(out, 1);
            text(out, CITIES[random.below(8) as usize]);
        }
    }
    long(out, random.below(4) as i64);
    let price = (random.below(9_000_000) as i64).to_be_bytes();
    let skip = price.windows(2).take_while(|pair| pair[0] == 0 && pair[1] < 0x80).count();
    long(out, (8 - skip) as i64);
    out.extend_from_slice(&price[skip..]);
    double(out, random.below(1_000_000) as f64 / 1e5);
    match random.below(3) {
        0 => long(out, 0),
        _ => {
            long(out, 1);
            double(out, random.next() as f64 / u64::MAX as f64);
        }
    }
    out.push(random.below(2) as u8);
    match random.below(5) {
        0 => long(out, 0),
        _ => {
            long(out, 1);
            long(out, at / 1000 + random.below(500) as i64);
        }
    }
    let segments = random.below(4);
    if segments > 0 {
        long(out, segments as i64);
        for _ in 0..segments {
            text(out, WORDS[random.below(8) as usize]);
        }
    }
    long(out, 0);
}

fn narrow(random: &mut Random, index: i64, out: &mut Vec<u8>) {
    long(out, index);
    long(out, START + index * 1000);
    long(out, random.below(500) as i64);
    double(out, random.below(1_000_000) as f64 / 1e3);
}

fn nested(random: &mut Random, index: i64, out: &mut Vec<u8>) {
    long(out, index);
    text(out, CITIES[random.below(8) as usize]);
    match random.below(3) {
        0 => long(out, 0),
        _ => {
            long(out, 1);
            text(out, &format!("customer{}@example.com", random.below(1_000_000)));
        }
    }
    long(out, 2000 + random.below(26) as i64);
    let lines = 1 + random.below(4);
    long(out, lines as i64);
    for _ in 0..lines {
        text(out, &format!("SKU-{:06}", random.below(1_000_000)));
        long(out, 1 + random.below(9) as i64);
        double(out, random.below(100_000) as f64 / 100.0);
    }
    long(out, 0);
}

impl Set {
    fn new(
        name: &'static str,
        schema: &'static str,
        rows: i64,
        row: fn(&mut Random, i64, &mut Vec<u8>),
    ) -> Self {
        let mut random = Random(20_261_120);
        let mut blocks = vec![(0, Vec::new())];
        for index in 0..rows {
            if blocks.last().is_some_and(|(_, bytes)| bytes.len() >= BLOCK_BYTES) {
                blocks.push((0, Vec::new()));
            }
            let (count, bytes) = blocks.last_mut().unwrap();
            row(&mut random, index, bytes);
            *count += 1;
        }
        Self { name, schema, blocks }
    }

    pub fn all(scale: i64) -> [Self; 3] {
        [
            Self::new("impressions", IMPRESSIONS, 200_000 * scale, impression),
            Self::new("narrow", NARROW, 500_000 * scale, narrow),
            Self::new("nested", NESTED, 100_000 * scale, nested),
        ]
    }

    pub fn impressions(rows: i64) -> Self {
        Self::new("impressions", IMPRESSIONS, rows, impression)
    }

    pub fn rows(&self) -> u64 {
        self.blocks.iter().map(|(rows, _)| rows).sum()
    }

    /// The whole file. `codec` is `name` in the header.
    pub fn file(&self, codec: Codec, name: &str) -> Vec<u8> {
        let mut out = self.header(name);
        out.extend_from_slice(&self.blocks(codec));
        out
    }

    pub fn header(&self, codec: &str) -> Vec<u8> {
        let mut out = b"Obj\x01".to_vec();
        long(&mut out, 2);
        text(&mut out, "avro.schema");
        text(&mut out, self.schema);
        text(&mut out, "avro.codec");
        text(&mut out, codec);
        long(&mut out, 0);
        out.extend_from_slice(&SYNC);
        out
    }

    /// What follows the header; may be repeated.
    pub fn blocks(&self, codec: Codec) -> Vec<u8> {
        let mut out = Vec::new();
        for (rows, bytes) in &self.blocks {
            let mut bytes = bytes.clone();
            codec.compress(&mut bytes).unwrap();
            long(&mut out, *rows as i64);
            long(&mut out, bytes.len() as i64);
            out.extend_from_slice(&bytes);
            out.extend_from_slice(&SYNC);
        }
        out
    }
}
