//! Schema resolution by the book: the rules of the Avro 1.12 specification, one by one. Random
//! schemas are compared with apache-avro elsewhere; here is what it does not do, or does wrongly.

use weirgate_avro::cells::CellSink;
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::{Plan, Target};
use weirgate_avro::rows::Stopped;
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{Dialect, Masks, TableDef};

#[derive(Default)]
struct Shown(Vec<String>);

impl CellSink<'_> for Shown {
    type Error = ();
    fn null(&mut self) {
        self.0.push("null".to_owned());
    }
    fn integer(&mut self, value: i64) {
        self.0.push(value.to_string());
    }
    fn real(&mut self, value: f64) {
        self.0.push(format!("{value:?}"));
    }
    fn text(&mut self, text: &str) {
        self.0.push(format!("'{text}'"));
    }
    fn computed_text(&mut self, text: &str) {
        self.text_of(text);
    }
    fn blob(&mut self, bytes: &[u8]) {
        self.0.push(format!("{bytes:02x?}"));
    }
    fn computed_blob(&mut self, bytes: &[u8]) {
        self.0.push(format!("{bytes:02x?}"));
    }
    fn end_row(&mut self) -> Result<(), ()> {
        Ok(())
    }
    fn discard_row(&mut self) {}
}

impl Shown {
    fn text_of(&mut self, text: &str) {
        self.0.push(format!("'{text}'"));
    }
}

/// The columns and the cells of one row, or why there is none.
fn read(writer: &str, reader: &str, row: &[u8]) -> Result<String, String> {
    let limits = Limits::default();
    let [writer, reader] = [writer, reader].map(|json| Schema::parse(json, &limits).unwrap());
    let masks = Masks::new();
    let columns = TableDef::new(&reader, &[], false, &masks).unwrap().columns;
    let mut results = [Dialect::Sqlite, Dialect::Postgres].map(|dialect| {
        let target = Target { dialect, columns: &columns, masks: &masks, limits: &limits };
        let plan = Plan::compile(&writer, Some(&reader), &target)
            .map_err(|error| format!("plan: {error}"))?;
        let constants = plan.constants(0, &[]).unwrap();
        if dialect == Dialect::Postgres {
            let mut out = Vec::new();
            let copied = plan.transcode_copy(row, 1, &constants, &mut out);
            return copied.map(|()| String::new()).map_err(|fault| fault.to_string());
        }
        let mut shown = Shown::default();
        match plan.rows(row, 1).visit(&constants, &mut shown) {
            Ok(()) => {}
            Err(Stopped::Fault(fault)) => return Err(fault.to_string()),
            Err(Stopped::Sink(())) => unreachable!(),
        }
        let cells = plan.columns().iter().zip(&shown.0);
        Ok(cells
            .map(|(column, cell)| format!("{}={cell}", column.name))
            .collect::<Vec<_>>()
            .join(" "))
    });
    let [sqlite, postgres] = &mut results;
    assert_eq!(sqlite.as_ref().err(), postgres.as_ref().err(), "both databases refuse the same");
    std::mem::replace(sqlite, Ok(String::new()))
}

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)
}

fn field(ty: &str) -> String {
    record(&format!(r#"{{"name":"x","type":{ty}}}"#))
}

fn value(writer: &str, reader: &str, row: &[u8]) -> Result<String, String> {
    read(&field(writer), &field(reader), row)
}

#[test]
fn promotions() {
    let one = |cell: &str| Ok(format!("x={cell}"));
    assert_eq!(value(r#""int""#, r#""long""#, &[3]), one("-2"));
    assert_eq!(value(r#""int""#, r#""float""#, &[3]), one("-2.0"));
    assert_eq!(value(r#""long""#, r#""double""#, &[3]), one("-2.0"));
    assert_eq!(value(r#""float""#, r#""double""#, &0.5f32.to_le_bytes()), one("0.5"));
    assert_eq!(value(r#""string""#, r#""bytes""#, &[2, b'a']), one("[61]"));
    assert_eq!(value(r#""bytes""#, r#""string""#, &[2, b'a']), one("'a'"));
    assert!(value(r#""bytes""#, r#""string""#, &[2, 0xff]).unwrap_err().contains("UTF-8"));
    assert!(value(r#""long""#, r#""int""#, &[2]).unwrap_err().contains("long is not int"));
    // An int stays within 32 bits, whatever it is read as.
    assert!(value(r#""int""#, r#""long""#, &[0x80, 0x80, 0x80, 0x80, 0x10]).is_err());
}

#[test]
fn fields_by_name_alias_and_default() {
    let writer = record(r#"{"name":"a","type":"int"},{"name":"b","type":"string"}"#);
    let row = [2, 2, b'z'];
    let swapped = record(r#"{"name":"b","type":"string"},{"name":"a","type":"int"}"#);
    assert_eq!(read(&writer, &swapped, &row), Ok("a=1 b='z'".to_owned()));
    let renamed = record(r#"{"name":"A","aliases":["x","a"],"type":"int"}"#);
    assert_eq!(read(&writer, &renamed, &row), Ok("A=1".to_owned()));
    let added = record(
        r#"{"name":"b","type":"string"},
           {"name":"n","type":["null","int"],"default":null},
           {"name":"i","type":["int","null"],"default":7},
           {"name":"d","type":{"type":"int","logicalType":"date"},"default":1},
           {"name":"r","type":{"type":"record","name":"S","fields":[
               {"name":"p","type":"int","default":3},{"name":"q","type":"string"}]},
            "default":{"q":"ü"}},
           {"name":"m","type":{"type":"map","values":"double"},"default":{"k":1}}"#,
    );
    assert_eq!(
        read(&writer, &added, &row),
        Ok(r#"b='z' n=null i=7 d='1970-01-02' r='{"p":3,"q":"ü"}' m='{"k":1.0}'"#.to_owned())
    );
    let required = record(r#"{"name":"c","type":"int"}"#);
    assert!(read(&writer, &required, &row).unwrap_err().contains("no default"));
    // The same field cannot be read twice.
    let twice = record(r#"{"name":"a","type":"int"},{"name":"c","aliases":["a"],"type":"int"}"#);
    assert!(read(&writer, &twice, &row).is_err());
}

#[test]
fn names() {
    let named = |name: &str, alias: &str| {
        format!(
            r#"{{"type":"record","name":"{name}","aliases":["{alias}"],"fields":[{{"name":"x","type":"int"}}]}}"#
        )
    };
    assert!(read(&named("a.R", "q"), &named("b.R", "q"), &[2]).is_ok(), "unqualified names count");
    assert!(read(&named("a.R", "q"), &named("b.S", "q"), &[2]).is_err());
    assert!(read(&named("a.R", "q"), &named("b.S", "a.R"), &[2]).is_ok());
    assert!(read(&named("b.R", "q"), &named("b.S", "R"), &[2]).is_ok(), "aliases are relative");
    let fixed = |size: u8| format!(r#"{{"type":"fixed","name":"F","size":{size}}}"#);
    assert!(value(&fixed(2), &fixed(3), &[1, 2]).is_err());
}

#[test]
fn enums() {
    let symbols = |list: &str, default: &str| {
        format!(r#"{{"type":"enum","name":"E","symbols":[{list}]{default}}}"#)
    };
    let writer = symbols(r#""A","B","C""#, "");
    let reader = symbols(r#""C","A""#, "");
    assert_eq!(value(&writer, &reader, &[4]), Ok("x='C'".to_owned()));
    assert!(value(&writer, &reader, &[2]).unwrap_err().contains("symbol"));
    let lenient = symbols(r#""C","A""#, r#","default":"A""#);
    assert_eq!(value(&writer, &lenient, &[2]), Ok("x='A'".to_owned()));
    assert!(value(&writer, &lenient, &[6]).is_err(), "no such symbol at all");
}

#[test]
fn unions() {
    // Writer's only: the branch in use must match.
    assert_eq!(value(r#"["null","int"]"#, r#""long""#, &[2, 6]), Ok("x=3".to_owned()));
    assert!(
        value(r#"["null","int"]"#, r#""long""#, &[0]).unwrap_err().contains("null is not long")
    );
    assert!(value(r#"["null","int"]"#, r#""long""#, &[4]).unwrap_err().contains("no branch"));
    // Reader's only: the first that matches.
    assert_eq!(value(r#""int""#, r#"["null","long"]"#, &[6]), Ok("x=3".to_owned()));
    assert_eq!(value(r#""int""#, r#"["string","double","long"]"#, &[6]), Ok("x='3.0'".to_owned()));
    assert_eq!(value(r#""int""#, r#"["double","int"]"#, &[6]), Ok("x='3'".to_owned()));
    assert!(value(r#""int""#, r#"["null","string"]"#, &[6]).unwrap_err().contains("no branch"));
    // Both.
    let both = |row: &[u8]| value(r#"["int","string","null"]"#, r#"["null","string"]"#, row);
    assert_eq!(both(&[2, 2, b'a']), Ok("x='a'".to_owned()));
    assert_eq!(both(&[4]), Ok("x=null".to_owned()));
    assert!(both(&[0, 2]).is_err());
    assert_eq!(value(r#"["int"]"#, r#""int""#, &[0, 2]), Ok("x=1".to_owned()));
}

#[test]
fn recursion() {
    let writer = r#"{"type":"record","name":"R","fields":[
        {"name":"v","type":"int"},{"name":"gone","type":"string"},{"name":"next","type":["null","R"]}]}"#;
    let reader = r#"{"type":"record","name":"R","fields":[
        {"name":"next","type":["null","R"]},{"name":"v","type":"double"},
        {"name":"new","type":"boolean","default":true}]}"#;
    let row = [2, 2, b'a', 2, 4, 0, 0];
    assert_eq!(
        read(writer, reader, &row),
        Ok(r#"v=1.0 next='{"v":2.0,"next":null,"new":true}' new=1"#.to_owned())
    );
}

#[test]
fn logical_types() {
    let long = |name: &str| format!(r#"{{"type":"long","logicalType":"{name}"}}"#);
    // The writer's unit tells which instant is meant.
    assert_eq!(
        value(&long("timestamp-millis"), &long("timestamp-micros"), &[2]),
        Ok("x='1970-01-01T00:00:00.001Z'".to_owned())
    );
    assert_eq!(
        value(r#""long""#, &long("timestamp-micros"), &[2]),
        Ok("x='1970-01-01T00:00:00.000001Z'".to_owned())
    );
    assert_eq!(value(&long("timestamp-micros"), r#""long""#, &[2]), Ok("x=1".to_owned()));
    let decimal = |scale: u8| {
        format!(r#"{{"type":"bytes","logicalType":"decimal","precision":4,"scale":{scale}}}"#)
    };
    assert_eq!(value(&decimal(1), &decimal(1), &[2, 15]), Ok("x='1.5'".to_owned()));
    assert!(value(&decimal(1), &decimal(2), &[2, 15]).is_err());
    assert_eq!(value(r#""bytes""#, &decimal(2), &[2, 15]), Ok("x='0.15'".to_owned()));
}
