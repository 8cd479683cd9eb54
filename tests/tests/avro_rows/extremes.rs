//! The ends of every type's range: what the databases hold goes in unchanged, what they do not is
//! refused with its reason.

use weirgate_avro::fault::{Fault, Reason};
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::{Plan, Target};
use weirgate_avro::rows::Stopped;
use weirgate_avro::schema::Schema;
use weirgate_avro::table::{Column, Dialect, Mask, Masks, Source, SqlType, TableDef};

use super::{Cells, expect::Cell, server};

fn long(value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out
}

fn bytes(content: &[u8]) -> Vec<u8> {
    [long(content.len() as i64), content.to_vec()].concat()
}

struct Case {
    plan: [Plan; 2],
    create: String,
    /// The column is not the one the schema asks for.
    foreign: bool,
}

impl Case {
    fn new(ty: &str, column: Option<SqlType>, mask: Option<Mask>) -> Self {
        let limits = Limits::default();
        let json =
            format!(r#"{{"type":"record","name":"R","fields":[{{"name":"x","type":{ty}}}]}}"#);
        let schema = Schema::parse(&json, &limits).unwrap();
        let masks: Masks = mask.into_iter().map(|mask| ("x".to_owned(), mask)).collect();
        let foreign = column.is_some();
        let mut table = TableDef::new(&schema, &[], false, &masks).unwrap();
        if let Some(sql_type) = column {
            let (name, source) = ("x".to_owned(), Source::Field("x".to_owned()));
            table.columns = vec![Column { name, source, sql_type, nullable: false }];
        }
        let plan = [Dialect::Postgres, Dialect::Sqlite].map(|dialect| {
            let (columns, masks, limits) = (&table.columns, &masks, &limits);
            Plan::compile(&schema, None, &Target { dialect, columns, masks, limits }).unwrap()
        });
        Self { plan, create: table.create_table_sql(Dialect::Postgres, "held"), foreign }
    }

    /// The COPY field of one value; checked against the server.
    fn postgres(&self, value: &[u8]) -> Result<Vec<u8>, Reason> {
        let plan = &self.plan[0];
        let mut out = Vec::new();
        match plan.transcode_copy(value, 1, &plan.constants(0, &[]).unwrap(), &mut out) {
            Ok(()) => {}
            Err(Fault::Row(fault)) => return Err(fault.reason),
            Err(fault) => panic!("{fault}"),
        }
        let returned = server::round_trip(&self.create, plan.columns(), &out);
        // jsonb and foreign scales are the same values in other bytes.
        let rewritten = self.foreign && matches!(plan.columns()[0].sql_type, SqlType::Numeric(_));
        if !rewritten && plan.columns()[0].sql_type != SqlType::Jsonb {
            assert_eq!(returned, out);
        }
        Ok(out[2..].to_vec())
    }

    fn sqlite(&self, value: &[u8]) -> Result<Cell, Reason> {
        let plan = &self.plan[1];
        let mut sink = Cells::default();
        match plan.rows(value, 1).visit(&plan.constants(0, &[]).unwrap(), &mut sink) {
            Ok(()) => Ok(sink.rows.remove(0).remove(0)),
            Err(Stopped::Fault(Fault::Row(fault))) => Err(fault.reason),
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn logical(base: &str, name: &str) -> String {
    format!(r#"{{"type":"{base}","logicalType":"{name}"}}"#)
}

#[test]
fn dates() {
    let case = Case::new(&logical("int", "date"), None, None);
    // 4714-11-24 BC and 5874897-12-31.
    for (days, held) in [
        (-2_440_588, true),
        (-2_440_589, false),
        (2_145_042_905, true),
        (2_145_042_906, false),
        (i64::from(i32::MIN), false),
        (i64::from(i32::MAX), false),
    ] {
        assert_eq!(case.postgres(&long(days)).is_ok(), held, "{days}");
    }
    assert_eq!(case.sqlite(&long(2_932_896)), Ok(Cell::Text("9999-12-31".to_owned())));
    assert_eq!(case.sqlite(&long(-719_528)), Ok(Cell::Text("0000-01-01".to_owned())));
    assert_eq!(case.sqlite(&long(2_932_897)), Err(Reason::DateRange { days: 2_932_897 }));
}

#[test]
fn timestamps() {
    let first = -210_866_803_200_000_000; // 4714-11-24 BC
    for name in ["timestamp-micros", "local-timestamp-micros"] {
        let case = Case::new(&logical("long", name), None, None);
        for (micros, held) in [
            (first, true),
            (first - 1, false),
            // PostgreSQL's last year, 294276, ends past what 64 bits hold from 1970.
            (i64::MAX, true),
            (i64::MIN, false),
        ] {
            assert_eq!(case.postgres(&long(micros)).is_ok(), held, "{name} {micros}");
        }
    }
    for name in ["timestamp-millis", "local-timestamp-millis"] {
        let case = Case::new(&logical("long", name), None, None);
        for (millis, held) in [
            (first / 1000, true),
            (first / 1000 - 1, false),
            (i64::MAX / 1000, true),
            (i64::MAX / 1000 + 1, false),
            (i64::MAX, false),
            (i64::MIN, false),
        ] {
            assert_eq!(case.postgres(&long(millis)).is_ok(), held, "{name} {millis}");
        }
        assert!(case.sqlite(&long(253_402_300_800_000)).is_err());
        assert!(case.sqlite(&long(253_402_300_799_999)).is_ok());
    }
    let nanos = Case::new(&logical("long", "timestamp-nanos"), None, None);
    assert_eq!(nanos.plan[0].notes().len(), 1);
    for value in [i64::MIN, -1, i64::MAX] {
        assert!(nanos.postgres(&long(value)).is_ok());
    }
    // Towards the past, so that order is kept.
    let epoch = 946_684_800_000_000_i64;
    let expected = [&[0, 0, 0, 8][..], &(-1 - epoch).to_be_bytes()].concat();
    assert_eq!(nanos.postgres(&long(-1)), Ok(expected));
}

#[test]
fn times() {
    let case = Case::new(&logical("long", "time-micros"), None, None);
    for (micros, held) in [(0, true), (86_399_999_999, true), (86_400_000_000, false), (-1, false)]
    {
        assert_eq!(case.postgres(&long(micros)).is_ok(), held);
        assert_eq!(case.sqlite(&long(micros)).is_ok(), held);
    }
}

#[test]
fn numbers() {
    for value in [i64::MIN, -1, 0, i64::MAX] {
        assert!(Case::new("\"long\"", None, None).postgres(&long(value)).is_ok());
        let wide = Case::new("\"long\"", Some(SqlType::Numeric(None)), None);
        assert!(wide.postgres(&long(value)).is_ok());
        let narrow = Case::new("\"long\"", Some(SqlType::Integer), None);
        assert_eq!(narrow.postgres(&long(value)).is_ok(), i32::try_from(value).is_ok());
    }
    let double = Case::new("\"double\"", None, None);
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN, 5e-324] {
        assert!(double.postgres(&value.to_le_bytes()).is_ok());
        let expected =
            if value.is_nan() { Err(Reason::NotANumber) } else { Ok(Cell::Real(value.to_bits())) };
        assert_eq!(double.sqlite(&value.to_le_bytes()), expected);
    }
    let list = Case::new(r#"{"type":"array","items":"double"}"#, None, None);
    let block =
        [long(2), f64::NAN.to_le_bytes().to_vec(), 1e308f64.to_le_bytes().to_vec(), long(0)];
    assert_eq!(
        list.sqlite(&block.concat()),
        Ok(Cell::Text("[\"NaN\",1e+308]".to_owned())),
        "JSON has no NaN"
    );
    assert!(list.postgres(&block.concat()).is_ok());
}

#[test]
fn decimals() {
    let decimal = |precision: u32, scale: u32| {
        let ty = format!(
            r#"{{"type":"bytes","logicalType":"decimal","precision":{precision},"scale":{scale}}}"#
        );
        Case::new(&ty, None, None)
    };
    assert!(decimal(4, 2).postgres(&bytes(&9999i32.to_be_bytes())).is_ok());
    let over = Err(Reason::Precision { precision: 4 });
    assert_eq!(decimal(4, 2).postgres(&bytes(&10_000i32.to_be_bytes())), over);
    assert_eq!(decimal(4, 2).postgres(&bytes(&(-10_000i128).to_be_bytes())), over);
    // 256 bits, the lowest and the highest, and more.
    let case = decimal(78, 18);
    let low: Vec<u8> = [0x80].into_iter().chain([0; 31]).collect();
    let high: Vec<u8> = [0x7f].into_iter().chain([0xff; 31]).collect();
    assert!(case.postgres(&bytes(&low)).is_ok() && case.postgres(&bytes(&high)).is_ok());
    assert!(decimal(1000, 500).postgres(&bytes(&[0x7f; 415])).is_ok());
    assert!(decimal(1000, 1000).postgres(&bytes(&[0x7f; 416])).is_err());
    // No precision limits what the table cannot declare.
    assert!(decimal(2000, 10).postgres(&bytes(&[0x7f; 600])).is_ok());
    let limit = Err(Reason::DecimalTooLong { bytes: 5000, limit: 1024 });
    assert_eq!(decimal(20_000, 0).postgres(&bytes(&[1; 5000])), limit);
    assert_eq!(decimal(4, 2).sqlite(&bytes(&[0xff])), Ok(Cell::Text("-0.01".to_owned())));
}

#[test]
fn texts() {
    let case = Case::new("\"string\"", None, None);
    let megabytes = "w".repeat(3 << 20);
    for text in ["", "ß", megabytes.as_str()] {
        assert_eq!(case.sqlite(&bytes(text.as_bytes())), Ok(Cell::Text(text.to_owned())));
        assert!(case.postgres(&bytes(text.as_bytes())).is_ok());
    }
    for (bad, reason) in [(&b"a\0b"[..], Reason::Nul), (b"\xc3\x28", Reason::Utf8)] {
        assert_eq!(case.postgres(&bytes(bad)), Err(reason.clone()));
        assert_eq!(case.sqlite(&bytes(bad)), Err(reason.clone()));
        let list = Case::new(r#"{"type":"array","items":"string"}"#, None, None);
        let block = [long(1), bytes(bad), long(0)].concat();
        assert_eq!(list.postgres(&block), Err(reason));
    }
    let short = Case::new("\"string\"", Some(SqlType::Varchar(2)), None);
    assert!(short.postgres(&bytes("ßß".as_bytes())).is_ok());
    assert_eq!(short.postgres(&bytes(b"abc")), Err(Reason::TextTooLong { chars: 3, limit: 2 }));
    let json = Case::new("\"string\"", Some(SqlType::Jsonb), None);
    assert!(json.postgres(&bytes(br#"{"a": [1, "\\u0000"]}"#)).is_ok());
    assert_eq!(json.postgres(&bytes(br#"{"a": "\u0000"}"#)), Err(Reason::Nul));
    assert_eq!(json.postgres(&bytes(b"{")), Err(Reason::NotJson));
    assert_eq!(json.postgres(&bytes(br#""\ud800""#)), Err(Reason::NotJson));
}

/// Columns of other types than we would make ourselves, as users' tables have them.
#[test]
fn columns_of_users() {
    let uuid = "0123abcd-4567-89ab-cdef-0123456789ab";
    let symbols = r#"{"type":"enum","name":"E","symbols":["aé"]}"#.to_owned();
    let decimal = r#"{"type":"bytes","logicalType":"decimal","precision":6,"scale":2}"#.to_owned();
    let list = r#"{"type":"array","items":"string"}"#.to_owned();
    let strings = [long(1), bytes(b"x\"y"), long(0)].concat();
    let cases = [
        ("\"int\"".to_owned(), SqlType::Smallint, long(-7)),
        ("\"int\"".to_owned(), SqlType::Numeric(Some((12, 2))), long(-70_000)),
        ("\"int\"".to_owned(), SqlType::Double, long(i64::from(i32::MIN))),
        ("\"long\"".to_owned(), SqlType::Numeric(Some((19, 0))), long(i64::MIN)),
        ("\"float\"".to_owned(), SqlType::Double, 0.1f32.to_le_bytes().to_vec()),
        ("\"string\"".to_owned(), SqlType::Uuid, bytes(uuid.as_bytes())),
        (logical("string", "uuid"), SqlType::Text, bytes(uuid.as_bytes())),
        (symbols.clone(), SqlType::Varchar(2), long(0)),
        (symbols, SqlType::Json, long(0)),
        (decimal.clone(), SqlType::Numeric(None), bytes(&[0x7f, 0xff])),
        (decimal.clone(), SqlType::Numeric(Some((20, 10))), bytes(&[0x80, 0])),
        (decimal, SqlType::Jsonb, bytes(&[0x80, 0])),
        (logical("long", "timestamp-millis"), SqlType::Bigint, long(5)),
        (logical("long", "timestamp-millis"), SqlType::Timestamp, long(5)),
        (logical("long", "local-timestamp-nanos"), SqlType::Timestamptz, long(5)),
        (logical("int", "date"), SqlType::Jsonb, long(5)),
        ("\"double\"".to_owned(), SqlType::Json, 0.5f64.to_le_bytes().to_vec()),
        (list.clone(), SqlType::Text, strings.clone()),
        (list, SqlType::Json, strings),
    ];
    for (ty, column, value) in cases {
        let held = Case::new(&ty, Some(column.clone()), None).postgres(&value);
        assert!(held.is_ok(), "{ty} into {column}: {held:?}");
    }
    let small = Case::new("\"int\"", Some(SqlType::Smallint), None);
    assert_eq!(small.postgres(&long(40_000)), Err(Reason::NumberRange));
    let nullable = Case::new(r#"["null","int"]"#, Some(SqlType::Integer), None);
    assert_eq!(nullable.postgres(&long(0)), Err(Reason::Null));
    assert_eq!(nullable.sqlite(&long(0)), Err(Reason::Null));
}

#[test]
fn masks() {
    let text = |mask| {
        let case = Case::new(r#"["null","string"]"#, None, Some(mask));
        assert_eq!(case.sqlite(&long(0)), Ok(Cell::Null));
        let value = [long(1), bytes("grüße@example.com".as_bytes())].concat();
        let Ok(cell) = case.sqlite(&value) else { panic!() };
        let field = case.postgres(&value).unwrap();
        match &cell {
            Cell::Text(text) => assert_eq!(&field[4..], text.as_bytes()),
            Cell::Null => assert_eq!(field, [0xff; 4]),
            other => panic!("{other:?}"),
        }
        cell
    };
    assert_eq!(text(Mask::Null), Cell::Null);
    assert_eq!(text(Mask::Last4), Cell::Text("*************.com".to_owned()));
    // printf 'peppergrüße@example.com' | sha256sum
    let digest = "1c7290ce583c4a75e910e5db82f12ecc7888350a76e90dfe9e3e9cf24c8bec5f";
    assert_eq!(text(Mask::Sha256 { salt: "pepper".to_owned() }), Cell::Text(digest.to_owned()));
    let long_mask = Case::new("\"long\"", None, Some(Mask::Last4));
    assert_eq!(long_mask.sqlite(&long(123_456)), Ok(Cell::Text("**3456".to_owned())));
    assert_eq!(long_mask.sqlite(&long(12)), Ok(Cell::Text("**".to_owned())));
    let date = Case::new(&logical("int", "date"), None, Some(Mask::Last4));
    assert_eq!(date.sqlite(&long(0)), Ok(Cell::Text("******1-01".to_owned())));
}
