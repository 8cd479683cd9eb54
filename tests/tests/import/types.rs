//! Every type of Avro, at its limits and beyond them, from a file to what SQL answers.

use anyhow::Result;
use apache_avro::types::{Record, Value};
use apache_avro::{Codec, Days, Decimal, Duration, Millis, Months, Schema, Writer};
use serde_json::json;
use weirgate_local::fleet::Tuning;
use weirgate_tests::DatabaseKind;

/// A value of a type, and what the databases answer: its column's type and its text. Without an
/// answer the database cannot hold the value, and the row must be rejected.
struct Case {
    ty: serde_json::Value,
    value: Value,
    postgres: Option<String>,
    sqlite: Option<String>,
}

fn case(ty: serde_json::Value, value: Value, postgres: &str, sqlite: &str) -> Case {
    let answer = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Case { ty, value, postgres: answer(postgres), sqlite: answer(sqlite) }
}

fn logical(base: &str, name: &str) -> serde_json::Value {
    json!({"type": base, "logicalType": name})
}

fn decimal(precision: u32, scale: u32) -> serde_json::Value {
    json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
}

fn cases() -> Vec<Case> {
    [numbers(), decimals(), texts(), moments(), nested()].into_iter().flatten().collect()
}

fn numbers() -> Vec<Case> {
    let (int, long) = (|| json!("int"), || json!("long"));
    let (float, double) = (|| json!("float"), || json!("double"));
    // SQLite's files know no -0.0.
    vec![
        case(json!("boolean"), Value::Boolean(true), "boolean true", "integer 1"),
        case(json!("boolean"), Value::Boolean(false), "boolean false", "integer 0"),
        case(int(), Value::Int(i32::MIN), "integer -2147483648", "integer -2147483648"),
        case(int(), Value::Int(i32::MAX), "integer 2147483647", "integer 2147483647"),
        case(
            long(),
            Value::Long(i64::MIN),
            "bigint -9223372036854775808",
            "integer -9223372036854775808",
        ),
        case(
            long(),
            Value::Long(i64::MAX),
            "bigint 9223372036854775807",
            "integer 9223372036854775807",
        ),
        case(float(), Value::Float(f32::MAX), "real 3.4028235e+38", "real 3.4028234663852886e+38"),
        case(float(), Value::Float(-0.0), "real -0", "real 0.0"),
        case(float(), Value::Float(f32::NAN), "real NaN", ""),
        case(double(), Value::Double(0.1), "double precision 0.1", "real 0.10000000000000001"),
        case(
            double(),
            Value::Double(f64::MAX),
            "double precision 1.7976931348623157e+308",
            "real 1.7976931348623157e+308",
        ),
        case(
            double(),
            Value::Double(5e-324),
            "double precision 5e-324",
            "real 4.9406564584124654e-324",
        ),
        case(double(), Value::Double(-0.0), "double precision -0", "real 0.0"),
        case(double(), Value::Double(f64::INFINITY), "double precision Infinity", "real Inf"),
        case(double(), Value::Double(f64::NEG_INFINITY), "double precision -Infinity", "real -Inf"),
        case(double(), Value::Double(f64::NAN), "double precision NaN", ""),
    ]
}

fn decimals() -> Vec<Case> {
    let bytes = |bytes: &[u8]| Value::Decimal(Decimal::from(bytes));
    // 256 bits.
    let low: Vec<u8> = [0x80].into_iter().chain([0; 31]).collect();
    let high: Vec<u8> = [0x7f].into_iter().chain([0xff; 31]).collect();
    let fixed = json!({"type": "fixed", "name": "f256", "size": 32,
        "logicalType": "decimal", "precision": 76, "scale": 0});
    let nines = format!("{}", 10_i128.pow(38) - 1);
    let power = "57896044618658097711785492504343953926634992332820282019728792003956564819968";
    let (whole, fraction) = power.split_at(power.len() - 18);
    let lowest = format!("-{whole}.{fraction}");
    let highest = format!("{whole}.{}", fraction.replace("819968", "819967"));
    vec![
        case(decimal(4, 2), bytes(&[0xff]), "numeric -0.01", "text -0.01"),
        case(decimal(4, 2), bytes(&9_999_i32.to_be_bytes()), "numeric 99.99", "text 99.99"),
        case(decimal(4, 2), bytes(&10_000_i32.to_be_bytes()), "", ""),
        case(
            decimal(38, 38),
            bytes(&(10_i128.pow(38) - 1).to_be_bytes()),
            &format!("numeric 0.{nines}"),
            &format!("text 0.{nines}"),
        ),
        case(decimal(78, 18), bytes(&low), &format!("numeric {lowest}"), &format!("text {lowest}")),
        case(
            decimal(78, 18),
            bytes(&high),
            &format!("numeric {highest}"),
            &format!("text {highest}"),
        ),
        case(fixed, bytes(&[[0; 31].as_slice(), &[7]].concat()), "numeric 7", "text 7"),
        case(
            logical("bytes", "big-decimal"),
            Value::BigDecimal("-1234.5600".parse().expect("a number")),
            "numeric -1234.5600",
            "text -1234.5600",
        ),
    ]
}

fn texts() -> Vec<Case> {
    let string = |text: &str| Value::String(text.to_owned());
    let long = "w".repeat(3 << 20);
    let every: Vec<u8> = (0..=255).collect();
    let hex: String = every.iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid = "0123abcd-4567-89ab-cdef-0123456789ab";
    let as_fixed = json!({"type": "fixed", "name": "u", "size": 16, "logicalType": "uuid"});
    let uuid_of = || Value::Uuid(uuid.parse().expect("a UUID"));
    vec![
        case(json!("string"), string(""), "text ", "text "),
        case(
            json!("string"),
            string("ß日😀'\"\\\t\r\n"),
            "text ß日😀'\"\\\t\r\n",
            "text ß日😀'\"\\\t\r\n",
        ),
        case(json!("string"), string(&long), &format!("text {long}"), &format!("text {long}")),
        case(json!("string"), string("a\0b"), "", ""),
        case(json!("bytes"), Value::Bytes(Vec::new()), "bytea \\x", "blob \\x"),
        case(
            json!("bytes"),
            Value::Bytes(every),
            &format!("bytea \\x{hex}"),
            &format!("blob \\x{hex}"),
        ),
        case(
            json!({"type": "fixed", "name": "f3", "size": 3}),
            Value::Fixed(3, vec![0, 0xff, 1]),
            "bytea \\x00ff01",
            "blob \\x00ff01",
        ),
        case(
            json!({"type": "enum", "name": "e", "symbols": ["A", "B"]}),
            Value::Enum(1, "B".to_owned()),
            "text B",
            "text B",
        ),
        case(
            logical("string", "uuid"),
            uuid_of(),
            &format!("uuid {uuid}"),
            &format!("text {uuid}"),
        ),
        case(as_fixed, uuid_of(), &format!("uuid {uuid}"), &format!("text {uuid}")),
        case(logical("string", "no-such-type"), string("base"), "text base", "text base"),
    ]
}

fn moments() -> Vec<Case> {
    let date = || logical("int", "date");
    let micros = || logical("long", "timestamp-micros");
    let local = || logical("long", "local-timestamp-micros");
    let time = || logical("long", "time-micros");
    // Midnight before the years 1 and 10000, in microseconds.
    let (first, last) = (-62_135_596_800_000_000, 253_402_300_800_000_000);
    let (zoned, unzoned) = ("timestamp with time zone", "timestamp without time zone");
    let duration = Duration::new(Months::new(14), Days::new(3), Millis::new(4_000_000_001));
    vec![
        case(date(), Value::Date(0), "date 1970-01-01", "text 1970-01-01"),
        case(date(), Value::Date(-719_162), "date 0001-01-01", "text 0001-01-01"),
        case(date(), Value::Date(2_932_896), "date 9999-12-31", "text 9999-12-31"),
        case(date(), Value::Date(2_932_897), "date 10000-01-01", ""),
        case(date(), Value::Date(-2_440_588), "date 4714-11-24 BC", ""),
        case(date(), Value::Date(i32::MAX), "", ""),
        case(date(), Value::Date(i32::MIN), "", ""),
        case(
            logical("int", "time-millis"),
            Value::TimeMillis(86_399_999),
            "time without time zone 23:59:59.999",
            "text 23:59:59.999",
        ),
        case(
            time(),
            Value::TimeMicros(0),
            "time without time zone 00:00:00",
            "text 00:00:00.000000",
        ),
        case(
            time(),
            Value::TimeMicros(86_399_999_999),
            "time without time zone 23:59:59.999999",
            "text 23:59:59.999999",
        ),
        case(time(), Value::TimeMicros(86_400_000_000), "", ""),
        case(time(), Value::TimeMicros(-1), "", ""),
        case(
            logical("long", "timestamp-millis"),
            Value::TimestampMillis(-1),
            &format!("{zoned} 1969-12-31 23:59:59.999"),
            "text 1969-12-31T23:59:59.999Z",
        ),
        case(
            micros(),
            Value::TimestampMicros(first),
            &format!("{zoned} 0001-01-01 00:00:00"),
            "text 0001-01-01T00:00:00.000000Z",
        ),
        case(
            micros(),
            Value::TimestampMicros(last - 1),
            &format!("{zoned} 9999-12-31 23:59:59.999999"),
            "text 9999-12-31T23:59:59.999999Z",
        ),
        case(
            micros(),
            Value::TimestampMicros(i64::MAX),
            &format!("{zoned} 294247-01-10 04:00:54.775807"),
            "",
        ),
        case(micros(), Value::TimestampMicros(i64::MIN), "", ""),
        case(
            logical("long", "timestamp-nanos"),
            Value::TimestampNanos(-1),
            &format!("{zoned} 1969-12-31 23:59:59.999999"),
            "text 1969-12-31T23:59:59.999999999Z",
        ),
        case(
            local(),
            Value::LocalTimestampMicros(last - 1),
            &format!("{unzoned} 9999-12-31 23:59:59.999999"),
            "text 9999-12-31T23:59:59.999999",
        ),
        case(
            logical("long", "local-timestamp-millis"),
            Value::LocalTimestampMillis(i64::MIN),
            "",
            "",
        ),
        case(
            json!({"type": "fixed", "name": "d", "size": 12, "logicalType": "duration"}),
            Value::Duration(duration),
            "interval 1 year 2 mons 3 days 1111:06:40.001",
            "text P14M3DT4000000.001S",
        ),
    ]
}

fn nested() -> Vec<Case> {
    let node = json!({"type": "record", "name": "node", "fields": [
        {"name": "next", "type": ["null", "node"]}]});
    let deep = (0..40).fold(Value::Union(0, Box::new(Value::Null)), |inner, _| {
        Value::Union(1, Box::new(Value::Record(vec![("next".to_owned(), inner)])))
    });
    let Value::Union(1, deep) = deep else { unreachable!("forty records") };
    let text = (0..40).fold("null".to_owned(), |inner, _| format!("{{\"next\":{inner}}}"));
    let doubles = [1.5, f64::NAN, f64::NEG_INFINITY].map(Value::Double).to_vec();
    let map = [("k\"".to_owned(), Value::Bytes(vec![0xff, 0]))].into();
    let list = vec![
        Value::Union(0, Box::new(Value::Null)),
        Value::Union(1, Box::new(Value::Long(i64::MIN))),
        Value::Union(2, Box::new(Value::String("\u{1}".to_owned()))),
    ];
    vec![
        case(node, *deep, &format!("jsonb {}", text.replace(':', ": ")), &format!("text {text}")),
        case(
            json!({"type": "array", "items": "double"}),
            Value::Array(doubles),
            r#"jsonb [1.5, "NaN", "-Infinity"]"#,
            r#"text [1.5,"NaN","-Infinity"]"#,
        ),
        case(
            json!({"type": "map", "values": "bytes"}),
            Value::Map(map),
            r#"jsonb {"k\"": "/wA="}"#,
            r#"text {"k\"":"/wA="}"#,
        ),
        case(
            json!({"type": "array", "items": ["null", "long", "string"]}),
            Value::Array(list),
            r#"jsonb [null, -9223372036854775808, "\u0001"]"#,
            r#"text [null,-9223372036854775808,"\u0001"]"#,
        ),
        case(
            json!({"type": "array", "items": "string"}),
            Value::Array(vec![Value::String("\0".to_owned())]),
            "",
            "",
        ),
        case(
            json!({"type": "array", "items": "long"}),
            Value::Array(Vec::new()),
            "jsonb []",
            "text []",
        ),
    ]
}

/// One row for each case, whose value is in a column of its own; the others are null.
fn file(cases: &[Case]) -> Result<Vec<u8>> {
    let nullable = |(n, case): (usize, &Case)| json!({"name": format!("c{n}"), "type": ["null", case.ty.clone()]});
    let ordinal = json!({"name": "id", "type": "long"});
    let fields: Vec<_> =
        [ordinal].into_iter().chain(cases.iter().enumerate().map(nullable)).collect();
    let schema = json!({"type": "record", "name": "types", "fields": fields});
    let schema = Schema::parse(&schema)?;
    let mut writer =
        Writer::builder().schema(&schema).codec(Codec::Snappy).writer(Vec::new()).build()?;
    for (row, case) in cases.iter().enumerate() {
        let mut record = Record::new(&schema).expect("a record's schema");
        record.put("id", i64::try_from(row)?);
        for n in 0..cases.len() {
            record.put(
                &format!("c{n}"),
                match n == row {
                    true => Value::Union(1, Box::new(case.value.clone())),
                    false => Value::Union(0, Box::new(Value::Null)),
                },
            );
        }
        writer.append_value(record)?;
    }
    Ok(writer.into_inner()?)
}

/// How to ask for a column's type and text.
fn question(column: &str, case: &Case, database: DatabaseKind) -> String {
    let text = match database {
        DatabaseKind::Postgres
            if case.postgres.as_ref().is_some_and(|a| a.contains("with time")) =>
        {
            format!("timezone('UTC', {column})::text")
        }
        DatabaseKind::Postgres => format!("{column}::text"),
        // All digits of a number, all bytes of a blob.
        DatabaseKind::Sqlite => format!(
            "CASE typeof({column}) WHEN 'real' THEN printf('%!.17g', {column})
             WHEN 'blob' THEN '\\x' || lower(hex({column})) ELSE CAST({column} AS text) END"
        ),
    };
    match database {
        DatabaseKind::Postgres => format!("pg_typeof({column})::text || ' ' || {text}"),
        DatabaseKind::Sqlite => format!("typeof({column}) || ' ' || {text}"),
    }
}

pub(super) async fn types(name: &str, database: DatabaseKind) -> Result<()> {
    let system = super::system(name, database, Tuning::default()).await?;
    system.configure("", "on_bad_row = \"quarantine\"")?;
    let cases = cases();
    system.put(&super::key("types"), file(&cases)?).await?;
    let _importer = system.importer("i-1")?;
    system.drained().await?;
    let mut wrong = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        let expected = match database {
            DatabaseKind::Postgres => &case.postgres,
            DatabaseKind::Sqlite => &case.sqlite,
        };
        let column = format!("c{n}");
        let question = question(&column, case, database);
        let stored = system
            .text(&format!("SELECT coalesce(max({question}), '') FROM impressions WHERE id = {n}"))
            .await?;
        let rejected = system
            .number(&format!(
                "SELECT count(*) FROM weirgate.rejected_row
                 WHERE ordinal = {n} AND reason LIKE 'field {column}%'"
            ))
            .await?;
        let held = expected.as_deref().unwrap_or_default();
        if stored != held || (rejected == 1) != expected.is_none() {
            let shown = stored.chars().take(200).collect::<String>();
            wrong.push(format!("{column} {}: {shown:?}, rejected {rejected}", case.ty));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let kept = cases.iter().filter(|case| match database {
        DatabaseKind::Postgres => case.postgres.is_some(),
        DatabaseKind::Sqlite => case.sqlite.is_some(),
    });
    system.assert_rows(kept.count() as u64).await
}
