//! What the reference's values should look like in a column, worked out the plain way.

use std::collections::BTreeMap;

use apache_avro::types::Value;
use base64::Engine as _;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime, Time};

use super::generate::{Type, find};

/// A cell, whichever way it was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    Null,
    Boolean(bool),
    Integer(i64),
    /// By its bits, so that -0.0 is not 0.0.
    Real(u64),
    Bytes(Vec<u8>),
    Text(String),
    /// Microseconds, days, months.
    Interval(i64, i32, i32),
    Json(Tree),
}

/// JSON with its numbers as text.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    Bare(String),
    /// Expected numbers of which there may be several shortest texts.
    Single(f32),
    Double(f64),
    Text(String),
    List(Vec<Tree>),
    Object(BTreeMap<String, Tree>),
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bare(ours), Self::Bare(theirs)) => ours == theirs,
            (Self::Bare(ours), Self::Single(number)) => {
                ours.len() < 22 && ours.parse::<f32>().unwrap().to_bits() == number.to_bits()
            }
            (Self::Bare(ours), Self::Double(number)) => {
                ours.len() < 26 && ours.parse::<f64>().unwrap().to_bits() == number.to_bits()
            }
            (Self::Text(ours), Self::Text(theirs)) => ours == theirs,
            (Self::List(ours), Self::List(theirs)) => ours == theirs,
            (Self::Object(ours), Self::Object(theirs)) => ours == theirs,
            _ => false,
        }
    }
}

impl Cell {
    /// Whether PostgreSQL may return `other` for this cell: jsonb writes numbers its own way and
    /// keeps no negative zero.
    pub(crate) fn same_in_postgres(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Json(ours), Self::Json(theirs)) => ours.same_in_postgres(theirs),
            _ => self == other,
        }
    }
}

impl Tree {
    fn same_in_postgres(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bare(ours), Self::Bare(theirs)) => {
                ours == theirs || ours.parse::<f64>().unwrap() == theirs.parse::<f64>().unwrap()
            }
            (Self::List(ours), Self::List(theirs)) => {
                ours.len() == theirs.len()
                    && ours.iter().zip(theirs).all(|(ours, theirs)| ours.same_in_postgres(theirs))
            }
            (Self::Object(ours), Self::Object(theirs)) => {
                ours.len() == theirs.len()
                    && ours.iter().zip(theirs).all(|((key, ours), (other, theirs))| {
                        key == other && ours.same_in_postgres(theirs)
                    })
            }
            _ => self == other,
        }
    }
}

/// The cell for a value of a top-level field; `sqlite` for SQLite's storage.
pub(crate) fn cell(value: &Value, ty: &Type, root: &Type, sqlite: bool) -> Cell {
    match (value, ty) {
        (Value::Union(index, value), Type::Union(branches)) => {
            if matches!(**value, Value::Null) {
                return Cell::Null;
            }
            match branches.as_slice() {
                [Type::Null, Type::Null] => Cell::Null,
                [Type::Null, _] | [_, Type::Null] => {
                    cell(value, &branches[*index as usize], root, sqlite)
                }
                _ => json(value, &branches[*index as usize], root, sqlite),
            }
        }
        (Value::Null, _) => Cell::Null,
        (Value::Boolean(value), _) if sqlite => Cell::Integer(i64::from(*value)),
        (Value::Boolean(value), _) => Cell::Boolean(*value),
        (Value::Int(value), _) => Cell::Integer(i64::from(*value)),
        (Value::Long(value), _) => Cell::Integer(*value),
        (Value::Float(value), _) => Cell::Real(f64::from(*value).to_bits()),
        (Value::Double(value), _) => Cell::Real(value.to_bits()),
        (Value::Bytes(bytes) | Value::Fixed(_, bytes), _) => Cell::Bytes(bytes.clone()),
        (Value::String(text) | Value::Enum(_, text), _) => Cell::Text(text.clone()),
        (Value::Duration(value), _) if !sqlite => Cell::Interval(
            i64::from(u32::from(value.millis())) * 1000,
            u32::from(value.days()) as i32,
            u32::from(value.months()) as i32,
        ),
        (Value::Array(_) | Value::Map(_) | Value::Record(_), _) => json(value, ty, root, sqlite),
        // PostgreSQL's timestamps end at the microsecond.
        (Value::TimestampNanos(value), _) if !sqlite => {
            cell(&Value::TimestampMicros(value.div_euclid(1000)), ty, root, sqlite)
        }
        (Value::LocalTimestampNanos(value), _) if !sqlite => {
            cell(&Value::LocalTimestampMicros(value.div_euclid(1000)), ty, root, sqlite)
        }
        (other, ty) => match tree(other, ty, root) {
            Tree::Bare(text) | Tree::Text(text) => Cell::Text(match sqlite {
                true => text,
                false => normal_fraction(&text),
            }),
            other => panic!("{other:?} is no scalar"),
        },
    }
}

/// PostgreSQL's binary times do not tell millisecond columns from microsecond ones.
fn normal_fraction(text: &str) -> String {
    let (body, zone) = match text.strip_suffix('Z') {
        Some(body) => (body, "Z"),
        None => (text, ""),
    };
    match body.rsplit_once('.') {
        Some((rest, fraction)) if rest.contains(':') => format!("{rest}.{fraction:0<6}{zone}"),
        _ => text.to_owned(),
    }
}

fn json(value: &Value, ty: &Type, root: &Type, _sqlite: bool) -> Cell {
    Cell::Json(tree(value, ty, root))
}

fn tree(value: &Value, ty: &Type, root: &Type) -> Tree {
    let ty = match ty {
        Type::Recursive(name) => find(root, name).unwrap(),
        other => other,
    };
    match (value, ty) {
        (Value::Union(index, value), Type::Union(branches)) => {
            tree(value, &branches[*index as usize], root)
        }
        (Value::Null, _) => Tree::Bare("null".to_owned()),
        (Value::Boolean(value), _) => Tree::Bare(value.to_string()),
        (Value::Int(value), _) => Tree::Bare(value.to_string()),
        (Value::Long(value), _) => Tree::Bare(value.to_string()),
        (Value::Float(value), _) if value.is_finite() => Tree::Single(*value),
        (Value::Double(value), _) if value.is_finite() => Tree::Double(*value),
        (Value::Float(value), _) => infinite(f64::from(*value)),
        (Value::Double(value), _) => infinite(*value),
        (Value::Bytes(bytes) | Value::Fixed(_, bytes), _) => {
            Tree::Text(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        (Value::String(text) | Value::Enum(_, text), _) => Tree::Text(text.clone()),
        (
            Value::Decimal(decimal),
            Type::Decimal { scale, .. } | Type::DecimalFixed { scale, .. },
        ) => Tree::Bare(decimal_text(&num_bigint::BigInt::from(decimal.clone()), *scale)),
        (Value::Uuid(uuid), _) => Tree::Text(uuid.to_string()),
        (Value::Date(days), _) => {
            let date = Date::from_julian_day(days + 2_440_588).unwrap();
            Tree::Text(date.format(format_description!("[year]-[month]-[day]")).unwrap())
        }
        (Value::TimeMillis(value), _) => Tree::Text(time_of_day(
            Duration::milliseconds(i64::from(*value)),
            format_description!("[hour]:[minute]:[second].[subsecond digits:3]"),
        )),
        (Value::TimeMicros(value), _) => Tree::Text(time_of_day(
            Duration::microseconds(*value),
            format_description!("[hour]:[minute]:[second].[subsecond digits:6]"),
        )),
        (Value::TimestampMillis(value), _) => instant(i128::from(*value) * 1_000_000, 3, "Z"),
        (Value::TimestampMicros(value), _) => instant(i128::from(*value) * 1000, 6, "Z"),
        (Value::TimestampNanos(value), _) => instant(i128::from(*value), 9, "Z"),
        (Value::LocalTimestampMillis(value), _) => instant(i128::from(*value) * 1_000_000, 3, ""),
        (Value::LocalTimestampMicros(value), _) => instant(i128::from(*value) * 1000, 6, ""),
        (Value::LocalTimestampNanos(value), _) => instant(i128::from(*value), 9, ""),
        (Value::Duration(value), _) => {
            let (months, days) = (u32::from(value.months()), u32::from(value.days()));
            let millis = u32::from(value.millis());
            Tree::Text(format!("P{months}M{days}DT{}.{:03}S", millis / 1000, millis % 1000))
        }
        (Value::Array(items), Type::Array(ty)) => {
            Tree::List(items.iter().map(|item| tree(item, ty, root)).collect())
        }
        (Value::Map(map), Type::Map(ty)) => Tree::Object(
            map.iter().map(|(key, value)| (key.clone(), tree(value, ty, root))).collect(),
        ),
        (Value::Record(values), Type::Record(_, fields)) => Tree::Object(
            values
                .iter()
                .map(|(name, value)| {
                    let field = fields.iter().find(|field| field.name == *name).unwrap();
                    (name.clone(), tree(value, &field.ty, root))
                })
                .collect(),
        ),
        (value, ty) => panic!("{value:?} is not of type {ty:?}"),
    }
}

fn infinite(value: f64) -> Tree {
    Tree::Text(if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned())
}

pub(crate) fn decimal_text(unscaled: &num_bigint::BigInt, scale: u32) -> String {
    let digits = unscaled.magnitude().to_string();
    let digits = format!("{digits:0>width$}", width = scale as usize + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale as usize);
    let sign = if unscaled.sign() == num_bigint::Sign::Minus { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

fn time_of_day(since_midnight: Duration, format: &[BorrowedFormatItem<'_>]) -> String {
    (Time::MIDNIGHT + since_midnight).format(format).unwrap()
}

fn instant(nanos: i128, digits: usize, zone: &str) -> Tree {
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
    let seconds =
        at.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]")).unwrap();
    let fraction = format!("{:09}", at.nanosecond());
    Tree::Text(format!("{seconds}.{}{zone}", &fraction[..digits]))
}

/// Parses JSON without touching its numbers.
pub(crate) fn parse(text: &str) -> Tree {
    let mut rest = text;
    let tree = parse_value(&mut rest);
    assert_eq!(rest, "", "left over after JSON");
    tree
}

fn parse_value(rest: &mut &str) -> Tree {
    *rest = rest.trim_start();
    match rest.as_bytes()[0] {
        b'"' => Tree::Text(parse_string(rest)),
        b'[' => {
            *rest = &rest[1..];
            let mut items = Vec::new();
            while !rest.starts_with(']') {
                items.push(parse_value(rest));
                *rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
            }
            *rest = &rest[1..];
            Tree::List(items)
        }
        b'{' => {
            *rest = &rest[1..];
            let mut items = BTreeMap::new();
            while !rest.starts_with('}') {
                let key = parse_string(rest);
                *rest = rest.strip_prefix(':').unwrap();
                items.insert(key, parse_value(rest));
                *rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
            }
            *rest = &rest[1..];
            Tree::Object(items)
        }
        _ => {
            let end = rest.find([',', ']', '}']).unwrap_or(rest.len());
            let (bare, after) = rest.split_at(end);
            *rest = after;
            Tree::Bare(bare.to_owned())
        }
    }
}

fn parse_string(rest: &mut &str) -> String {
    let mut escaped = false;
    let end = rest[1..]
        .find(|char| {
            let end = char == '"' && !escaped;
            escaped = char == '\\' && !escaped;
            end
        })
        .unwrap();
    let (token, after) = rest.split_at(end + 2);
    *rest = after;
    serde_json::from_str(token).unwrap()
}
