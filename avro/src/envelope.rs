//! Debezium's envelopes: each record is a change of a row, with the row before and after it.
//!
//! Understood as Debezium documents them: `before`, `after`, `op` and `source`; everything else,
//! such as `transaction`, is read past. A file of optional envelopes may hold tombstones, which
//! follow deletes and say nothing of their own.

use std::fmt::Write as _;

use thiserror::Error;

use super::constants::Constants;
use super::fault::{Halt, Reason};
use super::node::{Budget, Leaf, Node, NodeId, Nodes, Scalar, Wire};
use super::schema::{Record, Schema, Shape, TypeId};
use super::wire::{Cursor, Flaw};

/// The column that says what a staged row is: [`PUT`], [`DELETE`] or [`TRUNCATE`].
pub const CHANGE_COLUMN: &str = "_weirgate_change";

/// The row as it is from then on.
pub const PUT: &str = "put";
/// The row is gone; only its key is there.
pub const DELETE: &str = "delete";
/// All rows are gone; the key is null.
pub const TRUNCATE: &str = "truncate";

/// What Debezium writes for a value that the database did not log, since it did not change.
const UNAVAILABLE: &[u8] = b"__debezium_unavailable_value";

#[derive(Debug, Error, PartialEq, Eq)]
#[error("the records are no Debezium envelopes: {0}")]
pub struct NoEnvelope(&'static str);

/// The schema of the rows in the envelopes.
pub fn image(schema: &Schema) -> Result<Schema, NoEnvelope> {
    let (_, image) = Envelope::find(schema, &[])?;
    Ok(schema.rooted(image))
}

/// How to read envelopes.
#[derive(Debug)]
pub(crate) struct Envelope {
    root: NodeId,
    /// In the writer's order.
    parts: Vec<(Part, NodeId)>,
    /// The source's fields, in the writer's order.
    source: Vec<(Option<Coordinate>, NodeId)>,
    position: Position,
    /// The row's fields, in the writer's order.
    pub(crate) fields: Vec<ImageField>,
}

/// A field of the row.
#[derive(Debug)]
pub(crate) struct ImageField {
    pub(crate) node: NodeId,
    pub(crate) key: bool,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Before,
    After,
    Op,
    Source,
    Other,
}

/// What may tell where in the source's log a change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coordinate {
    Lsn,
    File,
    Pos,
    Row,
    CommitLsn,
    ChangeLsn,
    EventSerialNo,
    TsMs,
}

const COORDINATES: [(&str, Coordinate); 8] = [
    ("lsn", Coordinate::Lsn),
    ("file", Coordinate::File),
    ("pos", Coordinate::Pos),
    ("row", Coordinate::Row),
    ("commit_lsn", Coordinate::CommitLsn),
    ("change_lsn", Coordinate::ChangeLsn),
    ("event_serial_no", Coordinate::EventSerialNo),
    ("ts_ms", Coordinate::TsMs),
];

/// What orders the changes of a source.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// PostgreSQL: the change's place in the log.
    Lsn,
    /// MySQL and MariaDB: binary log file, position in it, row of the event.
    Binlog,
    /// SQL Server and Db2: commit, change, and the order in it.
    CommitLsn,
    /// Others: the time of the change, then the order of objects.
    Time,
}

/// One change, with the row's images where they lie in the block.
pub(crate) enum Change<'b> {
    /// Tombstones and messages.
    Nothing,
    /// `gone`: the row that had another key before.
    Put {
        after: Cursor<'b>,
        gone: Option<Cursor<'b>>,
    },
    Delete {
        before: Cursor<'b>,
    },
    Truncate,
}

/// Where in a record reading stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Step(usize),
    Part(&'static str),
}

impl Envelope {
    /// The envelope, and the type of its rows.
    pub(crate) fn find(schema: &Schema, key: &[String]) -> Result<(Self, TypeId), NoEnvelope> {
        let (_, root) = record(schema, schema.root()).ok_or(NoEnvelope("they are no records"))?;
        let part = |name: &str| root.fields.iter().find(|field| field.name == name);
        let after = part("after").ok_or(NoEnvelope("there is no field `after`"))?;
        let (image, row) =
            record(schema, after.schema).ok_or(NoEnvelope("`after` is no record"))?;
        let before = part("before").map(|before| record(schema, before.schema));
        if before.is_some_and(|before| before.is_none_or(|(before, _)| before != image)) {
            return Err(NoEnvelope("`before` and `after` are not of the same type"));
        }
        part("op").ok_or(NoEnvelope("there is no field `op`"))?;
        let source = part("source").ok_or(NoEnvelope("there is no field `source`"))?;
        let (_, source) =
            record(schema, source.schema).ok_or(NoEnvelope("`source` is no record"))?;
        let has = |name: &str| source.fields.iter().any(|field| field.name == name);
        let position = match () {
            () if has("file") && has("pos") => Position::Binlog,
            () if has("commit_lsn") => Position::CommitLsn,
            () if has("lsn") => Position::Lsn,
            () if has("ts_ms") => Position::Time,
            () => {
                return Err(NoEnvelope("`source` has no position: no lsn, file and pos, or ts_ms"));
            }
        };
        let coordinate = |name: &str| {
            COORDINATES.iter().find(|(known, _)| *known == name).map(|(_, found)| *found)
        };
        let parts = root.fields.iter().map(|field| {
            let part = match field.name.as_str() {
                "before" => Part::Before,
                "after" => Part::After,
                "op" => Part::Op,
                "source" => Part::Source,
                _ => Part::Other,
            };
            (part, NodeId::of(field.schema))
        });
        let is_key = |name: &str| key.iter().any(|key| key.to_lowercase() == name.to_lowercase());
        let envelope = Envelope {
            root: NodeId::of(schema.root()),
            parts: parts.collect(),
            source: source
                .fields
                .iter()
                .map(|field| (coordinate(&field.name), NodeId::of(field.schema)))
                .collect(),
            position,
            fields: row
                .fields
                .iter()
                .map(|field| ImageField {
                    node: NodeId::of(field.schema),
                    key: is_key(&field.name),
                })
                .collect(),
        };
        Ok((envelope, image))
    }

    /// Reads one envelope up to its end, and writes where it stands in the source's log: text
    /// whose byte order is that of the log.
    pub(crate) fn read<'b>(
        &self,
        nodes: &Nodes,
        cursor: &mut Cursor<'b>,
        budget: &mut Budget,
        constants: &Constants,
        version: &mut String,
    ) -> Result<Change<'b>, (At, Halt)> {
        let in_part = |name| move |halt: Halt| (At::Part(name), halt);
        let flaw = |name| move |flaw: Flaw| (At::Part(name), Halt::from(flaw));
        if chosen(nodes, self.root, cursor).map_err(flaw(""))?.is_none() {
            return Ok(Change::Nothing);
        }
        let (mut before, mut after) = (None, None);
        let (mut op, mut coordinates) = (None, [None; COORDINATES.len()]);
        for (part, node) in &self.parts {
            match part {
                Part::Before => {
                    before = skip_image(nodes, *node, cursor, budget).map_err(flaw("before"))?;
                }
                Part::After => {
                    after = skip_image(nodes, *node, cursor, budget).map_err(flaw("after"))?;
                }
                Part::Op => op = scalar(nodes, *node, cursor, budget).map_err(in_part("op"))?,
                Part::Source => {
                    chosen(nodes, *node, cursor).map_err(flaw("source"))?;
                    for (coordinate, node) in &self.source {
                        match coordinate {
                            Some(coordinate) => {
                                coordinates[*coordinate as usize] =
                                    scalar(nodes, *node, cursor, budget)
                                        .map_err(in_part("source"))?;
                            }
                            None => nodes.skip(*node, cursor, budget).map_err(flaw("source"))?,
                        }
                    }
                }
                Part::Other => nodes.skip(*node, cursor, budget).map_err(flaw(""))?,
            }
        }
        let bad = |name, why: String| (At::Part(name), Reason::Unresolvable(why.into()).into());
        let op = match op {
            Some(Scalar::Text(op)) => op,
            Some(Scalar::Symbol(op)) => op.as_bytes(),
            _ => return Err(bad("op", "there is none".to_owned())),
        };
        let lacking = |image| {
            let why = "the change does not hold the row; see the source's replica identity";
            bad(image, why.to_owned())
        };
        let change = match op {
            b"c" | b"r" => {
                Change::Put { after: after.ok_or_else(|| lacking("after"))?, gone: None }
            }
            b"u" => {
                let after = after.ok_or_else(|| lacking("after"))?;
                let moved = match &before {
                    Some(before) => {
                        self.key_differs(nodes, before, &after, budget).map_err(flaw("before"))?
                    }
                    None => false,
                };
                Change::Put { after, gone: before.filter(|_| moved) }
            }
            b"d" => Change::Delete { before: before.ok_or_else(|| lacking("before"))? },
            b"t" => Change::Truncate,
            b"m" => return Ok(Change::Nothing),
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(bad("op", format!("`{other}` is none of c, u, d, r, t, m")));
            }
        };
        version.clear();
        self.write_position(&coordinates, version).map_err(|why| bad("source", why))?;
        // A snapshot's row is older than what is streamed from the very place it was taken at.
        version.push_str(if op == b"r" { "/0" } else { "/1" });
        if let Position::Time = self.position {
            version.push('/');
            version.push_str(&constants.order);
        }
        Ok(change)
    }

    fn write_position(
        &self,
        coordinates: &[Option<Scalar<'_, '_>>],
        version: &mut String,
    ) -> Result<(), String> {
        let value = |coordinate: Coordinate| coordinates[coordinate as usize];
        let name = |coordinate: Coordinate| COORDINATES[coordinate as usize].0;
        let number = |coordinate: Coordinate| match value(coordinate) {
            Some(Scalar::Integer(number)) => u64::try_from(number).ok(),
            Some(Scalar::Timestamp { value, .. }) => u64::try_from(value).ok(),
            _ => None,
        };
        let need = |coordinate: Coordinate| {
            number(coordinate).ok_or_else(|| format!("its {} is no position", name(coordinate)))
        };
        // Numbers and colons of a fixed width.
        let lsn = |coordinate: Coordinate| match value(coordinate) {
            Some(Scalar::Text(text))
                if text.iter().all(|b| b.is_ascii_hexdigit() || *b == b':') =>
            {
                Some(String::from_utf8_lossy(text).to_ascii_lowercase())
            }
            _ => None,
        };
        let written = match self.position {
            Position::Lsn => write!(version, "{:016x}", need(Coordinate::Lsn)?),
            Position::Binlog => {
                let Some(Scalar::Text(file)) = value(Coordinate::File) else {
                    return Err("its file is no binary log".to_owned());
                };
                let file = String::from_utf8_lossy(file);
                // mysql-bin.999999 is followed by mysql-bin.1000000.
                let digits = file.rsplit('.').next().unwrap_or_default();
                let file: u64 = digits
                    .parse()
                    .map_err(|_| format!("the file {file} is no numbered binary log"))?;
                let row = number(Coordinate::Row).unwrap_or(0);
                write!(version, "{file:016x}.{:016x}.{row:08x}", need(Coordinate::Pos)?)
            }
            Position::CommitLsn => {
                let commit = lsn(Coordinate::CommitLsn)
                    .ok_or_else(|| "its commit_lsn is no position".to_owned())?;
                let change = lsn(Coordinate::ChangeLsn).unwrap_or_default();
                let serial = number(Coordinate::EventSerialNo).unwrap_or(0);
                write!(version, "{commit}.{change}.{serial:016x}")
            }
            Position::Time => write!(version, "{:016x}", need(Coordinate::TsMs)?),
        };
        written.map_err(|error| error.to_string())
    }

    /// By their bytes: two encodings of one value only cost a delete that the put undoes.
    fn key_differs(
        &self,
        nodes: &Nodes,
        before: &Cursor<'_>,
        after: &Cursor<'_>,
        budget: &mut Budget,
    ) -> Result<bool, Flaw> {
        let (mut before, mut after) = (before.clone(), after.clone());
        for field in &self.fields {
            let (old, new) = (before.clone(), after.clone());
            nodes.skip(field.node, &mut before, budget)?;
            nodes.skip(field.node, &mut after, budget)?;
            if field.key && before.since(&old) != after.since(&new) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether the value is one that the source's log did not hold.
pub(crate) fn is_unavailable(nodes: &Nodes, node: NodeId, cursor: &Cursor<'_>) -> bool {
    let mut cursor = cursor.clone();
    let Ok(Some(node)) = chosen(nodes, node, &mut cursor) else { return false };
    let text = matches!(nodes.get(node), Node::Leaf(Leaf { wire: Wire::Bytes, .. }));
    text && cursor.bytes().is_ok_and(|bytes| bytes == UNAVAILABLE)
}

/// The record that a type is, or may be.
fn record(schema: &Schema, id: TypeId) -> Option<(TypeId, &Record)> {
    let (id, _) = schema.optional(id)?;
    match &schema.get(id).shape {
        Shape::Record(record) => Some((id, record)),
        _ => None,
    }
}

/// The node of the value that comes; `None` for null.
fn chosen(nodes: &Nodes, id: NodeId, cursor: &mut Cursor<'_>) -> Result<Option<NodeId>, Flaw> {
    let id = match nodes.get(id) {
        Node::Union(branches) => {
            let index = cursor.index(Flaw::UnionIndex)?;
            *branches.get(index).ok_or(Flaw::UnionIndex)?
        }
        _ => id,
    };
    Ok((!nodes.is_null(id)).then_some(id))
}

/// Where the row begins, unless it is null. Moves behind it.
fn skip_image<'b>(
    nodes: &Nodes,
    id: NodeId,
    cursor: &mut Cursor<'b>,
    budget: &mut Budget,
) -> Result<Option<Cursor<'b>>, Flaw> {
    let Some(id) = chosen(nodes, id, cursor)? else { return Ok(None) };
    let start = cursor.clone();
    nodes.skip(id, cursor, budget)?;
    Ok(Some(start))
}

fn scalar<'p, 'b>(
    nodes: &'p Nodes,
    id: NodeId,
    cursor: &mut Cursor<'b>,
    budget: &mut Budget,
) -> Result<Option<Scalar<'p, 'b>>, Halt> {
    let Some(id) = chosen(nodes, id, cursor)? else { return Ok(None) };
    match nodes.get(id) {
        Node::Leaf(leaf) => leaf.read(cursor).map(Some),
        _ => {
            nodes.skip(id, cursor, budget)?;
            Ok(None)
        }
    }
}
