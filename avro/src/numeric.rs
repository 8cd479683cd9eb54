//! Decimals: a big-endian two's-complement integer and a scale, to PostgreSQL's `numeric` and to
//! text.

use super::fault::Reason;
use super::wire::{Cursor, WIDE, put_wide};

/// PostgreSQL's bound on a number's digits after the point (NUMERIC_DSCALE_MAX). Also ours on the
/// zeros a negative scale adds before it, of which PostgreSQL takes 131,072: they let a few bytes
/// stand for very much text.
const SCALE_MAX: i32 = 16_383;

/// The sign and the magnitude in base 10000, least significant group first.
pub(crate) struct Decimal {
    negative: bool,
    /// Groups of four digits of the unscaled value times ten to the padding, see
    /// [`Decimal::read`].
    groups: Vec<u16>,
    scale: i32,
}

/// More digits after the point than any 64-bit number of interest has.
pub(crate) const TINY_SCALE: u32 = 64;

/// The smallest case: amounts of money.
#[inline(always)]
pub(crate) fn tiny(unscaled: &[u8]) -> Option<i64> {
    let len = unscaled.len();
    if len == 0 || len > 8 {
        return None;
    }
    let value = unscaled.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    // Moves the sign bit to the top and back down.
    let unused = 64 - 8 * len as u32;
    let value = (value << unused) as i64 >> unused;
    // Room for the padding of up to three digits.
    (value.unsigned_abs() < u64::MAX / 1000).then_some(value)
}

/// [`tiny`] for a short span: one load instead of a loop.
#[inline(always)]
pub(crate) fn tiny_short(wide: &[u8; WIDE], len: usize) -> Option<i64> {
    if len == 0 || len > 8 {
        return None;
    }
    let word = wide.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let value = word as i64 >> (64 - 8 * len as u32);
    (value.unsigned_abs() < u64::MAX / 1000).then_some(value)
}

/// Writes a number [`tiny`] returned, of a scale up to [`TINY_SCALE`].
#[inline(always)]
pub(crate) fn write_tiny(value: i64, scale: u32, out: &mut Vec<u8>) {
    let padding = [1, 1000, 100, 10][scale as usize % 4];
    let mut rest = value.unsigned_abs() * padding;
    // 64 bits are twenty digits: five groups, least significant first.
    let mut groups = [0u16; 5];
    let (mut count, mut trailing) = (0, 0);
    while rest > 0 && count < groups.len() {
        let group = (rest % 10_000) as u16;
        rest /= 10_000;
        trailing += usize::from(group == 0 && trailing == count);
        groups[count] = group;
        count += 1;
    }
    let weight = if count == 0 { 0 } else { count as i32 - 1 - (scale as i32 + 3) / 4 };
    // Zero groups at the end are left out.
    let kept = count - trailing;
    let mut field = [0u8; WIDE];
    field[..4].copy_from_slice(&(8 + 2 * kept as u32).to_be_bytes());
    field[4..6].copy_from_slice(&(kept as u16).to_be_bytes());
    field[6..8].copy_from_slice(&(weight as i16).to_be_bytes());
    field[8] = if value < 0 { 0x40 } else { 0 };
    field[10..12].copy_from_slice(&(scale as u16).to_be_bytes());
    let slots = field[12..].as_chunks_mut::<2>().0;
    for (slot, group) in slots.iter_mut().zip(groups[trailing..count].iter().rev()) {
        *slot = group.to_be_bytes();
    }
    put_wide(out, &field, 12 + 2 * kept);
}

/// The small case: most decimals fit 128 bits and need no allocation.
#[inline]
pub(crate) fn small(unscaled: &[u8]) -> Option<i128> {
    if unscaled.len() > 16 {
        return None;
    }
    let fill = if unscaled.first().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
    let mut bytes = [fill; 16];
    bytes[16 - unscaled.len()..].copy_from_slice(unscaled);
    Some(i128::from_be_bytes(bytes))
}

/// The unscaled value and scale of a big-decimal: `bytes` then `int`, both Avro-encoded, inside
/// the value's bytes.
pub(crate) fn big_decimal(bytes: &[u8]) -> Result<(&[u8], i32), Reason> {
    let mut cursor = Cursor::new(bytes);
    let bad = |_| Reason::BigDecimal;
    let unscaled = cursor.bytes().map_err(bad)?;
    let scale = cursor.int().map_err(bad)?;
    if !cursor.is_empty() {
        return Err(Reason::BigDecimal);
    }
    Ok((unscaled, scale))
}

/// Fails unless the unscaled value has at most `precision` digits.
pub(crate) fn check_precision(unscaled: &[u8], precision: u32) -> Result<(), Reason> {
    let excess = Reason::Precision { precision };
    match small(unscaled) {
        Some(value) => match 10u128.checked_pow(precision) {
            Some(bound) if value.unsigned_abs() >= bound => Err(excess),
            _ => Ok(()),
        },
        None => {
            let (_, digits) = digits(unscaled);
            if digits.len() > precision as usize { Err(excess) } else { Ok(()) }
        }
    }
}

/// The sign and the decimal digits, most significant first, without leading zeros; none for zero.
fn digits(unscaled: &[u8]) -> (bool, Vec<u8>) {
    let negative = unscaled.first().is_some_and(|byte| *byte >= 0x80);
    let mut limbs = magnitude(unscaled, negative);
    // Nine digits at a time, the most a 32-bit limb holds: 64-bit division by a constant is a
    // multiplication, 128-bit division a call.
    const CHUNK: u64 = 1_000_000_000;
    let mut out = Vec::with_capacity(limbs.len() * 10);
    while !limbs.is_empty() {
        let mut remainder = 0;
        for limb in limbs.iter_mut().rev() {
            let dividend = remainder << 32 | u64::from(*limb);
            *limb = (dividend / CHUNK) as u32;
            remainder = dividend % CHUNK;
        }
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
        for _ in 0..9 {
            out.push((remainder % 10) as u8);
            remainder /= 10;
        }
    }
    while out.last() == Some(&0) {
        out.pop();
    }
    out.reverse();
    (negative, out)
}

/// The absolute value in 32-bit limbs, least significant first, without leading zero limbs.
fn magnitude(unscaled: &[u8], negative: bool) -> Vec<u32> {
    let fill = if negative { 0xff } else { 0 };
    let mut limbs: Vec<u32> = unscaled
        .rchunks(4)
        .map(|chunk| {
            let mut bytes = [fill; 4];
            bytes[4 - chunk.len()..].copy_from_slice(chunk);
            u32::from_be_bytes(bytes)
        })
        .collect();
    if negative {
        let mut carry = true;
        for limb in &mut limbs {
            (*limb, carry) = (!*limb).overflowing_add(u32::from(carry));
        }
        // The magnitude of the lowest value of a whole number of limbs needs no further limb:
        // it is 2^(n-1) of n bits.
        debug_assert!(!carry || limbs.iter().all(|limb| *limb == 0));
    }
    while limbs.last() == Some(&0) {
        limbs.pop();
    }
    limbs
}

impl Decimal {
    /// Brings `unscaled` · 10^-`scale` to base 10000, the groups aligned to the decimal point.
    fn read(unscaled: &[u8], scale: i32) -> Self {
        let (negative, mut digits) = digits(unscaled);
        // A negative scale means trailing zeros before the point.
        let zeros = if scale < 0 { scale.unsigned_abs() as usize } else { 0 };
        let scale = scale.max(0);
        let padding = (4 - scale as usize % 4) % 4;
        if !digits.is_empty() {
            digits.resize(digits.len() + zeros + padding, 0);
        }
        let groups = digits
            .rchunks(4)
            .map(|group| group.iter().fold(0, |sum, digit| sum * 10 + u16::from(*digit)))
            .collect();
        Self { negative, groups, scale }
    }
}

/// Writes the number as a binary COPY field: length, then `numeric_send`'s layout (count of
/// groups, weight of the first, sign, display scale, groups), big-endian 16-bit words.
pub(crate) fn write_numeric(unscaled: &[u8], scale: i32, out: &mut Vec<u8>) -> Result<(), Reason> {
    if (0..=SCALE_MAX).contains(&scale)
        && let Some(value) = small(unscaled)
        // Room for the padding of up to three digits.
        && value.unsigned_abs() < u128::MAX / 1000
    {
        return write_small(value, scale, out);
    }
    if !(-SCALE_MAX..=SCALE_MAX).contains(&scale) {
        return Err(Reason::NumberRange);
    }
    let Decimal { negative, groups, scale } = Decimal::read(unscaled, scale);
    write_groups(negative, &groups, scale, out);
    Ok(())
}

#[inline]
fn write_small(value: i128, scale: i32, out: &mut Vec<u8>) -> Result<(), Reason> {
    let padding = [1, 1000, 100, 10][scale as usize % 4];
    let mut rest = value.unsigned_abs() * padding;
    // 128 bits are 39 digits, with padding ten groups and one.
    let mut groups = [0u16; 12];
    let mut count = 0;
    // Division of 128-bit numbers is a library call; most values leave it at once.
    while rest > u128::from(u64::MAX) {
        groups[count] = (rest % 10_000) as u16;
        rest /= 10_000;
        count += 1;
    }
    let mut rest = rest as u64;
    while rest > 0 {
        groups[count] = (rest % 10_000) as u16;
        rest /= 10_000;
        count += 1;
    }
    write_groups(value < 0, &groups[..count], scale, out);
    Ok(())
}

#[inline]
fn write_groups(negative: bool, groups: &[u16], scale: i32, out: &mut Vec<u8>) {
    let weight = groups.len() as i32 - 1 - (scale + 3) / 4;
    let trailing = groups.iter().take_while(|group| **group == 0).count();
    let groups = &groups[trailing..];
    let weight = if groups.is_empty() { 0 } else { weight };
    let mut head = [0u8; 12];
    head[0..4].copy_from_slice(&(8 + 2 * groups.len() as u32).to_be_bytes());
    head[4..6].copy_from_slice(&(groups.len() as u16).to_be_bytes());
    head[6..8].copy_from_slice(&(weight as i16).to_be_bytes());
    head[8] = if negative { 0x40 } else { 0 };
    head[10..12].copy_from_slice(&(scale as u16).to_be_bytes());
    out.extend_from_slice(&head);
    for group in groups.iter().rev() {
        out.extend_from_slice(&group.to_be_bytes());
    }
}

/// Writes the number in plain decimal notation with exactly `scale` digits after the point, as
/// PostgreSQL prints a numeric. Never an exponent.
pub(crate) fn write_text(unscaled: &[u8], scale: i32, out: &mut Vec<u8>) -> Result<(), Reason> {
    if !(-SCALE_MAX..=SCALE_MAX).contains(&scale) {
        return Err(Reason::NumberRange);
    }
    let (negative, digits) = match small(unscaled) {
        Some(0) => (false, Vec::new()),
        Some(value) => {
            let mut buffer = itoa::Buffer::new();
            let text = buffer.format(value.unsigned_abs());
            (value < 0, text.bytes().map(|byte| byte - b'0').collect())
        }
        None => digits(unscaled),
    };
    if negative {
        out.push(b'-');
    }
    let after = scale.max(0) as usize;
    let whole = digits.len().saturating_sub(after);
    if whole == 0 {
        out.push(b'0');
    }
    out.extend(digits[..whole].iter().map(|digit| b'0' + digit));
    if scale < 0 && !digits.is_empty() {
        out.resize(out.len() + scale.unsigned_abs() as usize, b'0');
    }
    if after > 0 {
        out.push(b'.');
        out.resize(out.len() + after.saturating_sub(digits.len()), b'0');
        out.extend(digits[whole..].iter().map(|digit| b'0' + digit));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(unscaled: &[u8], scale: i32) -> String {
        let mut out = Vec::new();
        write_text(unscaled, scale, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Reads `numeric_send`'s layout back, digit by digit.
    fn numeric(unscaled: &[u8], scale: i32) -> String {
        let mut out = Vec::new();
        write_numeric(unscaled, scale, &mut out).unwrap();
        let words: Vec<u16> =
            out[4..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        assert_eq!(out.len() - 4, u32::from_be_bytes(out[..4].try_into().unwrap()) as usize);
        let [count, weight, sign, dscale, groups @ ..] = words.as_slice() else { panic!() };
        assert_eq!(*count as usize, groups.len());
        assert!(groups.first() != Some(&0) && groups.last() != Some(&0), "not stripped");
        let weight = i32::from(*weight as i16);
        let group = |power: i32| {
            let index = weight - power;
            usize::try_from(index).ok().and_then(|index| groups.get(index)).copied().unwrap_or(0)
        };
        let whole: String = (0..=weight.max(0)).rev().map(|p| format!("{:04}", group(p))).collect();
        let after: String =
            (1..=(i32::from(*dscale) + 3) / 4).map(|p| format!("{:04}", group(-p))).collect();
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        let sign = if *sign == 0x4000 { "-" } else { "" };
        let after = &after[..usize::from(*dscale)];
        if after.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{after}") }
    }

    #[test]
    fn numbers_of_every_size() {
        for (unscaled, scale, expected) in [
            (&[][..], 2, "0.00"),
            (&[0][..], 0, "0"),
            (&[0xff][..], 3, "-0.001"),
            (&[0x04, 0xd2][..], 2, "12.34"),
            (&[0x00, 0x98, 0x96, 0x80][..], 0, "10000000"),
            (&[0x80; 1][..], 1, "-12.8"),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], 1, "0.5"),
        ] {
            assert_eq!(text(unscaled, scale), expected);
            assert_eq!(numeric(unscaled, scale), expected);
        }
    }

    #[test]
    fn tiny_numbers_are_as_others() {
        for value in [0, 1, -1, 9999, 10_000, -123_456_789, 1 << 53, -(1 << 53), 100_000_000] {
            for scale in 0..9 {
                let bytes = i64::to_be_bytes(value);
                let (mut ours, mut usual) = (Vec::new(), Vec::new());
                write_tiny(tiny(&bytes).unwrap(), scale, &mut ours);
                write_numeric(&bytes, scale as i32, &mut usual).unwrap();
                assert_eq!(ours, usual, "{value} e-{scale}");
                for len in 1..=8 {
                    let mut wide = [0x77; WIDE];
                    wide[..len].copy_from_slice(&bytes[8 - len..]);
                    assert_eq!(tiny_short(&wide, len), tiny(&bytes[8 - len..]));
                }
            }
        }
        assert_eq!(tiny(&[0xff]), Some(-1));
        assert_eq!(tiny(&[0x80, 0]), Some(-32768));
        assert_eq!(tiny(&[]), None);
        assert_eq!(tiny(&i64::MIN.to_be_bytes()), None);
    }

    #[test]
    fn wide_numbers() {
        let mut min = vec![0x80];
        min.resize(32, 0);
        let expected =
            "-57896044618658097711785492504343953926634992332820282019728792003956564819968";
        assert_eq!(text(&min, 0), expected);
        assert_eq!(numeric(&min, 0), expected);
        assert_eq!(numeric(&[0x7f; 17], 5), text(&[0x7f; 17], 5));
        assert_eq!(numeric(&i128::MIN.to_be_bytes(), 7), text(&i128::MIN.to_be_bytes(), 7));
        assert_eq!(numeric(&i128::MAX.to_be_bytes(), 1), text(&i128::MAX.to_be_bytes(), 1));
        assert!(check_precision(&min, 77).is_ok() && check_precision(&min, 76).is_err());
        assert!(check_precision(&[100], 2).is_err() && check_precision(&[99], 2).is_ok());
        assert_eq!(text(&[5], -2), "500");
        assert_eq!(numeric(&[5], -2), "500");
    }
}
