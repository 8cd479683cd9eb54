use super::fault::Reason;
use super::wire::WIDE;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Whether eight bytes hold none that is zero or above 0x7f. Exact: without a zero byte the
/// subtraction borrows nothing between bytes.
#[inline(always)]
pub(crate) fn plain_word(word: u64) -> bool {
    (word | word.wrapping_sub(ONES)) & HIGHS == 0
}

/// Fails on text a database cannot hold: not UTF-8, or with a NUL in it.
///
/// Nearly all strings are short ASCII, for which one scan, eight bytes at a time, beats both
/// `str::from_utf8` and SIMD validation followed by a search for NUL.
#[inline(always)]
pub(crate) fn check(bytes: &[u8]) -> Result<(), Reason> {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut plain = true;
    for word in words {
        plain &= plain_word(u64::from_le_bytes(*word));
    }
    for byte in tail {
        plain &= byte.wrapping_sub(1) < 0x7f;
    }
    if plain { Ok(()) } else { check_slowly(bytes) }
}

/// Windows into this keep the first bytes of a wide load and drop the others.
const KEEP: [u8; 2 * WIDE] = {
    let mut keep = [0; 2 * WIDE];
    let mut index = 0;
    while index < WIDE {
        keep[index] = 0xff;
        index += 1;
    }
    keep
};

/// The words of a short span, with 0x61 (a plain character in every sense) behind its end.
#[inline(always)]
pub(crate) fn padded(wide: &[u8; WIDE], len: usize) -> [u64; WIDE / 8] {
    let keep = KEEP.get(WIDE - len..).and_then(|keep| keep.first_chunk::<WIDE>()).unwrap_or(wide);
    let mut words = [0; WIDE / 8];
    for ((word, bytes), keep) in
        words.iter_mut().zip(wide.as_chunks::<8>().0).zip(keep.as_chunks::<8>().0)
    {
        let keep = u64::from_le_bytes(*keep);
        *word = u64::from_le_bytes(*bytes) & keep | (ONES * 0x61) & !keep;
    }
    words
}

/// [`check`] for a short span.
#[inline(always)]
pub(crate) fn check_short(wide: &[u8; WIDE], len: usize) -> Result<(), Reason> {
    let words = padded(wide, len);
    let bad = words.iter().fold(0, |bad, word| bad | word | word.wrapping_sub(ONES));
    if bad & HIGHS == 0 { Ok(()) } else { check_slowly(&wide[..len.min(WIDE)]) }
}

#[cold]
#[inline(never)]
fn check_slowly(bytes: &[u8]) -> Result<(), Reason> {
    std::str::from_utf8(bytes).map_err(|_| Reason::Utf8)?;
    if bytes.contains(&0) { Err(Reason::Nul) } else { Ok(()) }
}

/// `bytes` as text, checked.
#[inline(always)]
pub(crate) fn checked(bytes: &[u8]) -> Result<&str, Reason> {
    check(bytes)?;
    // The scan above cannot be turned into a &str without doing it again or `unsafe`.
    std::str::from_utf8(bytes).map_err(|_| Reason::Utf8)
}

/// The 16 bytes of a UUID in its text form, with or without hyphens.
pub(crate) fn parse_uuid(text: &[u8]) -> Result<[u8; 16], Reason> {
    let mut uuid = [0u8; 16];
    let mut digits = 0;
    for (index, byte) in text.iter().enumerate() {
        if *byte == b'-' && text.len() == 36 && matches!(index, 8 | 13 | 18 | 23) {
            continue;
        }
        let digit = (*byte as char).to_digit(16).ok_or(Reason::Uuid)? as u8;
        let slot = uuid.get_mut(digits / 2).ok_or(Reason::Uuid)?;
        *slot = *slot << 4 | digit;
        digits += 1;
    }
    let whole = digits == 32 && matches!(text.len(), 32 | 36);
    if whole { Ok(uuid) } else { Err(Reason::Uuid) }
}

/// The text form of a UUID, lower case with hyphens.
pub(crate) fn write_uuid(uuid: &[u8; 16], out: &mut Vec<u8>) {
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        write_hex(*byte, out);
    }
}

pub(crate) fn write_hex(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place() {
        for len in 0..=WIDE {
            for place in 0..len {
                for byte in 0..=255u8 {
                    let mut bytes = vec![b'a'; len];
                    bytes[place] = byte;
                    let expected = match byte {
                        0 => Err(Reason::Nul),
                        0x80.. => Err(Reason::Utf8),
                        _ => Ok(()),
                    };
                    assert_eq!(check(&bytes), expected, "{byte:#x} at {place} of {len}");
                    // What lies behind the end does not matter.
                    let mut wide = [byte; WIDE];
                    wide[..len].copy_from_slice(&bytes);
                    assert_eq!(check_short(&wide, len), expected);
                }
            }
        }
        assert_eq!(check("Wehr – Überlauf".as_bytes()), Ok(()));
    }

    #[test]
    fn uuids() {
        let text = b"0123abcd-4567-89ab-cdef-0123456789ab";
        let uuid = parse_uuid(text).unwrap();
        let mut out = Vec::new();
        write_uuid(&uuid, &mut out);
        assert_eq!(out, text);
        assert_eq!(parse_uuid(b"0123ABCD456789abcdef0123456789ab"), Ok(uuid));
        for bad in [&b""[..], b"0123abcd", b"0123abcd-4567-89ab-cdef-0123456789a-", &[b'0'; 33]] {
            assert_eq!(parse_uuid(bad), Err(Reason::Uuid));
        }
    }
}
