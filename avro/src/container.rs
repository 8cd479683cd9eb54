use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use super::limits::Limits;
use super::schema::{Schema, SchemaError};
use super::wire::{Cursor, Flaw};

/// What every object container file begins with.
pub const MAGIC: &[u8; 4] = b"Obj\x01";

/// An object container file, read incrementally: bytes are pushed in as they arrive, whole blocks
/// come out. Does no I/O and holds at most one block plus what was pushed since.
///
/// ```text
/// loop { while let Some(block) = reader.next_block()? { … }  reader.push(chunk) }  reader.finish()?
/// ```
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    known: Arc<KnownSchemas>,
    buffer: Vec<u8>,
    /// Where the unread part of `buffer` starts.
    start: usize,
    /// Bytes of the file before `buffer[0]`.
    base: u64,
    state: State,
    header: Option<Header>,
    blocks: u64,
    rows: u64,
}

/// What stands before the blocks. Metadata other than the schema and the codec is not kept.
#[derive(Clone, Debug)]
pub struct Header {
    pub writer: Arc<WriterSchema>,
    pub codec: Codec,
    pub sync: [u8; 16],
}

/// The writer's schema.
#[derive(Debug)]
pub struct WriterSchema {
    /// As it stands in the file.
    pub json: String,
    pub schema: Schema,
    /// CRC-64-AVRO of the parsing canonical form, which knows no logical types: schemas that make
    /// different rows may share it.
    pub fingerprint: i64,
}

/// Schemas that were parsed before: in small files the schema takes longer than the rows, and most
/// files of a source have the same.
#[derive(Debug, Default)]
pub struct KnownSchemas(Mutex<HashMap<String, Arc<WriterSchema>>>);

/// More schemas, or longer ones, are not worth the memory.
const KNOWN_MAX: usize = 256;
const KNOWN_BYTES_MAX: usize = 64 << 10;

impl KnownSchemas {
    fn parse(&self, json: String, limits: &Limits) -> Result<Arc<WriterSchema>, SchemaError> {
        if let Some(known) = self.lock().get(&json) {
            return Ok(known.clone());
        }
        let schema = Schema::parse(&json, limits)?;
        let fingerprint = schema.fingerprint();
        let writer = Arc::new(WriterSchema { json: json.clone(), schema, fingerprint });
        if json.len() <= KNOWN_BYTES_MAX {
            let mut known = self.lock();
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(json, writer.clone());
        }
        Ok(writer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<WriterSchema>>> {
        // The map is whole after every statement, whoever panicked while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The codecs of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Null,
    Deflate,
    Snappy,
    Zstandard,
    Bzip2,
    Xz,
}

impl FromStr for Codec {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "null" => Self::Null,
            "deflate" => Self::Deflate,
            "snappy" => Self::Snappy,
            "zstandard" => Self::Zstandard,
            "bzip2" => Self::Bzip2,
            "xz" => Self::Xz,
            _ => return Err(()),
        })
    }
}

/// One block as it lies in the file, still compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBlock<'r> {
    pub rows: u64,
    pub data: &'r [u8],
    /// Position in the file, from 0.
    pub number: u64,
    /// Offset in bytes of the block's row count in the file.
    pub offset: u64,
    /// Number of rows in the blocks before: the ordinal of this block's first row.
    pub first_row: u64,
}

#[derive(Debug, Error, PartialEq)]
pub enum ContainerError {
    #[error("the object is empty: not even an Avro header")]
    Empty,
    #[error("not an Avro object container file: it starts with {found:02x?}")]
    Magic { found: [u8; 4] },
    #[error("the file ends inside its header, after {length} bytes")]
    HeaderTruncated { length: u64 },
    #[error("the file ends inside block {block}, which starts at byte {offset}")]
    BlockTruncated { block: u64, offset: u64 },
    #[error("bad header at byte {offset}: {flaw}")]
    Header { offset: u64, flaw: Flaw },
    #[error("header is longer than the limit of {limit} bytes")]
    HeaderTooLarge { limit: usize },
    #[error("header has no avro.schema")]
    NoSchema,
    #[error("avro.schema is not UTF-8")]
    SchemaNotUtf8,
    #[error("bad writer schema")]
    Schema(#[from] SchemaError),
    #[error("unknown codec {0:?}")]
    UnknownCodec(String),
    #[error("bad head of block {block} at byte {offset}: {flaw}")]
    BlockHead { block: u64, offset: u64, flaw: Flaw },
    #[error("block {block} at byte {offset} claims {bytes} bytes, over the limit of {limit}")]
    BlockTooLarge { block: u64, offset: u64, bytes: u64, limit: usize },
    #[error("sync marker after block {block} does not match the header's, at byte {offset}")]
    Sync { block: u64, offset: u64 },
    #[error("more blocks than the limit of {limit}")]
    TooManyBlocks { limit: u64 },
}

#[derive(Debug)]
enum State {
    Magic,
    /// Before a run of metadata entries.
    Run(Metadata),
    /// Inside one, with this many entries to go.
    Entry(Metadata, u64),
    HeaderSync(Metadata),
    Blocks,
}

#[derive(Debug, Default)]
struct Metadata {
    schema: Option<Vec<u8>>,
    codec: Option<Vec<u8>>,
}

impl Reader {
    pub fn new(limits: Limits) -> Self {
        Self::knowing(limits, Arc::default())
    }

    /// One that shares its knowledge with others, which have the same limits.
    pub fn knowing(limits: Limits, known: Arc<KnownSchemas>) -> Self {
        Self {
            limits,
            known,
            buffer: Vec::new(),
            start: 0,
            base: 0,
            state: State::Magic,
            header: None,
            blocks: 0,
            rows: 0,
        }
    }

    /// Appends the next bytes of the file. Take out all blocks before pushing more, or the buffer
    /// grows.
    pub fn push(&mut self, bytes: &[u8]) {
        // Moving the rest to the front only when it is the smaller part keeps this linear.
        if self.start > 0 && self.start >= self.buffer.len() - self.start {
            self.buffer.drain(..self.start);
            self.base += self.start as u64;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The header, once [`Reader::next_block`] or [`Reader::read_header`] has met its end.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Blocks and rows handed out so far.
    pub fn progress(&self) -> (u64, u64) {
        (self.blocks, self.rows)
    }

    /// Reads the header as far as the bytes pushed go; `None` if more are needed.
    pub fn read_header(&mut self) -> Result<Option<&Header>, ContainerError> {
        while self.header.is_none() {
            let mut cursor = Cursor::new(&self.buffer[self.start..]);
            let advanced = match self.state.advance(&mut cursor, &self.known, &self.limits) {
                Ok(advanced) => advanced,
                Err(Stop::Flaw(Flaw::Truncated)) => {
                    if self.base as usize + self.buffer.len() > self.limits.header_bytes {
                        let limit = self.limits.header_bytes;
                        return Err(ContainerError::HeaderTooLarge { limit });
                    }
                    return Ok(None);
                }
                Err(Stop::Flaw(flaw)) => {
                    let offset = self.base + (self.start + cursor.offset()) as u64;
                    return Err(ContainerError::Header { offset, flaw });
                }
                Err(Stop::Error(error)) => return Err(error),
            };
            self.start += cursor.offset();
            if self.base as usize + self.start > self.limits.header_bytes {
                return Err(ContainerError::HeaderTooLarge { limit: self.limits.header_bytes });
            }
            self.header = advanced;
        }
        Ok(self.header.as_ref())
    }

    /// The next whole block; `None` if more bytes are needed. Empty blocks are passed over.
    pub fn next_block(&mut self) -> Result<Option<RawBlock<'_>>, ContainerError> {
        let Some(sync) = self.read_header()?.map(|header| header.sync) else { return Ok(None) };
        loop {
            let offset = self.base + self.start as u64;
            let block = self.blocks;
            let mut cursor = Cursor::new(&self.buffer[self.start..]);
            let (rows, bytes) = match (cursor.long(), cursor.long()) {
                (Ok(rows), Ok(bytes)) => (rows, bytes),
                (Err(Flaw::Truncated), _) | (_, Err(Flaw::Truncated)) => return Ok(None),
                (Err(flaw), _) | (_, Err(flaw)) => {
                    return Err(ContainerError::BlockHead { block, offset, flaw });
                }
            };
            let (Ok(rows), Ok(len)) = (u64::try_from(rows), usize::try_from(bytes)) else {
                return Err(ContainerError::BlockHead { block, offset, flaw: Flaw::Length });
            };
            if len > self.limits.block_bytes {
                let limit = self.limits.block_bytes;
                let bytes = bytes as u64;
                return Err(ContainerError::BlockTooLarge { block, offset, bytes, limit });
            }
            let from = self.start + cursor.offset();
            let Some(marker) = self.buffer.get(from + len..from + len + sync.len()) else {
                return Ok(None);
            };
            if marker != sync {
                let offset = self.base + (from + len) as u64;
                return Err(ContainerError::Sync { block, offset });
            }
            if block >= self.limits.blocks {
                return Err(ContainerError::TooManyBlocks { limit: self.limits.blocks });
            }
            self.start = from + len + sync.len();
            self.blocks += 1;
            if rows > 0 {
                let first_row = self.rows;
                self.rows = self.rows.saturating_add(rows);
                let data = &self.buffer[from..from + len];
                return Ok(Some(RawBlock { rows, data, number: block, offset, first_row }));
            }
        }
    }

    /// Tells whether the file may end here. Call it after the last push, when
    /// [`Reader::next_block`] has returned `None`.
    pub fn finish(&self) -> Result<(), ContainerError> {
        let length = self.base + self.buffer.len() as u64;
        if length == 0 {
            return Err(ContainerError::Empty);
        }
        if self.header.is_none() {
            return Err(ContainerError::HeaderTruncated { length });
        }
        if self.start < self.buffer.len() {
            let offset = self.base + self.start as u64;
            return Err(ContainerError::BlockTruncated { block: self.blocks, offset });
        }
        Ok(())
    }
}

enum Stop {
    Flaw(Flaw),
    Error(ContainerError),
}

impl From<Flaw> for Stop {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

impl State {
    /// Takes one item of the header. On `Truncated` nothing is consumed, so it can be tried again
    /// when there is more; each try costs the same, whatever the size of the item.
    fn advance(
        &mut self,
        cursor: &mut Cursor<'_>,
        known: &KnownSchemas,
        limits: &Limits,
    ) -> Result<Option<Header>, Stop> {
        match self {
            Self::Magic => {
                let found = *cursor.take_array::<4>()?;
                if found != *MAGIC {
                    return Err(Stop::Error(ContainerError::Magic { found }));
                }
                *self = Self::Run(Metadata::default());
            }
            Self::Run(metadata) => {
                let run = cursor.run()?;
                let metadata = std::mem::take(metadata);
                *self = match run.count {
                    0 => Self::HeaderSync(metadata),
                    entries => Self::Entry(metadata, entries),
                };
            }
            Self::Entry(metadata, left) => {
                let (key, value) = (cursor.bytes()?, cursor.bytes()?);
                match key {
                    b"avro.schema" => metadata.schema = Some(value.to_vec()),
                    b"avro.codec" => metadata.codec = Some(value.to_vec()),
                    _ => {}
                }
                *left -= 1;
                if *left == 0 {
                    *self = Self::Run(std::mem::take(metadata));
                }
            }
            Self::HeaderSync(metadata) => {
                let sync = *cursor.take_array::<16>()?;
                let metadata = std::mem::take(metadata);
                let header = header(metadata, sync, known, limits).map_err(Stop::Error)?;
                *self = Self::Blocks;
                return Ok(Some(header));
            }
            Self::Blocks => {}
        }
        Ok(None)
    }
}

fn header(
    metadata: Metadata,
    sync: [u8; 16],
    known: &KnownSchemas,
    limits: &Limits,
) -> Result<Header, ContainerError> {
    let schema = metadata.schema.ok_or(ContainerError::NoSchema)?;
    let schema_json = String::from_utf8(schema).map_err(|_| ContainerError::SchemaNotUtf8)?;
    let codec = match metadata.codec.as_deref() {
        // Some writers leave an empty name for "none".
        None | Some(b"") => Codec::Null,
        Some(name) => {
            let name = String::from_utf8_lossy(name);
            Codec::from_str(&name)
                .map_err(|_| ContainerError::UnknownCodec(name.chars().take(64).collect()))?
        }
    };
    Ok(Header { writer: known.parse(schema_json, limits)?, codec, sync })
}

#[cfg(test)]
mod tests {
    use apache_avro::types::Value;
    use apache_avro::{Schema as Reference, Writer};

    use super::*;

    fn file() -> Vec<u8> {
        let schema = Reference::parse_str("\"long\"").unwrap();
        let mut writer = Writer::builder().schema(&schema).writer(Vec::new()).build().unwrap();
        writer.add_user_metadata("note".to_owned(), b"Obj\x01").unwrap();
        for block in 0..3 {
            for row in 0..=block {
                writer.append_value(Value::Long(row)).unwrap();
            }
            writer.flush().unwrap();
        }
        writer.into_inner().unwrap()
    }

    fn read(bytes: &[u8], chunk: usize) -> Result<Vec<u64>, ContainerError> {
        let mut reader = Reader::new(Limits::default());
        let mut rows = Vec::new();
        for chunk in bytes.chunks(chunk) {
            reader.push(chunk);
            while let Some(block) = reader.next_block()? {
                rows.push(block.rows);
            }
        }
        reader.finish()?;
        Ok(rows)
    }

    #[test]
    fn blocks_in_any_chunking() {
        let file = file();
        for chunk in [1, 2, 7, 16, 1000] {
            assert_eq!(read(&file, chunk), Ok(vec![1, 2, 3]), "chunks of {chunk}");
        }
    }

    #[test]
    fn every_truncation_is_an_error_or_a_block_boundary() {
        let file = file();
        let whole = (0..file.len()).filter(|len| read(&file[..*len], 64).is_ok()).count();
        assert_eq!(whole, 3, "the header alone and the ends of the first two blocks");
        assert_eq!(read(&[], 1), Err(ContainerError::Empty));
    }

    #[test]
    fn hostile_heads() {
        assert!(matches!(read(b"PAR1....", 8), Err(ContainerError::Magic { .. })));
        let mut sync = file();
        let last = sync.len() - 1;
        sync[last] ^= 1;
        assert!(matches!(read(&sync, 64), Err(ContainerError::Sync { block: 2, .. })));
        // A map entry that claims 2^62 bytes never allocates them.
        let huge = [b"Obj\x01\x02".as_slice(), &[0xff; 8], &[0x7f]].concat();
        assert!(read(&huge, 64).is_err());
    }
}
