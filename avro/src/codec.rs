use std::io::Read;

use thiserror::Error;

use super::container::{Codec, RawBlock};
use super::limits::Limits;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("block {block} at byte {offset}: {problem}")]
pub struct CodecError {
    pub block: u64,
    pub offset: u64,
    pub problem: CodecProblem,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum CodecProblem {
    #[error("decompresses to more than the limit of {limit} bytes")]
    TooLarge { limit: usize },
    #[error("snappy checksum {found:08x} does not match {stored:08x}")]
    Checksum { stored: u32, found: u32 },
    #[error("compressed data is bad: {0}")]
    Data(String),
}

/// Decompresses blocks of one file. Keeps the codec's working memory between blocks.
pub struct Decompressor {
    limit: usize,
    state: State,
    /// Size of the block before: the first guess where the codec does not tell.
    last: usize,
}

enum State {
    Null,
    Deflate(libdeflater::Decompressor),
    Snappy(snap::raw::Decoder),
    Zstandard(Box<zstd::bulk::Decompressor<'static>>),
    Bzip2,
    Xz,
}

/// What xz may allocate for its dictionary; the largest preset needs 65 MiB.
const XZ_MEMORY: u64 = 80 << 20;

impl Decompressor {
    pub fn new(codec: Codec, limits: &Limits) -> Self {
        let state = match codec {
            Codec::Null => State::Null,
            Codec::Deflate => State::Deflate(libdeflater::Decompressor::new()),
            Codec::Snappy => State::Snappy(snap::raw::Decoder::new()),
            Codec::Zstandard => State::Zstandard(Box::default()),
            Codec::Bzip2 => State::Bzip2,
            Codec::Xz => State::Xz,
        };
        Self { limit: limits.decompressed_bytes, state, last: 0 }
    }

    /// The block's rows in binary encoding: in `out`, or in the block itself if it is not
    /// compressed. What `out` held before is lost.
    pub fn decompress<'a>(
        &mut self,
        block: &RawBlock<'a>,
        out: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], CodecError> {
        let Self { limit, state, last } = self;
        let data = block.data;
        let result = match state {
            State::Null if data.len() > *limit => Err(CodecProblem::TooLarge { limit: *limit }),
            State::Null => return Ok(data),
            // To zstd no input at all is the content of no frames.
            _ if data.is_empty() => Err(CodecProblem::Data("no data".to_owned())),
            State::Deflate(decompressor) => {
                // Four times is the usual ratio of text.
                let guess = (*last).max(data.len().saturating_mul(4));
                grow(out, guess, *limit, |out| match decompressor.deflate_decompress(data, out) {
                    Ok(written) => Ok(Some(written)),
                    Err(libdeflater::DecompressionError::InsufficientSpace) => Ok(None),
                    Err(error) => Err(CodecProblem::Data(error.to_string())),
                })
            }
            State::Snappy(decoder) => snappy(decoder, data, out, *limit),
            State::Zstandard(decompressor) => {
                let known = zstd::zstd_safe::get_frame_content_size(data).ok().flatten();
                let guess = match known {
                    Some(size) => usize::try_from(size).unwrap_or(usize::MAX),
                    None => (*last).max(data.len().saturating_mul(4)),
                };
                if known.is_some_and(|size| size > *limit as u64) {
                    Err(CodecProblem::TooLarge { limit: *limit })
                } else {
                    grow(out, guess, *limit, |out| zstandard(decompressor, data, out))
                }
            }
            State::Bzip2 => stream(bzip2::read::MultiBzDecoder::new(data), out, *limit),
            State::Xz => {
                let flags = liblzma::stream::CONCATENATED;
                match liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags) {
                    Ok(decoder) => {
                        stream(liblzma::read::XzDecoder::new_stream(data, decoder), out, *limit)
                    }
                    Err(error) => Err(CodecProblem::Data(error.to_string())),
                }
            }
        };
        match result {
            Ok(()) => {
                *last = out.len();
                Ok(out)
            }
            Err(problem) => Err(CodecError { block: block.number, offset: block.offset, problem }),
        }
    }
}

/// Runs `attempt` with ever larger output until it fits (`Some(bytes written)`) or the limit is
/// passed. Doubling keeps the total work within twice that of the last attempt.
fn grow(
    out: &mut Vec<u8>,
    guess: usize,
    limit: usize,
    mut attempt: impl FnMut(&mut [u8]) -> Result<Option<usize>, CodecProblem>,
) -> Result<(), CodecProblem> {
    let mut size = guess.clamp(4096.min(limit), limit);
    loop {
        out.resize(size, 0);
        if let Some(written) = attempt(out)? {
            out.truncate(written);
            return Ok(());
        }
        if size >= limit {
            return Err(CodecProblem::TooLarge { limit });
        }
        size = size.saturating_mul(2).min(limit);
    }
}

fn zstandard(
    decompressor: &mut zstd::bulk::Decompressor<'_>,
    data: &[u8],
    out: &mut [u8],
) -> Result<Option<usize>, CodecProblem> {
    decompressor.decompress_to_buffer(data, out).map(Some).or_else(|error| {
        let text = error.to_string();
        // The binding keeps the message of ZSTD_error_dstSize_tooSmall, not its code.
        if text.contains("too small") { Ok(None) } else { Err(CodecProblem::Data(text)) }
    })
}

/// Avro appends the big-endian CRC-32 of the decompressed data to the snappy block.
fn snappy(
    decoder: &mut snap::raw::Decoder,
    data: &[u8],
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(), CodecProblem> {
    let Some((data, checksum)) = data.split_last_chunk::<4>() else {
        return Err(CodecProblem::Data("shorter than its checksum".to_owned()));
    };
    let bad = |error: snap::Error| CodecProblem::Data(error.to_string());
    let size = snap::raw::decompress_len(data).map_err(bad)?;
    // Snappy copies at most 64 bytes per 3 of input, so a larger claim is a lie not worth
    // allocating for.
    if size > limit {
        return Err(CodecProblem::TooLarge { limit });
    }
    if size > data.len().saturating_mul(32) {
        return Err(CodecProblem::Data("claims a size it cannot have".to_owned()));
    }
    out.resize(size, 0);
    let written = decoder.decompress(data, out).map_err(bad)?;
    out.truncate(written);
    let (stored, found) = (u32::from_be_bytes(*checksum), crc32fast::hash(out));
    if stored == found { Ok(()) } else { Err(CodecProblem::Checksum { stored, found }) }
}

fn stream(decoder: impl Read, out: &mut Vec<u8>, limit: usize) -> Result<(), CodecProblem> {
    out.clear();
    decoder
        .take(limit as u64 + 1)
        .read_to_end(out)
        .map_err(|error| CodecProblem::Data(error.to_string()))?;
    if out.len() > limit { Err(CodecProblem::TooLarge { limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(codec: Codec, data: &[u8], limit: usize) -> Result<Vec<u8>, CodecProblem> {
        let limits = Limits { decompressed_bytes: limit, ..Limits::default() };
        let block = RawBlock { rows: 1, data, number: 0, offset: 0, first_row: 0 };
        let mut out = b"left over".to_vec();
        Decompressor::new(codec, &limits)
            .decompress(&block, &mut out)
            .map(<[u8]>::to_vec)
            .map_err(|error| error.problem)
    }

    fn samples(plain: &[u8]) -> Vec<(Codec, Vec<u8>)> {
        let mut snappy = snap::raw::Encoder::new().compress_vec(plain).unwrap();
        snappy.extend_from_slice(&crc32fast::hash(plain).to_be_bytes());
        let mut deflater = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut deflate = vec![0; deflater.deflate_compress_bound(plain.len())];
        let len = deflater.deflate_compress(plain, &mut deflate).unwrap();
        deflate.truncate(len);
        let mut bzip = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        bzip.write_all(plain).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(plain).unwrap();
        // A streamed frame does not tell its size.
        let mut streamed = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        streamed.write_all(plain).unwrap();
        vec![
            (Codec::Null, plain.to_vec()),
            (Codec::Deflate, deflate),
            (Codec::Snappy, snappy),
            (Codec::Zstandard, zstd::bulk::compress(plain, 3).unwrap()),
            (Codec::Zstandard, streamed.finish().unwrap()),
            (Codec::Bzip2, bzip.finish().unwrap()),
            (Codec::Xz, xz.finish().unwrap()),
        ]
    }

    #[test]
    fn round_trip_and_bombs() {
        for plain in [vec![], b"water".repeat(50_000)] {
            for (codec, data) in samples(&plain) {
                assert_eq!(check(codec, &data, plain.len()).as_ref(), Ok(&plain), "{codec:?}");
                if !plain.is_empty() {
                    let limit = plain.len() - 1;
                    let bomb = check(codec, &data, limit);
                    assert_eq!(bomb, Err(CodecProblem::TooLarge { limit }), "{codec:?}");
                }
            }
        }
    }

    #[test]
    fn damage_is_an_error() {
        let plain = b"a weir gate holds water at a set level".repeat(20);
        for (codec, data) in samples(&plain).into_iter().skip(1) {
            for cut in 0..data.len() {
                assert!(check(codec, &data[..cut], 1 << 20).is_err(), "{codec:?} cut at {cut}");
            }
        }
        let (_, mut snappy) = samples(&plain).remove(2);
        let last = snappy.len() - 1;
        snappy[last] ^= 1;
        assert!(matches!(
            check(Codec::Snappy, &snappy, 1 << 20),
            Err(CodecProblem::Checksum { .. })
        ));
    }
}
