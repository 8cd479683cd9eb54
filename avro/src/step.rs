use super::cells::{self, CellOp, CellSink};
use super::constants::ConstantCell;
use super::copy::{self, Encoder, Op};
use super::fault::{Halt, Reason};
use super::node::{Budget, NodeId, Nodes};
use super::table::SqlType;
use super::wire::{Cursor, Flaw};

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) action: Action,
}

#[derive(Debug)]
pub(crate) enum Action {
    Skip(NodeId),
    Column(Cell),
    /// A field only the reader has: its default, ready for COPY and as a cell.
    Default(Vec<u8>, ConstantCell),
}

#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) null: Null,
    pub(crate) nullable: bool,
    pub(crate) sql_type: SqlType,
    pub(crate) copy: Op,
    pub(crate) cell: CellOp,
}

/// Where null stands in the field's union.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Null {
    No,
    First,
    Second,
    /// In a union of another shape, whose operation reads the index again if it is not null.
    Branch(usize),
}

impl Encoder<'_> {
    #[inline(always)]
    pub(crate) fn cell(
        &self,
        cell: &Cell,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
        out: &mut Vec<u8>,
    ) -> Result<(), Halt> {
        if cell.take_null(cursor)? {
            copy::put_null(out);
            return Ok(());
        }
        self.column(&cell.copy, &cell.sql_type, cursor, budget, out)
    }
}

impl Cell {
    pub(crate) fn visit<'b, S: CellSink<'b>>(
        &self,
        nodes: &Nodes,
        cursor: &mut Cursor<'b>,
        budget: &mut Budget,
        scratch: &mut Vec<u8>,
        sink: &mut S,
    ) -> Result<(), Halt> {
        if self.take_null(cursor)? {
            sink.null();
            return Ok(());
        }
        cells::cell(nodes, &self.cell, cursor, budget, scratch, sink)
    }

    /// Whether the value is null, in which case it is consumed; otherwise the cursor stands
    /// before the value the operation reads.
    #[inline(always)]
    fn take_null(&self, cursor: &mut Cursor<'_>) -> Result<bool, Halt> {
        // Zero and two are the indices of the first and the second branch, in zigzag.
        let null = match self.null {
            Null::No => return Ok(false),
            Null::First if cursor.next_is(2) => return Ok(false),
            Null::Second if cursor.next_is(0) => return Ok(false),
            Null::First => cursor.index(Flaw::UnionIndex)?,
            Null::Second => match cursor.index(Flaw::UnionIndex)? {
                index @ 0..=1 => 1 - index,
                other => other,
            },
            Null::Branch(null) => {
                let mut ahead = cursor.clone();
                if ahead.index(Flaw::UnionIndex)? != null {
                    return Ok(false);
                }
                *cursor = ahead;
                0
            }
        };
        match null {
            1 => Ok(false),
            0 if self.nullable => Ok(true),
            0 => Err(Reason::Null.into()),
            _ => Err(Flaw::UnionIndex.into()),
        }
    }
}
