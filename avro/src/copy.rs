//! Values as fields of PostgreSQL's binary COPY: a 32-bit length (-1 for null), then what the
//! type's `recv` function takes, everything big-endian.

use super::calendar::{DAY_MICROS, POSTGRES_EPOCH_DAYS, POSTGRES_EPOCH_MICROS};
use super::fault::{Halt, Reason};
use super::json::{Mode, Renderer, decimal_size, time_of_day};
use super::node::{Budget, Kind, Leaf, Node, NodeId, Nodes, Scalar, Wire};
use super::numeric::TINY_SCALE;
use super::schema::Unit;
use super::table::{Mask, SqlType};
use super::wire::{Cursor, Flaw, Snippet, Span, WIDE, put_wide};
use super::{mask, numeric, text};

/// What comes before the first tuple: signature, flags, no header extension.
pub const COPY_HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What comes after the last tuple.
pub const COPY_TRAILER: &[u8; 2] = &[0xff, 0xff];

const NULL: [u8; 4] = [0xff; 4];

/// How to write one column from the value at the cursor. The first ones are the usual pairs of
/// Avro and SQL type, each with its own short path; `Scalar` is all the others.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Reads past the value and writes null.
    Null(NodeId),
    /// A value this column can never hold.
    Refuse(Reason),
    /// A union the reader or the table sees as one type, by the writer's branch.
    Branches(Vec<Op>),
    Boolean,
    Int4,
    Int8,
    Float4,
    Float8,
    Text,
    Bytea,
    /// The field, length and all, by the writer's index.
    Enum(Vec<Option<Snippet>>),
    /// A decimal on bytes.
    Numeric {
        precision: u32,
        scale: u32,
        /// Ten to the precision, if 64 bits hold it.
        bound: u64,
    },
    Date,
    TimestampMillis,
    TimestampMicros,
    Json(NodeId),
    /// Text that must already be JSON.
    JsonText,
    Scalar(NodeId),
    Masked(NodeId, Mask),
}

/// The operation that stores values of `node` in a column of type `sql_type`; `None` if they
/// cannot be stored there without loss.
pub(crate) fn op(nodes: &Nodes, node: NodeId, sql_type: &SqlType, nullable: bool) -> Option<Op> {
    let is_json = matches!(sql_type, SqlType::Json | SqlType::Jsonb);
    let leaf = match nodes.get(node) {
        Node::Leaf(leaf) => leaf,
        _ if is_json => return Some(Op::Json(node)),
        Node::Mismatch { why, .. } => return Some(Op::Refuse(Reason::Unresolvable(why.clone()))),
        Node::Union(branches) => {
            let ops = branches.iter().map(|branch| op(nodes, *branch, sql_type, nullable));
            let text = || (*sql_type == SqlType::Text).then_some(Op::Json(node));
            return ops.collect::<Option<_>>().map(Op::Branches).or_else(text);
        }
        Node::Array(_) | Node::Map(_) | Node::Record(_) => {
            return (*sql_type == SqlType::Text).then_some(Op::Json(node));
        }
    };
    if !accepts(leaf, sql_type) {
        return None;
    }
    Some(match (leaf.wire, &leaf.kind, sql_type) {
        (Wire::Null, ..) if nullable => Op::Null(node),
        (Wire::Null, ..) => Op::Refuse(Reason::Null),
        (_, Kind::Text, SqlType::Json | SqlType::Jsonb) => Op::JsonText,
        _ if is_json => Op::Json(node),
        (Wire::Boolean, ..) => Op::Boolean,
        (Wire::Int, Kind::Int, SqlType::Integer) => Op::Int4,
        (Wire::Long, Kind::Long, SqlType::Bigint) => Op::Int8,
        (Wire::Float, Kind::Float, SqlType::Real) => Op::Float4,
        (Wire::Double, Kind::Double, SqlType::Double) => Op::Float8,
        (Wire::Bytes, Kind::Text, SqlType::Text) => Op::Text,
        (Wire::Bytes, Kind::Bytes, SqlType::Bytea) => Op::Bytea,
        (Wire::Enum, Kind::Enum(symbols), SqlType::Text) => Op::Enum(
            symbols
                .iter()
                .map(|symbol| symbol.as_ref().map(|s| Snippet::new(&field(s.as_bytes()))))
                .collect(),
        ),
        (Wire::Bytes, Kind::Decimal { precision, scale }, SqlType::Numeric(_)) => {
            let bound = 10u64.checked_pow(*precision).unwrap_or(u64::MAX);
            Op::Numeric { precision: *precision, scale: *scale, bound }
        }
        (Wire::Int, Kind::Date, SqlType::Date) => Op::Date,
        (Wire::Long, Kind::Timestamp { unit, .. }, SqlType::Timestamp | SqlType::Timestamptz) => {
            match unit {
                Unit::Millis => Op::TimestampMillis,
                Unit::Micros => Op::TimestampMicros,
                Unit::Nanos => Op::Scalar(node),
            }
        }
        _ => Op::Scalar(node),
    })
}

/// Whether every value of the leaf has a place in the column, apart from those refused one by
/// one for their value.
fn accepts(leaf: &Leaf, sql_type: &SqlType) -> bool {
    use SqlType::*;
    let room = |(precision, scale): (u16, u16), whole: u32| u32::from(precision - scale) >= whole;
    match (&leaf.kind, sql_type) {
        (_, Json | Jsonb) | (Kind::Null, _) => true,
        (Kind::Boolean, Boolean) => true,
        (Kind::Int | Kind::Long, Smallint | Integer | Bigint | Numeric(None)) => true,
        (Kind::Int, Double) => true,
        (Kind::Int, Numeric(Some(to))) => room(*to, 10),
        (Kind::Long, Numeric(Some(to))) => room(*to, 19),
        (Kind::Float, Real | Double) | (Kind::Double, Double) => true,
        (Kind::Bytes, Bytea) => true,
        (Kind::Text | Kind::Enum(_), Text | Varchar(_) | Uuid) => true,
        (Kind::Decimal { .. } | Kind::BigDecimal, Numeric(None)) => true,
        (Kind::Decimal { precision, scale }, Numeric(Some(to))) => {
            u32::from(to.1) >= *scale && room(*to, precision - scale)
        }
        (Kind::Uuid, Uuid | Text) => true,
        (Kind::Date, Date) => true,
        (Kind::TimeMillis | Kind::TimeMicros, Time) => true,
        (Kind::Timestamp { .. }, Timestamp | Timestamptz) => true,
        // Into a plain integer column go the ticks as they are.
        (Kind::Timestamp { .. }, Bigint) => true,
        (Kind::Duration, Interval) => true,
        _ => false,
    }
}

/// A whole field: length and content.
pub(crate) fn field(content: &[u8]) -> Box<[u8]> {
    [&(content.len() as u32).to_be_bytes(), content].concat().into()
}

pub(crate) struct Encoder<'p> {
    pub(crate) nodes: &'p Nodes,
}

#[inline(always)]
pub(crate) fn put_null(out: &mut Vec<u8>) {
    out.extend_from_slice(&NULL);
}

#[inline(always)]
fn put4(out: &mut Vec<u8>, value: [u8; 4]) {
    let mut field = [0, 0, 0, 4, 0, 0, 0, 0];
    field[4..].copy_from_slice(&value);
    out.extend_from_slice(&field);
}

#[inline(always)]
fn put8(out: &mut Vec<u8>, value: [u8; 8]) {
    let mut field = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    field[4..].copy_from_slice(&value);
    out.extend_from_slice(&field);
}

#[inline(always)]
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Writes a field of unknown length: `write` appends the content, the length is filled in after.
fn put_with(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Halt>,
) -> Result<(), Halt> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out)?;
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    Ok(())
}

impl Encoder<'_> {
    /// Writes one column whose value is not null.
    #[inline(always)]
    pub(crate) fn column(
        &self,
        op: &Op,
        sql_type: &SqlType,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        match op {
            Op::Int8 => put8(out, cursor.long()?.to_be_bytes()),
            Op::Int4 => put4(out, cursor.int()?.to_be_bytes()),
            Op::Text => match cursor.span()? {
                Span::Short(wide, len) => {
                    text::check_short(wide, len)?;
                    out.extend_from_slice(&(len as u32).to_be_bytes());
                    put_wide(out, wide, len);
                }
                Span::Long(bytes) => {
                    text::check(bytes)?;
                    put_bytes(out, bytes);
                }
            },
            Op::Float8 => put8(out, cursor.double()?.to_be_bytes()),
            Op::Float4 => put4(out, cursor.float()?.to_be_bytes()),
            Op::Boolean => {
                let value = cursor.boolean()?;
                out.extend_from_slice(&[0, 0, 0, 1, u8::from(value)]);
            }
            Op::Enum(fields) => {
                let index = cursor.index(Flaw::EnumIndex)?;
                match fields.get(index).ok_or(Flaw::EnumIndex)? {
                    Some(field) => field.put(out),
                    None => return Err(super::node::unknown_symbol().into()),
                }
            }
            Op::TimestampMillis => {
                put8(out, timestamp(cursor.long()?, Unit::Millis)?.to_be_bytes());
            }
            Op::TimestampMicros => {
                put8(out, timestamp(cursor.long()?, Unit::Micros)?.to_be_bytes());
            }
            Op::Date => put4(out, date(cursor.int()?)?.to_be_bytes()),
            Op::Numeric { precision, scale, bound } => {
                let span = cursor.span()?;
                let (tiny, unscaled) = match span {
                    Span::Short(wide, len) => {
                        (numeric::tiny_short(wide, len), &wide[..len.min(WIDE)])
                    }
                    Span::Long(bytes) => (numeric::tiny(bytes), bytes),
                };
                match tiny {
                    Some(value) if value.unsigned_abs() < *bound && *scale <= TINY_SCALE => {
                        numeric::write_tiny(value, *scale, out);
                    }
                    _ => decimal(unscaled, *precision, *scale, budget, out)?,
                }
            }
            Op::Bytea => put_bytes(out, cursor.bytes()?),
            Op::Json(node) => self.json(*node, sql_type, cursor, budget, out)?,
            Op::Null(_)
            | Op::Refuse(_)
            | Op::Branches(_)
            | Op::JsonText
            | Op::Scalar(_)
            | Op::Masked(..) => self.rare(op, sql_type, cursor, budget, out)?,
        }
        Ok(())
    }

    fn json(
        &self,
        node: NodeId,
        sql_type: &SqlType,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        put_with(out, |out| {
            if *sql_type == SqlType::Jsonb {
                out.push(JSONB_VERSION);
            }
            let renderer = Renderer { nodes: self.nodes, mode: Mode::Strict };
            renderer.value(node, cursor, budget, out)
        })
    }

    #[inline(never)]
    fn rare(
        &self,
        op: &Op,
        sql_type: &SqlType,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        match op {
            Op::Null(node) => {
                self.nodes.skip(*node, cursor, budget)?;
                put_null(out);
                Ok(())
            }
            Op::Refuse(reason) => Err(reason.clone().into()),
            Op::Branches(ops) => {
                let index = cursor.index(Flaw::UnionIndex)?;
                let op = ops.get(index).ok_or(Flaw::UnionIndex)?;
                // Unions do not nest, so this goes one level down at most.
                self.column(op, sql_type, cursor, budget, out)
            }
            Op::Masked(node, mask) => {
                // The clear value is built where the masked one goes, and never leaves here.
                put_with(out, |out| mask::write(self.nodes, *node, mask, cursor, budget, out))
            }
            Op::JsonText => put_with(out, |out| {
                if *sql_type == SqlType::Jsonb {
                    out.push(JSONB_VERSION);
                }
                let bytes = cursor.bytes()?;
                check_json(bytes)?;
                out.extend_from_slice(bytes);
                Ok(())
            }),
            Op::Scalar(node) => match self.nodes.get(*node) {
                Node::Leaf(leaf) => {
                    let value = leaf.read(cursor)?;
                    scalar(value, sql_type, budget, out)
                }
                // Only leaves get this operation.
                _ => Err(Reason::NumberRange.into()),
            },
            _ => self.column(op, sql_type, cursor, budget, out),
        }
    }
}

/// `jsonb_recv` takes this byte before the text.
const JSONB_VERSION: u8 = 1;

/// Fails unless `bytes` are JSON that jsonb can hold: no NUL, no lone surrogates.
pub(crate) fn check_json(bytes: &[u8]) -> Result<(), Reason> {
    let text = text::checked(bytes)?;
    let value: serde_json::Value = serde_json::from_str(text).map_err(|_| Reason::NotJson)?;
    // Escaped NULs are rare enough to look for them in the parsed value only if one may be there.
    if text.contains("\\u0000") && has_nul(&value) { Err(Reason::Nul) } else { Ok(()) }
}

fn has_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(items) => items.iter().any(has_nul),
        serde_json::Value::Object(map) => {
            map.iter().any(|(key, value)| key.contains('\0') || has_nul(value))
        }
        _ => false,
    }
}

/// Any scalar into any column [`accepts`] lets it into.
fn scalar(
    value: Scalar<'_, '_>,
    sql_type: &SqlType,
    budget: &Budget,
    out: &mut Vec<u8>,
) -> Result<(), Halt> {
    match value {
        Scalar::Null => put_null(out),
        Scalar::Boolean(value) => put_bytes(out, &[u8::from(value)]),
        Scalar::Integer(value) => integer(value, sql_type, out)?,
        Scalar::Float(value) if *sql_type == SqlType::Real => put4(out, value.to_be_bytes()),
        Scalar::Float(value) => put8(out, f64::from(value).to_be_bytes()),
        Scalar::Double(value) => put8(out, value.to_be_bytes()),
        Scalar::Bytes(bytes) => put_bytes(out, bytes),
        Scalar::Text(bytes) if *sql_type == SqlType::Uuid => {
            put_bytes(out, &text::parse_uuid(bytes)?);
        }
        Scalar::Text(bytes) => {
            check_chars(text::checked(bytes)?, sql_type)?;
            put_bytes(out, bytes);
        }
        Scalar::Symbol(symbol) if *sql_type == SqlType::Uuid => {
            put_bytes(out, &text::parse_uuid(symbol.as_bytes())?);
        }
        Scalar::Symbol(symbol) => {
            check_chars(symbol, sql_type)?;
            put_bytes(out, symbol.as_bytes());
        }
        Scalar::Decimal { unscaled, precision, scale } => {
            decimal(unscaled, precision, scale, budget, out)?;
        }
        Scalar::BigDecimal(bytes) => {
            decimal_size(bytes, budget)?;
            let (unscaled, scale) = numeric::big_decimal(bytes)?;
            numeric::write_numeric(unscaled, scale, out)?;
        }
        Scalar::Uuid(uuid) => put_uuid(uuid, sql_type, out)?,
        Scalar::UuidText(bytes) => put_uuid(&text::parse_uuid(bytes)?, sql_type, out)?,
        Scalar::Date(days) => put4(out, date(days)?.to_be_bytes()),
        Scalar::Time { value, unit } => {
            let time = time_of_day(value, unit)?;
            let micros = if unit == Unit::Millis { time * 1000 } else { time };
            put8(out, micros.to_be_bytes());
        }
        Scalar::Timestamp { value, .. } if *sql_type == SqlType::Bigint => {
            put8(out, value.to_be_bytes());
        }
        Scalar::Timestamp { value, unit, .. } => put8(out, timestamp(value, unit)?.to_be_bytes()),
        Scalar::Duration { months, days, millis } => {
            let range = Reason::IntervalRange { months, days };
            let (Ok(months), Ok(days)) = (i32::try_from(months), i32::try_from(days)) else {
                return Err(range.into());
            };
            // The highest values together mean infinity since PostgreSQL 17, but only with a
            // time part no duration reaches.
            put_with(out, |out| {
                out.extend_from_slice(&(i64::from(millis) * 1000).to_be_bytes());
                out.extend_from_slice(&days.to_be_bytes());
                out.extend_from_slice(&months.to_be_bytes());
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn integer(value: i64, sql_type: &SqlType, out: &mut Vec<u8>) -> Result<(), Reason> {
    match sql_type {
        SqlType::Smallint => {
            let value = i16::try_from(value).map_err(|_| Reason::NumberRange)?;
            put_bytes(out, &value.to_be_bytes());
        }
        SqlType::Integer => {
            let value = i32::try_from(value).map_err(|_| Reason::NumberRange)?;
            put4(out, value.to_be_bytes());
        }
        SqlType::Numeric(_) => numeric::write_numeric(&value.to_be_bytes(), 0, out)?,
        SqlType::Double => put8(out, (value as f64).to_be_bytes()),
        _ => put8(out, value.to_be_bytes()),
    }
    Ok(())
}

fn put_uuid(uuid: &[u8; 16], sql_type: &SqlType, out: &mut Vec<u8>) -> Result<(), Halt> {
    put_with(out, |out| {
        if *sql_type == SqlType::Uuid {
            out.extend_from_slice(uuid);
        } else {
            text::write_uuid(uuid, out);
        }
        Ok(())
    })
}

pub(crate) fn check_chars(text: &str, sql_type: &SqlType) -> Result<(), Reason> {
    let SqlType::Varchar(limit) = sql_type else { return Ok(()) };
    let chars = text.chars().count();
    let limit = *limit;
    if chars > limit as usize { Err(Reason::TextTooLong { chars, limit }) } else { Ok(()) }
}

#[inline]
fn decimal(
    unscaled: &[u8],
    precision: u32,
    scale: u32,
    budget: &Budget,
    out: &mut Vec<u8>,
) -> Result<(), Reason> {
    decimal_size(unscaled, budget)?;
    numeric::check_precision(unscaled, precision)?;
    // The scale of a valid decimal can still be absurd, which `write_numeric` refuses.
    numeric::write_numeric(unscaled, i32::try_from(scale).unwrap_or(i32::MAX), out)
}

/// Days since 2000-01-01, from 4714-11-24 BC up to 5874897-12-31 (datatype/timestamp.h).
#[inline(always)]
fn date(days: i32) -> Result<i32, Reason> {
    const MIN: i32 = -2_451_545 + POSTGRES_EPOCH_DAYS;
    const MAX: i32 = 2_145_031_948 + POSTGRES_EPOCH_DAYS;
    if (MIN..=MAX).contains(&days) {
        Ok(days - POSTGRES_EPOCH_DAYS)
    } else {
        Err(Reason::DateRange { days: i64::from(days) })
    }
}

/// Microseconds since 2000-01-01, from 4714-11-24 BC up to the year 294276
/// (datatype/timestamp.h). Nanoseconds are cut to the microsecond before, as PostgreSQL holds no
/// finer ones.
#[inline(always)]
fn timestamp(value: i64, unit: Unit) -> Result<i64, Reason> {
    const MIN: i64 = -211_813_488_000_000_000;
    const END: i64 = 9_223_371_331_200_000_000;
    let micros = match unit {
        Unit::Millis => value.checked_mul(1000),
        Unit::Micros => Some(value),
        Unit::Nanos => Some(value.div_euclid(1000)),
    };
    let shifted = micros.and_then(|micros| micros.checked_sub(POSTGRES_EPOCH_MICROS));
    match shifted {
        Some(shifted) if (MIN..END).contains(&shifted) => Ok(shifted),
        _ => Err(Reason::TimestampRange { value, unit }),
    }
}

const _: () = assert!(POSTGRES_EPOCH_MICROS == POSTGRES_EPOCH_DAYS as i64 * DAY_MICROS);
