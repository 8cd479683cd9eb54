//! Values as SQLite holds them.

use super::fault::{Halt, Reason};
use super::json::{Mode, Renderer, unquoted_or_iso};
use super::node::{Budget, Node, NodeId, Nodes, Scalar};
use super::table::Mask;
use super::wire::{Cursor, Flaw};
use super::{calendar, mask, text};

/// Takes the cells of rows, column by column in the plan's order: a prepared statement.
///
/// Data borrowed for `'b` lies in the decompressed block and stays where it is as long as the
/// block does, so SQLite may read it in place.
pub trait CellSink<'b> {
    type Error;

    fn null(&mut self);
    fn integer(&mut self, value: i64);
    fn real(&mut self, value: f64);
    fn text(&mut self, text: &'b str);
    /// Text that is gone when this call returns: dates, decimals, JSON, masked values.
    fn computed_text(&mut self, text: &str);
    fn blob(&mut self, bytes: &'b [u8]);
    /// Bytes that are gone when this call returns: a default of the reader's schema.
    fn computed_blob(&mut self, bytes: &[u8]);
    /// All cells of the row have been given.
    fn end_row(&mut self) -> Result<(), Self::Error>;
    /// The cells given since the last row's end belong to a row that cannot be stored.
    fn discard_row(&mut self);
}

/// How to make one cell.
#[derive(Clone, Debug)]
pub(crate) enum CellOp {
    Leaf(NodeId),
    Json(NodeId),
    /// A value this column can never hold.
    Refuse(Reason),
    /// A union the reader sees as one type, by the writer's branch.
    Branches(Vec<CellOp>),
    /// Reads past the value.
    Null(NodeId),
    Masked(NodeId, Mask),
}

/// The operation for values of `node`; `json` tells that the schema makes the column JSON.
pub(crate) fn op(nodes: &Nodes, node: NodeId, json: bool, nullable: bool) -> CellOp {
    match nodes.get(node) {
        _ if json => CellOp::Json(node),
        Node::Leaf(_) if nodes.is_null(node) && !nullable => CellOp::Refuse(Reason::Null),
        Node::Leaf(_) => CellOp::Leaf(node),
        Node::Mismatch { why, .. } => CellOp::Refuse(Reason::Unresolvable(why.clone())),
        Node::Union(branches) => {
            let branch = |id: &NodeId| op(nodes, *id, false, nullable);
            CellOp::Branches(branches.iter().map(branch).collect())
        }
        Node::Array(_) | Node::Map(_) | Node::Record(_) => CellOp::Json(node),
    }
}

/// Gives one cell whose value is not null to the sink. `scratch` is working memory.
#[inline]
pub(crate) fn cell<'b, S: CellSink<'b>>(
    nodes: &Nodes,
    op: &CellOp,
    cursor: &mut Cursor<'b>,
    budget: &mut Budget,
    scratch: &mut Vec<u8>,
    sink: &mut S,
) -> Result<(), Halt> {
    scratch.clear();
    match op {
        CellOp::Leaf(node) => {
            let Node::Leaf(leaf) = nodes.get(*node) else { return Ok(()) };
            return scalar(leaf.read(cursor)?, budget, scratch, sink);
        }
        CellOp::Json(node) => {
            Renderer { nodes, mode: Mode::Strict }.value(*node, cursor, budget, scratch)?;
        }
        CellOp::Refuse(reason) => return Err(reason.clone().into()),
        CellOp::Branches(ops) => {
            let index = cursor.index(Flaw::UnionIndex)?;
            let op = ops.get(index).ok_or(Flaw::UnionIndex)?;
            return cell(nodes, op, cursor, budget, scratch, sink);
        }
        CellOp::Null(node) => {
            nodes.skip(*node, cursor, budget)?;
            sink.null();
            return Ok(());
        }
        CellOp::Masked(node, mask) => mask::write(nodes, *node, mask, cursor, budget, scratch)?,
    }
    sink.computed_text(text::checked(scratch)?);
    Ok(())
}

#[inline]
fn scalar<'b, S: CellSink<'b>>(
    scalar: Scalar<'_, 'b>,
    budget: &Budget,
    scratch: &mut Vec<u8>,
    sink: &mut S,
) -> Result<(), Halt> {
    match scalar {
        Scalar::Null => sink.null(),
        Scalar::Boolean(value) => sink.integer(i64::from(value)),
        Scalar::Integer(value) => sink.integer(value),
        Scalar::Float(value) => real(f64::from(value), sink)?,
        Scalar::Double(value) => real(value, sink)?,
        Scalar::Bytes(bytes) => sink.blob(bytes),
        Scalar::Text(bytes) => sink.text(text::checked(bytes)?),
        Scalar::Symbol(symbol) => sink.computed_text(symbol),
        Scalar::Date(days) if !calendar::four_digit_year(i64::from(days)) => {
            return Err(Reason::DateRange { days: i64::from(days) }.into());
        }
        Scalar::Timestamp { value, unit, .. }
            if !calendar::four_digit_year(calendar::day_of(value, unit)) =>
        {
            return Err(Reason::TimestampRange { value, unit }.into());
        }
        Scalar::UuidText(bytes) => {
            text::write_uuid(&text::parse_uuid(bytes)?, scratch);
            sink.computed_text(text::checked(scratch)?);
        }
        other => {
            unquoted_or_iso(other, budget, scratch)?;
            let bare = scratch.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
            sink.computed_text(text::checked(bare.unwrap_or(scratch))?);
        }
    }
    Ok(())
}

/// SQLite turns NaN into null, which is not what the file says.
#[inline]
fn real<'b, S: CellSink<'b>>(value: f64, sink: &mut S) -> Result<(), Reason> {
    if value.is_nan() {
        return Err(Reason::NotANumber);
    }
    sink.real(value);
    Ok(())
}
