use thiserror::Error;

/// How bytes can fail to be what the schema says. After one of these the rest of the block cannot
/// be read, since the end of the value is not known.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Flaw {
    #[error("the data ends inside a value")]
    Truncated,
    #[error("a variable-length integer is longer than its type allows")]
    VarintTooLong,
    #[error("an int is out of the range of 32 bits")]
    IntRange,
    #[error("a length or count is negative or does not fit the data")]
    Length,
    #[error("a boolean is neither 0 nor 1")]
    Boolean,
    #[error("a union index names no branch")]
    UnionIndex,
    #[error("an enum index names no symbol")]
    EnumIndex,
    #[error("the value nests deeper than the limit")]
    TooDeep,
    #[error("more values that take no bytes than the limit")]
    TooManyEmpty,
    #[error("bytes are left over after the last row")]
    TrailingBytes,
}

/// Reads Avro binary encoding from one decompressed block.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'b> {
    rest: &'b [u8],
    total: usize,
}

impl<'b> Cursor<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes, total: bytes.len() }
    }

    /// Bytes consumed so far.
    pub(crate) fn offset(&self) -> usize {
        self.total - self.rest.len()
    }

    /// What was read since the cursor stood at `start`.
    pub(crate) fn since(&self, start: &Self) -> &'b [u8] {
        &start.rest[..start.rest.len() - self.rest.len()]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline(always)]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'b [u8], Flaw> {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(Flaw::Truncated),
        }
    }

    #[inline(always)]
    pub(crate) fn take_array<const N: usize>(&mut self) -> Result<&'b [u8; N], Flaw> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(Flaw::Truncated),
        }
    }

    #[inline(always)]
    pub(crate) fn long(&mut self) -> Result<i64, Flaw> {
        self.varint().map(|raw| (raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// An int is encoded as a long is, but must fit 32 bits.
    #[inline(always)]
    pub(crate) fn int(&mut self) -> Result<i32, Flaw> {
        i32::try_from(self.long()?).map_err(|_| Flaw::IntRange)
    }

    #[inline(always)]
    fn varint(&mut self) -> Result<u64, Flaw> {
        match self.rest {
            [one, rest @ ..] if *one < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*one))
            }
            [one, two, rest @ ..] if *two < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*one & 0x7f) | u64::from(*two) << 7)
            }
            _ => self.long_varint(),
        }
    }

    /// Three bytes and more: timestamps and random ids have seven or eight, which are put
    /// together side by side instead of one after the other.
    #[inline(always)]
    fn long_varint(&mut self) -> Result<u64, Flaw> {
        if let Some(bytes) = self.rest.first_chunk::<8>() {
            let word = u64::from_le_bytes(*bytes);
            let stops = !word & 0x8080_8080_8080_8080;
            if stops != 0 {
                self.rest = &self.rest[stops.trailing_zeros() as usize / 8 + 1..];
                // Everything up to the first stop bit, then groups of 7 to 14 to 28 to 56 bits.
                let word = word & (stops ^ (stops - 1));
                let word = (word & 0x7f00_7f00_7f00_7f00) >> 1 | (word & 0x007f_007f_007f_007f);
                let word = (word & 0x3fff_0000_3fff_0000) >> 2 | (word & 0x0000_3fff_0000_3fff);
                return Ok((word & 0x0fff_ffff_0000_0000) >> 4 | (word & 0x0fff_ffff));
            }
        }
        self.longest_varint()
    }

    #[cold]
    #[inline(never)]
    fn longest_varint(&mut self) -> Result<u64, Flaw> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().take(10).enumerate() {
            // The tenth byte has room for one bit of a 64-bit number.
            if index == 9 && *byte > 1 {
                return Err(Flaw::VarintTooLong);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if *byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        if self.rest.len() >= 10 { Err(Flaw::VarintTooLong) } else { Err(Flaw::Truncated) }
    }

    #[inline(always)]
    pub(crate) fn boolean(&mut self) -> Result<bool, Flaw> {
        match self.take_array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Flaw::Boolean),
        }
    }

    #[inline(always)]
    pub(crate) fn float(&mut self) -> Result<f32, Flaw> {
        self.take_array().map(|bytes| f32::from_le_bytes(*bytes))
    }

    #[inline(always)]
    pub(crate) fn double(&mut self) -> Result<f64, Flaw> {
        self.take_array().map(|bytes| f64::from_le_bytes(*bytes))
    }

    /// The content of a `bytes` or `string`.
    #[inline(always)]
    pub(crate) fn bytes(&mut self) -> Result<&'b [u8], Flaw> {
        let len = self.length()?;
        self.take(len)
    }

    #[inline(always)]
    fn length(&mut self) -> Result<usize, Flaw> {
        usize::try_from(self.long()?).map_err(|_| Flaw::Length)
    }

    /// The content of a `bytes` or `string`; a short one comes with what lies behind it, so that
    /// it can be handled at a fixed width.
    #[inline(always)]
    pub(crate) fn span(&mut self) -> Result<Span<'b>, Flaw> {
        let len = self.length()?;
        match self.rest.first_chunk::<WIDE>() {
            Some(wide) if len <= WIDE => {
                self.rest = &self.rest[len..];
                Ok(Span::Short(wide, len))
            }
            _ => self.take(len).map(Span::Long),
        }
    }

    /// Whether the next byte is this one, which is then consumed.
    #[inline(always)]
    pub(crate) fn next_is(&mut self, byte: u8) -> bool {
        match self.rest {
            [next, rest @ ..] if *next == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// The index of a union branch or an enum symbol.
    #[inline(always)]
    pub(crate) fn index(&mut self, flaw: Flaw) -> Result<usize, Flaw> {
        usize::try_from(self.long()?).map_err(|_| flaw)
    }

    /// The head of a run of array or map items: how many, and for runs that tell it, the bytes
    /// they take. A count of zero ends the array.
    #[inline(always)]
    pub(crate) fn run(&mut self) -> Result<Run, Flaw> {
        let count = self.long()?;
        if count >= 0 {
            return Ok(Run { count: count as u64, bytes: None });
        }
        let bytes = usize::try_from(self.long()?).map_err(|_| Flaw::Length)?;
        if bytes > self.rest.len() {
            return Err(Flaw::Truncated);
        }
        Ok(Run { count: count.unsigned_abs(), bytes: Some(bytes) })
    }
}

/// Copying this many bytes, needed or not, takes a few instructions; a copy of a length known only
/// at run time is a call.
pub(crate) const WIDE: usize = 32;

pub(crate) enum Span<'b> {
    /// As many bytes as the number says.
    Short(&'b [u8; WIDE], usize),
    Long(&'b [u8]),
}

/// A short constant, padded so that it can be copied at a fixed width.
#[derive(Clone, Debug)]
pub(crate) struct Snippet {
    wide: [u8; WIDE],
    len: usize,
    /// The constant itself, if it is longer than that.
    long: Box<[u8]>,
}

impl Snippet {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut wide = [0; WIDE];
        let (len, long) = match wide.get_mut(..bytes.len()) {
            Some(start) => {
                start.copy_from_slice(bytes);
                (bytes.len(), [].into())
            }
            None => (0, bytes.into()),
        };
        Self { wide, len, long }
    }

    #[inline(always)]
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_wide(out, &self.wide, self.len);
        if !self.long.is_empty() {
            out.extend_from_slice(&self.long);
        }
    }
}

/// Appends the first `len` bytes of `wide`.
#[inline(always)]
pub(crate) fn put_wide(out: &mut Vec<u8>, wide: &[u8; WIDE], len: usize) {
    let end = out.len() + len;
    out.extend_from_slice(wide);
    out.truncate(end);
}

pub(crate) struct Run {
    pub(crate) count: u64,
    pub(crate) bytes: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints() {
        let check = |bytes: &[u8]| Cursor::new(bytes).long();
        assert_eq!(check(&[0]), Ok(0));
        assert_eq!(check(&[1]), Ok(-1));
        assert_eq!(check(&[0x80, 1]), Ok(64));
        // Every length, at the end of the data and with more behind it.
        for bits in 0..64 {
            for value in [1u64 << bits, (1u64 << bits) - 1, u64::MAX >> bits] {
                let (mut bytes, mut rest) = (Vec::new(), value);
                while rest >= 0x80 {
                    bytes.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                bytes.push(rest as u8);
                let expected = (value >> 1) as i64 ^ -((value & 1) as i64);
                assert_eq!(check(&bytes), Ok(expected));
                let len = bytes.len();
                bytes.extend([0xff; 9]);
                let mut cursor = Cursor::new(&bytes);
                assert_eq!((cursor.long(), cursor.offset()), (Ok(expected), len));
            }
        }
        assert_eq!(check(&[0xff; 9].iter().copied().chain([1]).collect::<Vec<_>>()), Ok(i64::MIN));
        assert_eq!(
            check(&[0xfe].into_iter().chain([0xff; 8]).chain([1]).collect::<Vec<_>>()),
            Ok(i64::MAX)
        );
        assert_eq!(check(&[]), Err(Flaw::Truncated));
        assert_eq!(check(&[0x80; 9]), Err(Flaw::Truncated));
        assert_eq!(check(&[0x80; 10]), Err(Flaw::VarintTooLong));
        let too_big: Vec<u8> = [0xff; 9].into_iter().chain([2]).collect();
        assert_eq!(check(&too_big), Err(Flaw::VarintTooLong));
        assert_eq!(Cursor::new(&[0x80, 0x80, 0x80, 0x80, 0x10]).int(), Err(Flaw::IntRange));
    }

    #[test]
    fn lengths_beyond_the_data() {
        assert_eq!(Cursor::new(&[4, b'a']).bytes(), Err(Flaw::Truncated));
        assert_eq!(Cursor::new(&[3, b'a']).bytes(), Err(Flaw::Length));
    }
}
