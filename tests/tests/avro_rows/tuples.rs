//! Reads binary COPY tuples back, as PostgreSQL's `recv` functions would.

use weirgate_avro::table::{Column, SqlType};

use super::expect::{Cell, parse};

pub(crate) fn rows(mut bytes: &[u8], columns: &[Column]) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    while !bytes.is_empty() {
        let count = u16::from_be_bytes(take(&mut bytes));
        assert_eq!(usize::from(count), columns.len());
        let row = columns.iter().map(|column| {
            let length = i32::from_be_bytes(take(&mut bytes));
            if length == -1 {
                return Cell::Null;
            }
            let (field, rest) = bytes.split_at(length as usize);
            bytes = rest;
            cell(field, &column.sql_type)
        });
        rows.push(row.collect());
    }
    rows
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_at(N);
    *bytes = rest;
    taken.try_into().unwrap()
}

fn cell(field: &[u8], sql_type: &SqlType) -> Cell {
    let text = || std::str::from_utf8(field).unwrap().to_owned();
    let long = || i64::from_be_bytes(field.try_into().unwrap());
    const EPOCH: time::Date = time::macros::date!(2000 - 01 - 01);
    match sql_type {
        SqlType::Boolean => Cell::Boolean(field == [1]),
        SqlType::Integer => Cell::Integer(i64::from(i32::from_be_bytes(field.try_into().unwrap()))),
        SqlType::Bigint => Cell::Integer(long()),
        SqlType::Real => {
            Cell::Real(f64::from(f32::from_be_bytes(field.try_into().unwrap())).to_bits())
        }
        SqlType::Double => Cell::Real(long() as u64),
        SqlType::Bytea => Cell::Bytes(field.to_owned()),
        SqlType::Text => Cell::Text(text()),
        SqlType::Uuid => Cell::Text(apache_avro::Uuid::from_slice(field).unwrap().to_string()),
        SqlType::Numeric(_) => Cell::Text(numeric(field)),
        SqlType::Date => {
            let days = i32::from_be_bytes(field.try_into().unwrap());
            Cell::Text((EPOCH + time::Duration::days(i64::from(days))).to_string())
        }
        SqlType::Time => {
            let time = time::Time::MIDNIGHT + time::Duration::microseconds(long());
            Cell::Text(clock(time))
        }
        SqlType::Timestamp | SqlType::Timestamptz => {
            let at = EPOCH.midnight() + time::Duration::microseconds(long());
            let zone = if *sql_type == SqlType::Timestamptz { "Z" } else { "" };
            Cell::Text(format!("{}T{}{zone}", at.date(), clock(at.time())))
        }
        SqlType::Interval => {
            let (micros, rest) = field.split_at(8);
            let (days, months) = rest.split_at(4);
            Cell::Interval(
                i64::from_be_bytes(micros.try_into().unwrap()),
                i32::from_be_bytes(days.try_into().unwrap()),
                i32::from_be_bytes(months.try_into().unwrap()),
            )
        }
        SqlType::Jsonb => {
            assert_eq!(field[0], 1);
            Cell::Json(parse(&text()[1..]))
        }
        other => panic!("no test column is of type {other}"),
    }
}

fn clock(time: time::Time) -> String {
    let (hour, minute, second, micro) = time.as_hms_micro();
    format!("{hour:02}:{minute:02}:{second:02}.{micro:06}")
}

/// `numeric_recv`'s layout, summed up as one big number.
fn numeric(field: &[u8]) -> String {
    use num_bigint::BigInt;
    let words: Vec<u16> =
        field.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    let (weight, sign, scale) = (i64::from(words[1] as i16), words[2], u32::from(words[3]));
    assert_eq!(usize::from(words[0]), words.len() - 4);
    // In units of 10^-(4·k), k groups after the point.
    let groups = i64::from(scale.div_ceil(4));
    let mut sum = BigInt::ZERO;
    for (index, group) in words[4..].iter().enumerate() {
        let power = weight - index as i64 + groups;
        sum += BigInt::from(*group) * BigInt::from(10_000).pow(u32::try_from(power).unwrap());
    }
    let unscaled = sum / BigInt::from(10).pow(groups as u32 * 4 - scale);
    let unscaled = if sign == 0x4000 { -unscaled } else { unscaled };
    super::expect::decimal_text(&unscaled, scale)
}
