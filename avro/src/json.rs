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
use super::node::{Budget, Kind, Leaf, Node, NodeId, Nodes, Scalar, Wire};
use super::wire::{Cursor, Flaw, Span, WIDE, put_wide};
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
            Node::Leaf(leaf) => self.leaf(leaf, cursor, budget, out),
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
                            key.put(out);
                            self.part(field.node, cursor, budget, out)?;
                        }
                        None => self.nodes.skip(field.node, cursor, budget)?,
                    }
                }
                for default in &record.defaults {
                    default.key.put(out);
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
                    self.part(*items, cursor, budget, out)
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
                    self.part(*values, cursor, budget, out)
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

    /// A value inside another. Most are leaves, which need no call of their own.
    #[inline(always)]
    fn part(
        &self,
        id: NodeId,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        match self.nodes.get(id) {
            Node::Leaf(leaf) => self.leaf(leaf, cursor, budget, out),
            _ => self.value(id, cursor, budget, out),
        }
    }

    #[inline(always)]
    fn leaf(
        &self,
        leaf: &Leaf,
        cursor: &mut Cursor<'_>,
        budget: &Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        match (&leaf.kind, leaf.wire) {
            (Kind::Text, Wire::Bytes) => match cursor.span()? {
                Span::Short(wide, len) if bare_short(wide, len) => {
                    out.push(b'"');
                    put_wide(out, wide, len);
                    out.push(b'"');
                    Ok(())
                }
                Span::Short(wide, len) => {
                    self.scalar(Scalar::Text(&wide[..len.min(WIDE)]), budget, out)
                }
                Span::Long(bytes) => self.scalar(Scalar::Text(bytes), budget, out),
            },
            (Kind::Long, Wire::Long) => {
                integer(cursor.long()?, out);
                Ok(())
            }
            (Kind::Double, Wire::Double) => {
                double(cursor.double()?, out);
                Ok(())
            }
            (Kind::Int, Wire::Int) => {
                integer(i64::from(cursor.int()?), out);
                Ok(())
            }
            _ => self.any_leaf(leaf, cursor, budget, out),
        }
    }

    #[inline(never)]
    fn any_leaf(
        &self,
        leaf: &Leaf,
        cursor: &mut Cursor<'_>,
        budget: &Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        match (leaf.read(cursor), self.mode) {
            (Err(Halt::Reason(reason)), Mode::Lenient) => {
                Ok(string(reason.to_string().as_bytes(), out)?)
            }
            (scalar, _) => self.scalar(scalar?, budget, out),
        }
    }

    #[inline(always)]
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
        Scalar::Integer(value) => integer(value, out),
        Scalar::Float(value) if value.is_finite() => {
            out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
        }
        Scalar::Float(value) => out.extend_from_slice(not_finite(f64::from(value))),
        Scalar::Double(value) => double(value, out),
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

/// Has a high bit for each of eight bytes that cannot stand in a JSON string as it is: control
/// characters, quotes, backslashes, all beyond ASCII. (And perhaps for bytes behind such a one.)
#[inline(always)]
fn special(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    // Each subtraction borrows between bytes only after a byte that already fails its test.
    word | word.wrapping_sub(ONES * 0x20)
        | (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash)
}

const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Whether a short span can stand in a JSON string as it is.
#[inline(always)]
fn bare_short(wide: &[u8; WIDE], len: usize) -> bool {
    text::padded(wide, len).iter().fold(0, |found, word| found | special(*word)) & HIGHS == 0
}

/// Appends an integer. Those of up to eight digits are made all digits at once: halves, then
/// quarters, then single digits in the lanes of one word.
#[inline(always)]
fn integer(value: i64, out: &mut Vec<u8>) {
    if !(0..100_000_000).contains(&value) {
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        return;
    }
    let value = value as u64;
    let fours = (value / 10_000) | ((value % 10_000) << 32);
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let twos = hundreds | ((fours - hundreds * 100) << 16);
    let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    let ones = tens | ((twos - tens * 10) << 8);
    // The first digit is in the lowest byte. At least one is kept.
    let zeros = (ones.trailing_zeros() / 8).min(7);
    let digits = (ones | 0x3030_3030_3030_3030) >> (8 * zeros);
    let end = out.len() + 8 - zeros as usize;
    out.extend_from_slice(&digits.to_le_bytes());
    out.truncate(end);
}

/// Appends a number in its shortest form, always with a point or an exponent.
///
/// Measurements and prices mostly have four decimals or fewer. If the number is the one nearest to
/// a quotient n / 10^4 of fewer than 16 digits, then that quotient, without trailing zeros, is its
/// shortest form, since no two decimals of up to 15 digits share a nearest double.
#[inline(always)]
fn double(value: f64, out: &mut Vec<u8>) {
    let scaled = value * 1e4;
    // False for NaN and for -0.0, whose sign the integer would lose.
    if value.is_sign_positive() && scaled < 1e15 {
        let whole = (scaled + 0.5) as u64;
        if (whole as f64 / 1e4).to_bits() == value.to_bits() {
            integer((whole / 10_000) as i64, out);
            let four = (whole % 10_000) as u32;
            let digits = [four / 1000, four / 100 % 10, four / 10 % 10, four % 10];
            let [a, b, c, d] = digits.map(|digit| b'0' + digit as u8);
            let zeros = digits.iter().skip(1).rev().take_while(|digit| **digit == 0).count();
            let end = out.len() + 5 - zeros;
            out.extend_from_slice(&[b'.', a, b, c, d, 0, 0, 0]);
            out.truncate(end);
            return;
        }
    }
    any_double(value, out);
}

#[inline(never)]
fn any_double(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        out.extend_from_slice(not_finite(value));
    }
}

/// Appends a JSON string.
#[inline]
pub(crate) fn string(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Reason> {
    let (words, tail) = bytes.as_chunks::<8>();
    let found = words.iter().fold(0, |found, word| found | special(u64::from_le_bytes(*word)));
    let mut bare = found & HIGHS == 0;
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
    // Most texts that come here are merely not ASCII. (A byte beyond it may make the one behind
    // it look special; that costs time only.)
    let (words, tail) = bytes.as_chunks::<8>();
    let ascii = |found, word: u64| found | (special(word & !HIGHS) & !word);
    let found = words.iter().map(|word| u64::from_le_bytes(*word)).fold(0, ascii);
    let plain = |byte: &u8| *byte >= 0x20 && !matches!(byte, b'"' | b'\\');
    if found & HIGHS == 0 && tail.iter().all(plain) {
        out.extend_from_slice(bytes);
        out.push(b'"');
        return Ok(());
    }
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
    fn integers() {
        let powers = (0..18).map(|power| 10i64.pow(power));
        let near = powers.flat_map(|power| [power - 1, power, power + 1, -power, power * 7 / 3]);
        for value in near.chain([i64::MIN, i64::MAX, 12_345_678, 90_000_009]) {
            let mut out = Vec::new();
            integer(value, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }

    #[test]
    fn doubles() {
        let ours = |value: f64| {
            let mut out = Vec::new();
            double(value, &mut out);
            String::from_utf8(out).unwrap()
        };
        let general = |value: f64| zmij::Buffer::new().format_finite(value).to_owned();
        let mut bits = 0x0123_4567_89ab_cdef_u64;
        for step in 0..200_000_u64 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
            let decimal = (bits >> 20) as f64 / 10f64.powi((step % 9) as i32);
            let near = f64::from_bits(decimal.to_bits() + step % 3);
            for value in [decimal, near, -decimal, f64::from_bits(bits >> 2)] {
                let (ours, general) = (ours(value), general(value));
                // Above 10^15 zmij may turn to exponents, where this function leaves it to it.
                assert_eq!(ours, general);
            }
        }
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (12.34, "12.34"),
            (0.0001, "0.0001"),
            (9_999_999_999.5, "9999999999.5"),
            (f64::NAN, "\"NaN\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
        ] {
            assert_eq!(ours(value), expected);
        }
    }

    #[test]
    fn every_byte_in_a_word() {
        for byte in 0..=255u8 {
            for place in 0..8 {
                let mut word = [b'a'; 8];
                word[place] = byte;
                let bare = (0x20..0x80).contains(&byte) && byte != b'"' && byte != b'\\';
                assert_eq!(special(u64::from_le_bytes(word)) & HIGHS == 0, bare, "{byte:#x}");
            }
        }
    }
}
