use thiserror::Error;

use super::calendar;
use super::cells::CellSink;
use super::copy;
use super::table::{Column, Dialect, Source, SqlType};
use super::wire::Snippet;

/// The values of the columns that are the same for all rows of an object, ready to be appended.
#[derive(Clone, Debug)]
pub struct Constants {
    /// The tuple's head: its number of fields.
    pub(crate) head: [u8; 2],
    /// The constant fields, last in every tuple.
    pub(crate) tail: Snippet,
    pub(crate) cells: Vec<ConstantCell>,
    /// The object's order among others, as text whose byte order it is.
    pub(crate) order: String,
}

#[derive(Clone, Debug)]
pub(crate) enum ConstantCell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl ConstantCell {
    pub(crate) fn give<'b, S: CellSink<'b>>(&self, sink: &mut S) {
        match self {
            Self::Null => sink.null(),
            Self::Integer(value) => sink.integer(*value),
            Self::Real(value) => sink.real(*value),
            Self::Text(text) => sink.computed_text(text),
            Self::Blob(bytes) => sink.computed_blob(bytes),
        }
    }
}

/// Keeps the one cell it is given.
pub(crate) struct Captured(pub(crate) ConstantCell);

impl CellSink<'_> for Captured {
    type Error = std::convert::Infallible;

    fn null(&mut self) {
        self.0 = ConstantCell::Null;
    }
    fn integer(&mut self, value: i64) {
        self.0 = ConstantCell::Integer(value);
    }
    fn real(&mut self, value: f64) {
        self.0 = ConstantCell::Real(value);
    }
    fn text(&mut self, text: &str) {
        self.computed_text(text);
    }
    fn computed_text(&mut self, text: &str) {
        self.0 = ConstantCell::Text(text.to_owned());
    }
    fn blob(&mut self, bytes: &[u8]) {
        self.computed_blob(bytes);
    }
    fn computed_blob(&mut self, bytes: &[u8]) {
        self.0 = ConstantCell::Blob(bytes.to_owned());
    }
    fn end_row(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
    fn discard_row(&mut self) {}
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConstantError {
    #[error("column {column} is of type {sql_type}, but the object's key has {value:?} for it")]
    Value { column: String, sql_type: SqlType, value: String },
    #[error("column {column} is NOT NULL, but the object's key has nothing for it")]
    Null { column: String },
}

/// What Hive writes in the place of null in a key.
const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

impl Constants {
    pub(crate) fn new(
        columns: &[Column],
        dialect: Dialect,
        object: i64,
        captures: &[(String, String)],
        order: &str,
    ) -> Result<Self, ConstantError> {
        let (mut tail, mut cells) = (Vec::new(), Vec::new());
        for column in columns {
            let (field, cell) = match &column.source {
                Source::Field(_) => continue,
                Source::Version => {
                    (copy::field(order.as_bytes()), ConstantCell::Text(order.to_owned()))
                }
                Source::Object => {
                    (copy::field(&object.to_be_bytes()), ConstantCell::Integer(object))
                }
                Source::Capture(name) => {
                    let value = captures.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
                    match value.filter(|value| !value.is_empty() && *value != HIVE_NULL) {
                        None if !column.nullable => {
                            return Err(ConstantError::Null { column: column.name.clone() });
                        }
                        None => ([0xff; 4].into(), ConstantCell::Null),
                        Some(value) => capture(column, value, dialect)?,
                    }
                }
            };
            tail.extend_from_slice(&field);
            cells.push(cell);
        }
        // PostgreSQL tables have at most 1600 columns.
        let head = (columns.len() as u16).to_be_bytes();
        Ok(Self { head, tail: Snippet::new(&tail), cells, order: order.to_owned() })
    }
}

/// A part of the key as its column has it.
fn capture(
    column: &Column,
    value: &str,
    dialect: Dialect,
) -> Result<(Box<[u8]>, ConstantCell), ConstantError> {
    let bad = || ConstantError::Value {
        column: column.name.clone(),
        sql_type: column.sql_type.clone(),
        value: value.to_owned(),
    };
    if value.contains('\0') {
        return Err(bad());
    }
    let text = || ConstantCell::Text(value.to_owned());
    let number = || value.parse::<i64>().map_err(|_| bad());
    Ok(match (&column.sql_type, dialect) {
        (SqlType::Date, _) => {
            let days = calendar::parse_date(value).ok_or_else(bad)?;
            (copy::field(&(days - calendar::POSTGRES_EPOCH_DAYS).to_be_bytes()), text())
        }
        (SqlType::Smallint, _) => {
            let number = number()?;
            let small = i16::try_from(number).map_err(|_| bad())?;
            (copy::field(&small.to_be_bytes()), ConstantCell::Integer(number))
        }
        (SqlType::Integer, _) => {
            let number = number()?;
            let small = i32::try_from(number).map_err(|_| bad())?;
            (copy::field(&small.to_be_bytes()), ConstantCell::Integer(number))
        }
        (SqlType::Bigint, _) => {
            let number = number()?;
            (copy::field(&number.to_be_bytes()), ConstantCell::Integer(number))
        }
        (SqlType::Varchar(limit), _) if value.chars().count() > *limit as usize => {
            return Err(bad());
        }
        (SqlType::Text | SqlType::Varchar(_), _) | (_, Dialect::Sqlite) => {
            (copy::field(value.as_bytes()), text())
        }
        (_, Dialect::Postgres) => return Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql_type: SqlType, value: &str) -> Result<Vec<u8>, ConstantError> {
        let (name, source) = ("dt".to_owned(), Source::Capture("dt".to_owned()));
        let columns = [Column { name, source, sql_type, nullable: true }];
        let captures = [("dt".to_owned(), value.to_owned())];
        let constants = Constants::new(&columns, Dialect::Postgres, 7, &captures, "")?;
        let mut out = Vec::new();
        constants.tail.put(&mut out);
        Ok(out)
    }

    #[test]
    fn captures_of_every_type() {
        assert_eq!(check(SqlType::Date, "2000-01-03"), Ok(vec![0, 0, 0, 4, 0, 0, 0, 2]));
        assert_eq!(check(SqlType::Integer, "09"), Ok(vec![0, 0, 0, 4, 0, 0, 0, 9]));
        assert_eq!(check(SqlType::Text, "ü"), Ok(vec![0, 0, 0, 2, 0xc3, 0xbc]));
        for null in ["", HIVE_NULL] {
            assert_eq!(check(SqlType::Date, null), Ok(vec![0xff; 4]));
        }
        for (sql_type, value) in [
            (SqlType::Date, "yesterday"),
            (SqlType::Smallint, "40000"),
            (SqlType::Varchar(1), "ab"),
            (SqlType::Text, "a\0"),
            (SqlType::Jsonb, "{}"),
        ] {
            assert!(matches!(check(sql_type, value), Err(ConstantError::Value { .. })));
        }
    }
}
