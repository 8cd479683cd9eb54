//! For random schemas and values, written by apache-avro with every codec, our rows equal what
//! apache-avro reads back, and each table goes into a real PostgreSQL and comes back the same.

mod expect;
mod extremes;
mod generate;
mod server;
mod tuples;

use apache_avro::types::Value;
use apache_avro::{Codec, Reader as Reference, Schema as ReferenceSchema, Writer};
use expect::Cell;
use generate::{Generator, Type};
use proptest::prelude::*;
use weirgate_avro::cells::CellSink;
use weirgate_avro::codec::Decompressor;
use weirgate_avro::container::Reader;
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::{Plan, Target};
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{Dialect, Masks, TableDef};

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

struct File {
    bytes: Vec<u8>,
    root: Type,
}

fn write(generator: &mut Generator, codec: Codec) -> File {
    let root = generator.record(0);
    let schema = ReferenceSchema::parse(&root.json()).unwrap();
    let map_array_target_block_size = generator.random.chance(2).then_some(16);
    let mut writer = Writer::builder()
        .schema(&schema)
        .codec(codec)
        .block_size(200)
        .maybe_map_array_target_block_size(map_array_target_block_size)
        .writer(Vec::new())
        .build()
        .unwrap();
    for _ in 0..generator.random.below(12) {
        let value = generator.value(&root, &root, 0);
        writer.append_value(value).unwrap();
    }
    File { bytes: writer.into_inner().unwrap(), root }
}

/// Our rows of a file, as PostgreSQL and as SQLite would hold them.
fn import(file: &[u8], reader: Option<&str>) -> (Vec<String>, [Vec<Vec<Cell>>; 2]) {
    let limits = Limits::default();
    let mut container = Reader::new(limits.clone());
    container.push(file);
    let header = container.read_header().unwrap().unwrap().clone();
    let reader = reader.map(|json| Schema::parse(json, &limits).unwrap());
    let schema = reader.as_ref().unwrap_or(&header.writer.schema);
    let masks = Masks::new();
    let Ok(table) = TableDef::new(schema, &[], false, &masks) else {
        return (Vec::new(), [Vec::new(), Vec::new()]);
    };
    let columns = &table.columns;
    let plans = [Dialect::Postgres, Dialect::Sqlite].map(|dialect| {
        let target = Target { dialect, columns, masks: &masks, limits: &limits };
        Plan::compile(&header.writer.schema, reader.as_ref(), &target).unwrap()
    });
    let constants = plans[0].constants(0, &[]).unwrap();
    let mut decompressor = Decompressor::new(header.codec, &limits);
    let (mut plain, mut copy, mut sink) = (Vec::new(), Vec::new(), Cells::default());
    while let Some(block) = container.next_block().unwrap() {
        let data = decompressor.decompress(&block, &mut plain).unwrap();
        plans[0].transcode_copy(data, block.rows, &constants, &mut copy).unwrap();
        let mut rows = plans[1].rows(data, block.rows);
        rows.visit(&constants, &mut sink).map_err(|stopped| format!("{stopped:?}")).unwrap();
    }
    container.finish().unwrap();
    let names = plans[0].columns().iter().map(|column| column.name.clone()).collect();
    let rows = tuples::rows(&copy, plans[0].columns());
    let create = table.create_table_sql(Dialect::Postgres, "held");
    let returned = server::round_trip(&create, plans[0].columns(), &copy);
    let returned = tuples::rows(&returned, plans[0].columns());
    assert_eq!(returned.len(), rows.len());
    for (ours, theirs) in rows.iter().flatten().zip(returned.iter().flatten()) {
        assert!(ours.same_in_postgres(theirs), "sent {ours:?}, got {theirs:?}");
    }
    (names, [rows, sink.rows])
}

#[derive(Default)]
struct Cells {
    row: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

impl CellSink<'_> for Cells {
    type Error = ();
    fn null(&mut self) {
        self.row.push(Cell::Null);
    }
    fn integer(&mut self, value: i64) {
        self.row.push(Cell::Integer(value));
    }
    fn real(&mut self, value: f64) {
        self.row.push(Cell::Real(value.to_bits()));
    }
    fn text(&mut self, text: &str) {
        self.row.push(Cell::Text(text.to_owned()));
    }
    fn computed_text(&mut self, text: &str) {
        self.row.push(Cell::Text(text.to_owned()));
    }
    fn blob(&mut self, bytes: &[u8]) {
        self.row.push(Cell::Bytes(bytes.to_owned()));
    }
    fn computed_blob(&mut self, bytes: &[u8]) {
        self.row.push(Cell::Bytes(bytes.to_owned()));
    }
    fn end_row(&mut self) -> Result<(), ()> {
        self.rows.push(std::mem::take(&mut self.row));
        Ok(())
    }
    fn discard_row(&mut self) {
        self.row.clear();
    }
}

fn compare(values: &[Value], root: &Type, names: &[String], ours: [Vec<Vec<Cell>>; 2]) {
    let Type::Record(_, fields) = root else { unreachable!() };
    for (rows, sqlite) in ours.into_iter().zip([false, true]) {
        if names.is_empty() {
            continue;
        }
        assert_eq!(rows.len(), values.len());
        for (row, value) in rows.iter().zip(values) {
            let Value::Record(values) = value else { panic!("{value:?}") };
            for (name, mut ours) in names.iter().zip(row.iter().cloned()) {
                let field = fields.iter().find(|field| field.name == *name).unwrap();
                let (_, value) = values.iter().find(|(other, _)| other == name).unwrap();
                let expected = expect::cell(value, &field.ty, root, sqlite);
                if let (Cell::Json(_), Cell::Text(text)) = (&expected, &ours) {
                    ours = Cell::Json(expect::parse(text));
                }
                assert_eq!(ours, expected, "field {name}: {:?}", field.ty);
            }
        }
    }
}

fn check_as_written(seed: u64, codec: Codec) {
    let file = write(&mut Generator::new(seed), codec);
    let values: Vec<_> = Reference::new(&file.bytes[..]).unwrap().map(Result::unwrap).collect();
    let (names, ours) = import(&file.bytes, None);
    compare(&values, &file.root, &names, ours);
}

fn check_resolved(seed: u64, codec: Codec) {
    let mut generator = Generator::new(seed);
    generator.resolvable = true;
    let file = write(&mut generator, codec);
    let evolved = generator.evolve(&file.root);
    let json = evolved.json();
    let schema = ReferenceSchema::parse(&json).unwrap();
    let values: Result<Vec<_>, _> =
        Reference::builder(&file.bytes[..]).reader_schema(&schema).build().unwrap().collect();
    // Where apache-avro refuses what the specification allows there is nothing to compare with.
    let Ok(values) = values else { return };
    let (names, ours) = import(&file.bytes, Some(&json.to_string()));
    compare(&values, &evolved, &names, ours);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn rows_equal_the_references(seed in any::<u64>(), codec in 0usize..6) {
        check_as_written(seed, codecs()[codec]);
    }

    #[test]
    fn resolved_rows_equal_the_references(seed in any::<u64>(), codec in 0usize..6) {
        check_resolved(seed, codecs()[codec]);
    }
}
