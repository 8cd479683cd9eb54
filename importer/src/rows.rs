//! Object bytes → chunks of rows in the sink's wire format, off the async threads.
//!
//! ```text
//! async: S3 body ──bytes──▶ blocking thread: blocks → decompress → transcode ──chunks──▶ sink
//! ```
//!
//! Both channels are short, so an object of any size needs the memory of a few chunks, and a slow
//! database slows the download down.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use weirgate_avro::codec::Decompressor;
use weirgate_avro::constants::Constants;
use weirgate_avro::container::{ContainerError, Header, KnownSchemas, Reader};
use weirgate_avro::fault::{Fault as AvroFault, RowFault};
use weirgate_avro::limits::Limits;
use weirgate_avro::plan::Plan;
use weirgate_avro::rows::Rows;
use weirgate_common::config::OnBadRow;
use weirgate_common::fault::{self, Fault};

use crate::failure::Failure;
use crate::object::Object;

/// Chunks of this size keep the per-chunk cost of channels and sockets far below the cost of
/// the rows in it.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks and body parts that may wait for the next stage.
const QUEUED_MAX: usize = 4;

/// An object whose rows fit into this is decoded to its end before the transaction opens, so
/// that its faults never reach the database.
const PREFETCH_BYTES: usize = 8 << 20;

/// An object that is larger is not imported together with others, whatever its event said.
const GATHERED_BYTES_MAX: u64 = 1 << 20;

/// What the thread makes of each block.
pub enum Format {
    /// Binary COPY tuples.
    Copy { plan: Arc<Plan>, constants: Constants, on_bad_row: OnBadRow },
    /// Decompressed blocks, to be bound row by row inside the transaction.
    Blocks,
}

/// Rows in wire format.
#[derive(Debug, Default)]
pub struct Chunk {
    pub rows: u64,
    /// Position in the file of the first of them.
    pub first_row: u64,
    pub bytes: Vec<u8>,
    /// Rows left out, where the feed wants them quarantined.
    pub rejected: Vec<RejectedRow>,
}

/// A row that the database cannot hold.
#[derive(Debug)]
pub struct RejectedRow {
    /// Position in the file, from 0.
    pub ordinal: u64,
    pub reason: String,
    /// The whole record as JSON.
    pub record: String,
}

/// Rejected rows are kept in memory until the others are copied. An object with more than these
/// is not one with a few bad rows, and is refused as a whole.
pub const REJECTED_MAX: usize = 10_000;

/// An object opened as far as its header.
pub struct Opened {
    name: String,
    object: Object,
    /// `None`: the object has no bytes at all, hence no rows and no schema.
    reader: Option<Reader>,
}

/// The chunks of one object, in order.
pub struct Chunks {
    ready: VecDeque<Chunk>,
    /// `None`: all of them are in `ready`.
    more: Option<Receiver<Chunk>>,
}

/// The end is a message of its own: a channel that closes without it belongs to a stage that
/// died, and must not pass for an object that ended.
type Item<T> = Result<Option<T>, Failure>;
type Sender<T> = mpsc::Sender<Item<T>>;
type Receiver<T> = mpsc::Receiver<Item<T>>;

fn stage_died() -> Failure {
    Failure::new(Fault::Transient, "importer_failed", "a stage of the importer ended early")
}

impl Opened {
    /// Reads up to the end of the header.
    pub async fn read_header(
        name: String,
        mut object: Object,
        known: Arc<KnownSchemas>,
    ) -> Result<Self, Failure> {
        let mut reader = Reader::knowing(Limits::default(), known);
        let mut empty = true;
        loop {
            if reader.read_header().map_err(|error| corrupt(&name, &error))?.is_some() {
                return Ok(Opened { name, object, reader: Some(reader) });
            }
            match object.next().await? {
                Some(bytes) => {
                    empty &= bytes.is_empty();
                    reader.push(&bytes);
                }
                None if empty => return Ok(Opened { name, object, reader: None }),
                None => {
                    let error = reader.finish().err().unwrap_or(ContainerError::Empty);
                    return Err(corrupt(&name, &error));
                }
            }
        }
    }

    pub fn header(&self) -> Option<&Header> {
        self.reader.as_ref()?.header()
    }

    pub fn bytes(&self) -> u64 {
        self.object.size()
    }

    /// Reads the rest of an object that is to be imported with others. False: it is too large for
    /// that.
    pub async fn read_whole(&mut self) -> Result<bool, Failure> {
        if self.bytes() > GATHERED_BYTES_MAX {
            return Ok(false);
        }
        let Some(reader) = &mut self.reader else { return Ok(true) };
        while let Some(bytes) = self.object.next().await? {
            reader.push(&bytes);
        }
        Ok(true)
    }

    /// Starts reading and transcoding, and waits until the object is through or
    /// so many of its rows are ready that memory is better spent on streaming the rest.
    pub async fn start(mut self, format: Format) -> Result<Chunks, Failure> {
        let mut ready = VecDeque::new();
        // What comes in one piece needs no stage of its own, which costs more than the piece. No
        // size: the store did not announce one.
        let small = (1..=CHUNK_BYTES as u64).contains(&self.bytes());
        let whole = small && self.read_whole().await?;
        let Some(reader) = self.reader else { return Ok(Chunks { ready, more: None }) };
        let mut body = None;
        if !whole {
            let (sender, receiver) = mpsc::channel(QUEUED_MAX);
            tokio::spawn(download(self.object, sender));
            body = Some(receiver);
        }
        let (chunk_sender, mut chunks) = mpsc::channel(QUEUED_MAX);
        let name = self.name;
        tokio::task::spawn_blocking(move || {
            let body = || match &mut body {
                Some(body) => body.blocking_recv().unwrap_or_else(|| Err(stage_died())),
                None => Ok(None),
            };
            let take = |chunk| chunk_sender.blocking_send(Ok(Some(chunk))).is_ok();
            let end = transcode(&name, reader, body, &format, take).map(|()| None);
            // Nobody listens when the import ended before the object did.
            let _ = chunk_sender.blocking_send(end);
        });
        let mut bytes = 0;
        while bytes < PREFETCH_BYTES {
            match chunks.recv().await.unwrap_or_else(|| Err(stage_died()))? {
                Some(chunk) => {
                    bytes += chunk.bytes.len();
                    ready.push_back(chunk);
                }
                None => return Ok(Chunks { ready, more: None }),
            }
        }
        Ok(Chunks { ready, more: Some(chunks) })
    }
}

/// Transcodes objects that were read whole, on one thread. `None`: there is no room for the rows
/// of this one beside the others'.
pub async fn gather(objects: Vec<(Opened, Format)>) -> Vec<Result<Option<Chunks>, Failure>> {
    let count = objects.len();
    let transcoded = tokio::task::spawn_blocking(move || {
        let mut room = PREFETCH_BYTES;
        objects.into_iter().map(|(opened, format)| gather_one(opened, &format, &mut room)).collect()
    });
    transcoded.await.unwrap_or_else(|_| (0..count).map(|_| Err(stage_died())).collect())
}

fn gather_one(
    opened: Opened,
    format: &Format,
    room: &mut usize,
) -> Result<Option<Chunks>, Failure> {
    let mut ready = VecDeque::new();
    let Some(reader) = opened.reader else { return Ok(Some(Chunks { ready, more: None })) };
    let (mut left, mut outsized) = (*room, false);
    let take = |chunk: Chunk| {
        outsized = chunk.bytes.len() > left;
        left = left.saturating_sub(chunk.bytes.len());
        ready.push_back(chunk);
        !outsized
    };
    transcode(&opened.name, reader, || Ok(None), format, take)?;
    if outsized {
        return Ok(None);
    }
    *room = left;
    Ok(Some(Chunks { ready, more: None }))
}

impl Chunks {
    /// The next one and those that need not be waited for; none only once the object was read and
    /// transcoded to its end.
    pub async fn next_ready(&mut self) -> Result<Vec<Chunk>, Failure> {
        let first = self.next().await?;
        let mut chunks: Vec<Chunk> = first.into_iter().chain(self.ready.drain(..)).collect();
        // No more than fit into the channel, however fast it is filled again.
        for _ in 0..QUEUED_MAX {
            match self.more.as_mut().map(Receiver::try_recv) {
                Some(Ok(Ok(Some(chunk)))) => chunks.push(chunk),
                Some(Ok(Ok(None))) => self.more = None,
                Some(Ok(Err(failure))) => return Err(failure),
                Some(Err(_)) | None => break,
            }
        }
        Ok(chunks)
    }

    /// `None` only once the object was read and transcoded to its end.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        if let Some(chunk) = self.ready.pop_front() {
            return Ok(Some(chunk));
        }
        let Some(more) = &mut self.more else { return Ok(None) };
        let item = more.recv().await.unwrap_or_else(|| Err(stage_died()))?;
        if item.is_none() {
            self.more = None;
        }
        Ok(item)
    }
}

async fn download(mut object: Object, body: Sender<Bytes>) {
    loop {
        let part = object.next().await.map_err(Failure::from);
        let last = !matches!(part, Ok(Some(_)));
        // The other side is gone when the import ended early.
        if body.send(part).await.is_err() || last {
            return;
        }
    }
}

/// Runs on a blocking thread until the object ends, fails, or nobody wants its chunks any more.
fn transcode(
    name: &str,
    mut reader: Reader,
    mut body: impl FnMut() -> Item<Bytes>,
    format: &Format,
    mut take: impl FnMut(Chunk) -> bool,
) -> Result<(), Failure> {
    let header = reader.header().expect("transcoding starts after the header");
    let mut decompressor = Decompressor::new(header.codec, &Limits::default());
    let mut scratch = Vec::new();
    let mut pending = Chunk::default();
    loop {
        while let Some(block) = reader.next_block().map_err(|error| corrupt(name, &error))? {
            let data = decompressor
                .decompress(&block, &mut scratch)
                .map_err(|error| corrupt(name, &error))?;
            // The whole of a tiny object, or a chunk and a row over.
            let expected = match data.len() < CHUNK_BYTES / 16 {
                true => 2 * data.len(),
                false => CHUNK_BYTES + CHUNK_BYTES / 8,
            };
            let wanted = match format {
                Format::Copy { plan, constants, on_bad_row } => {
                    let mut rows = plan.rows(data, block.rows);
                    loop {
                        match copy(&mut rows, constants, &mut pending, &mut take, expected) {
                            Ok(wanted) => break wanted,
                            Err(AvroFault::Row(row)) if *on_bad_row == OnBadRow::Quarantine => {
                                let record = rows.refused_json();
                                pending.rejected.push(rejected(block.first_row, &row, record));
                            }
                            Err(fault) => return Err(bad_row(name, block.first_row, fault)),
                        }
                    }
                }
                Format::Blocks => {
                    let (rows, first_row) = (block.rows, block.first_row);
                    let (bytes, rejected) = (data.to_vec(), Vec::new());
                    take(Chunk { rows, first_row, bytes, rejected })
                }
            };
            if !wanted {
                return Ok(());
            }
        }
        match body()? {
            Some(part) => reader.push(&part),
            None => break,
        }
    }
    reader.finish().map_err(|error| corrupt(name, &error))?;
    if pending.rows > 0 || !pending.rejected.is_empty() {
        take(pending);
    }
    Ok(())
}

/// Fills and sends chunks from one block, up to its end or its next bad row. False when nobody
/// wants them any more.
fn copy(
    rows: &mut Rows<'_, '_>,
    constants: &Constants,
    pending: &mut Chunk,
    take: &mut impl FnMut(Chunk) -> bool,
    expected: usize,
) -> Result<bool, AvroFault> {
    loop {
        let before = rows.remaining();
        if pending.bytes.capacity() == 0 {
            pending.bytes.reserve(expected);
        }
        let copied = rows.copy(constants, &mut pending.bytes, CHUNK_BYTES);
        let refused = u64::from(matches!(copied, Err(AvroFault::Row(_))));
        pending.rows += before - rows.remaining() - refused;
        copied?;
        if pending.bytes.len() >= CHUNK_BYTES && !take(std::mem::take(pending)) {
            return Ok(false);
        }
        if rows.remaining() == 0 {
            return Ok(true);
        }
    }
}

fn corrupt(name: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::permanent("corrupt_object", format!("{name}: {}", fault::chain(error)))
}

/// `first_row`: the position of the block's first row in the file.
pub fn rejected(first_row: u64, row: &RowFault, record: Option<String>) -> RejectedRow {
    RejectedRow {
        ordinal: first_row + row.ordinal,
        reason: format!("field {}: {}", row.field, row.reason),
        // Rows are refused for a value, after they were read; all of them can be shown.
        record: record.unwrap_or_else(|| "null".to_owned()),
    }
}

/// Names the row by its position in the file.
pub fn bad_row(name: &str, first_row: u64, fault: AvroFault) -> Failure {
    match fault {
        AvroFault::Row(mut row) => {
            row.ordinal += first_row;
            Failure::permanent("bad_row", format!("{name}: {row}"))
        }
        AvroFault::Corrupt(mut flaw) => {
            flaw.ordinal += first_row;
            Failure::permanent("corrupt_object", format!("{name}: {flaw}"))
        }
    }
}
