//! Values as JSON text, written straight from the block.
//!
//! - A union's value stands for itself, without naming its branch.
//! - Bytes and fixed are base64 strings; decimals are numbers with all their digits; dates,
//!   times and UUIDs are strings in ISO 8601 and RFC 9562 form.
//! - NaN and the infinities, which JSON lacks, are the strings `"NaN"`, `"Infinity"` and
//!   `"-Infinity"`, as in the JSON mapping of Protocol Buffers: one bad measurement in an array
//!   should not refuse the row.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fault::{Halt, Reason};
use super::node::{Budget, Node, NodeId, Nodes, Scalar};
use super::wire::{Cursor, Flaw};
use super::{calendar, numeric, text};

/// What to do with values no database holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They are errors: jsonb refuses NUL characters and invalid UTF-8.
    Strict,
    /// They are shown: such text becomes `{"base64": "…"}`. For rows that were refused.
    Lenient,
}

pub(crate) struct Renderer<'p> {
    pub(crate) nodes: &'p Nodes,
    pub(crate) mode: Mode,
}

impl Renderer<'_> {
    /// Appends the value of node `id` at the cursor.
    pub(crate) fn value(
        &self,
        id: NodeId,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        match self.nodes.get(id) {
            Node::Leaf(leaf) => {
                let scalar = match (leaf.read(cursor), self.mode) {
                    (Err(Halt::Reason(reason)), Mode::Lenient) => {
                        return lenient_problem(&reason, out);
                    }
                    (scalar, _) => scalar?,
                };
                self.scalar(scalar, budget, out)
            }
            Node::Union(branches) => {
                let index = cursor.index(Flaw::UnionIndex)?;
                let branch = *branches.get(index).ok_or(Flaw::UnionIndex)?;
                budget.deeper()?;
                self.value(branch, cursor, budget, out)?;
                budget.depth += 1;
                Ok(())
            }
            Node::Record(record) => {
                budget.deeper()?;
                let start = out.len();
                for field in &record.fields {
                    match &field.key {
                        Some(key) => {
                            out.extend_from_slice(key);
                            self.value(field.node, cursor, budget, out)?;
                        }
                        None => self.nodes.skip(field.node, cursor, budget)?,
                    }
                }
                for default in &record.defaults {
                    out.extend_from_slice(&default.key);
                    self.value(default.node, &mut Cursor::new(&default.bytes), budget, out)?;
                }
                close(out, start, b'{', b'}');
                check_size(out, start, budget)?;
                budget.depth += 1;
                Ok(())
            }
            Node::Array(items) => {
                let start = out.len();
                self.runs(cursor, budget, out, |cursor, budget, out| {
                    out.push(b',');
                    self.value(*items, cursor, budget, out)
                })?;
                close(out, start, b'[', b']');
                Ok(())
            }
            Node::Map(values) => {
                let start = out.len();
                self.runs(cursor, budget, out, |cursor, budget, out| {
                    out.push(b',');
                    self.key(cursor.bytes()?, out)?;
                    out.push(b':');
                    self.value(*values, cursor, budget, out)
                })?;
                close(out, start, b'{', b'}');
                Ok(())
            }
            Node::Mismatch { skip, why } => match self.mode {
                Mode::Strict => Err(Reason::Unresolvable(why.clone()).into()),
                Mode::Lenient => self.value(*skip, cursor, budget, out),
            },
        }
    }

    fn runs<'b>(
        &self,
        cursor: &mut Cursor<'b>,
        budget: &mut Budget,
        out: &mut Vec<u8>,
        mut item: impl FnMut(&mut Cursor<'b>, &mut Budget, &mut Vec<u8>) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        budget.deeper()?;
        let start = out.len();
        loop {
            let run = cursor.run()?;
            if run.count == 0 {
                break;
            }
            for _ in 0..run.count {
                let before = cursor.offset();
                item(cursor, budget, out)?;
                if cursor.offset() == before {
                    budget.spend_empty()?;
                }
                check_size(out, start, budget)?;
            }
        }
        budget.depth += 1;
        Ok(())
    }

    fn key(&self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Halt> {
        match (string(bytes, out), self.mode) {
            (Err(_), Mode::Lenient) => {
                let shown = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
                Ok(string(shown.as_bytes(), out)?)
            }
            (result, _) => Ok(result?),
        }
    }

    #[inline]
    pub(crate) fn scalar(
        &self,
        scalar: Scalar<'_, '_>,
        budget: &Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        let start = out.len();
        let result = match scalar {
            Scalar::Text(bytes) => string(bytes, out),
            Scalar::Symbol(symbol) => string(symbol.as_bytes(), out),
            Scalar::UuidText(bytes) => match text::parse_uuid(bytes) {
                Ok(uuid) => quoted(out, |out| text::write_uuid(&uuid, out)),
                Err(reason) => Err(reason),
            },
            Scalar::Bytes(bytes) => quoted(out, |out| base64(bytes, out)),
            other => unquoted_or_iso(other, budget, out),
        };
        match (result, self.mode) {
            (Ok(()), _) => Ok(()),
            (Err(reason), Mode::Strict) => Err(reason.into()),
            (Err(_), Mode::Lenient) => {
                out.truncate(start);
                match scalar {
                    Scalar::Text(bytes)
                    | Scalar::UuidText(bytes)
                    | Scalar::BigDecimal(bytes)
                    | Scalar::Decimal { unscaled: bytes, .. } => lenient_bytes(bytes, out),
                    Scalar::Time { value, .. } => {
                        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
                    }
                    _ => out.extend_from_slice(b"null"),
                }
                Ok(())
            }
        }
    }
}

/// Scalars whose text needs no escaping.
pub(crate) fn unquoted_or_iso(
    scalar: Scalar<'_, '_>,
    budget: &Budget,
    out: &mut Vec<u8>,
) -> Result<(), Reason> {
    match scalar {
        Scalar::Null => out.extend_from_slice(b"null"),
        Scalar::Boolean(true) => out.extend_from_slice(b"true"),
        Scalar::Boolean(false) => out.extend_from_slice(b"false"),
        Scalar::Integer(value) => {
            out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        }
        Scalar::Float(value) if value.is_finite() => {
            out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
        }
        Scalar::Double(value) if value.is_finite() => {
            out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
        }
        Scalar::Float(value) => out.extend_from_slice(not_finite(f64::from(value))),
        Scalar::Double(value) => out.extend_from_slice(not_finite(value)),
        Scalar::Decimal { unscaled, precision, scale } => {
            decimal_size(unscaled, budget)?;
            numeric::check_precision(unscaled, precision)?;
            numeric::write_text(unscaled, scale as i32, out)?;
        }
        Scalar::BigDecimal(bytes) => {
            decimal_size(bytes, budget)?;
            let (unscaled, scale) = numeric::big_decimal(bytes)?;
            numeric::write_text(unscaled, scale, out)?;
        }
        Scalar::Uuid(uuid) => return quoted(out, |out| text::write_uuid(uuid, out)),
        Scalar::Date(days) => {
            return quoted(out, |out| calendar::write_date(i64::from(days), out));
        }
        Scalar::Time { value, unit } => {
            let time = time_of_day(value, unit)?;
            return quoted(out, |out| calendar::write_time(time, unit, out));
        }
        Scalar::Timestamp { value, unit, local } => {
            return quoted(out, |out| calendar::write_timestamp(value, unit, local, out));
        }
        Scalar::Duration { months, days, millis } => {
            return quoted(out, |out| calendar::write_duration(months, days, millis, out));
        }
        Scalar::Text(bytes) | Scalar::UuidText(bytes) => return string(bytes, out),
        Scalar::Symbol(symbol) => return string(symbol.as_bytes(), out),
        Scalar::Bytes(bytes) => return quoted(out, |out| base64(bytes, out)),
    }
    Ok(())
}

pub(crate) fn decimal_size(unscaled: &[u8], budget: &Budget) -> Result<(), Reason> {
    let (bytes, limit) = (unscaled.len(), budget.decimal_bytes);
    if bytes > limit { Err(Reason::DecimalTooLong { bytes, limit }) } else { Ok(()) }
}

/// A time of day, if it is one. 24:00:00 is not: ISO 8601 dropped it.
pub(crate) fn time_of_day(value: i64, unit: super::schema::Unit) -> Result<u64, Reason> {
    use super::schema::Unit;
    let day = match unit {
        Unit::Millis => calendar::DAY_MICROS / 1000,
        Unit::Micros => calendar::DAY_MICROS,
        Unit::Nanos => calendar::DAY_MICROS * 1000,
    };
    match u64::try_from(value) {
        Ok(time) if value < day => Ok(time),
        _ => Err(Reason::TimeRange { value, unit }),
    }
}

/// Turns the items' leading comma into the opening bracket and adds the closing one.
fn close(out: &mut Vec<u8>, start: usize, open: u8, close: u8) {
    match out.get_mut(start) {
        Some(comma) => *comma = open,
        None => out.push(open),
    }
    out.push(close);
}

fn check_size(out: &[u8], start: usize, budget: &Budget) -> Result<(), Reason> {
    let (bytes, limit) = (out.len() - start, budget.field_bytes);
    if bytes > limit { Err(Reason::FieldTooLong { bytes, limit }) } else { Ok(()) }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Reason> {
    out.push(b'"');
    write(out);
    out.push(b'"');
    Ok(())
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    // The length is exactly what padded base64 takes.
    let _ = STANDARD.encode_slice(bytes, &mut out[start..]);
}

fn not_finite(value: f64) -> &'static [u8] {
    if value.is_nan() {
        b"\"NaN\""
    } else if value > 0.0 {
        b"\"Infinity\""
    } else {
        b"\"-Infinity\""
    }
}

fn lenient_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"base64\":\"");
    base64(bytes, out);
    out.extend_from_slice(b"\"}");
}

fn lenient_problem(reason: &Reason, out: &mut Vec<u8>) -> Result<(), Halt> {
    Ok(string(reason.to_string().as_bytes(), out)?)
}

/// Whether eight bytes can stand in a JSON string as they are: ASCII without control characters,
/// quotes and backslashes.
#[inline(always)]
fn bare_word(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    // Each subtraction borrows between bytes only after a byte that already fails its test.
    (word
        | word.wrapping_sub(ONES * 0x20)
        | (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash))
        & HIGHS
        == 0
}

/// Appends a JSON string.
#[inline]
pub(crate) fn string(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut bare = true;
    for word in words {
        bare &= bare_word(u64::from_le_bytes(*word));
    }
    for byte in tail {
        bare &= (0x20..0x80).contains(byte) & (*byte != b'"') & (*byte != b'\\');
    }
    if !bare {
        return escaped(bytes, out);
    }
    out.push(b'"');
    out.extend_from_slice(bytes);
    out.push(b'"');
    Ok(())
}

#[cold]
fn escaped(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    text::check(bytes)?;
    out.push(b'"');
    let mut rest = bytes;
    while let Some(place) =
        rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\'))
    {
        out.extend_from_slice(&rest[..place]);
        match rest[place] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            byte => {
                out.extend_from_slice(b"\\u00");
                text::write_hex(byte, out);
            }
        }
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_agree_with_serde_json() {
        for text in
            ["", "plain text of some length", "a\"b\\c\nd\te\u{1}f", "Wehr–Überlauf", "\u{7f}"]
        {
            for pad in 0..9 {
                let text = format!("{}{text}", "x".repeat(pad));
                let mut out = Vec::new();
                string(text.as_bytes(), &mut out).unwrap();
                assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            }
        }
        assert_eq!(string(b"a\0b", &mut Vec::new()), Err(Reason::Nul));
        assert_eq!(string(b"a\xff", &mut Vec::new()), Err(Reason::Utf8));
    }

    #[test]
    fn every_byte_in_a_word() {
        for byte in 0..=255u8 {
            for place in 0..8 {
                let mut word = [b'a'; 8];
                word[place] = byte;
                let bare = (0x20..0x80).contains(&byte) && byte != b'"' && byte != b'\\';
                assert_eq!(bare_word(u64::from_le_bytes(word)), bare, "{byte:#x} at {place}");
            }
        }
    }
}
