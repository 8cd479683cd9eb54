//! Envelopes as rows to be staged: the table's columns, then the version, then what the row is. A
//! delete has the key only; the update of a key is the delete of the old and a put of the new.

use super::cells::CellSink;
use super::constants::{Captured, ConstantCell, Constants};
use super::copy::{Encoder, put_bytes, put_null};
use super::envelope::{At, Change, DELETE, Envelope, PUT, TRUNCATE, is_unavailable};
use super::fault::{Halt, Reason};
use super::node::Budget;
use super::plan::Plan;
use super::step::Action;
use super::wire::Cursor;

/// Columns behind those of the table.
const COLUMNS_BEHIND: usize = 2;

/// Why a visit of one envelope stopped.
pub(crate) enum Halted<E> {
    At(At, Halt),
    Sink(E),
}

impl<E> From<(At, Halt)> for Halted<E> {
    fn from((at, halt): (At, Halt)) -> Self {
        Self::At(at, halt)
    }
}

/// What envelopes are read with, besides the plan.
pub(crate) struct Reading<'r> {
    pub(crate) envelope: &'r Envelope,
    pub(crate) constants: &'r Constants,
    pub(crate) budget: &'r mut Budget,
    pub(crate) scratch: &'r mut Vec<u8>,
    pub(crate) version: &'r mut String,
}

impl Plan {
    /// Appends the rows of one envelope to `out` as binary COPY tuples.
    pub(crate) fn copy_change(
        &self,
        reading: &mut Reading<'_>,
        cursor: &mut Cursor<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), (At, Halt)> {
        match self.read_change(reading, cursor)? {
            Change::Nothing => Ok(()),
            Change::Put { after, gone } => {
                if let Some(before) = gone {
                    self.copy_image(reading, before, DELETE, out)?;
                }
                self.copy_image(reading, after, PUT, out)
            }
            Change::Delete { before } => self.copy_image(reading, before, DELETE, out),
            Change::Truncate => {
                self.copy_head(out);
                self.columns().iter().for_each(|_| put_null(out));
                put_behind(reading.version, TRUNCATE, out);
                Ok(())
            }
        }
    }

    /// Gives the rows of one envelope to a sink. When a row cannot be stored, none was given.
    pub(crate) fn visit_change<'b, S: CellSink<'b>>(
        &self,
        reading: &mut Reading<'_>,
        cursor: &mut Cursor<'b>,
        sink: &mut S,
    ) -> Result<(), Halted<S::Error>> {
        let (image, change) = match self.read_change(reading, cursor)? {
            Change::Nothing => return Ok(()),
            Change::Put { after, gone } => {
                if let Some(before) = gone {
                    let mut nobody = Captured(ConstantCell::Null);
                    self.visit_image(reading, after.clone(), PUT, &mut nobody)?;
                    self.visit_image(reading, before, DELETE, sink)?;
                    sink.end_row().map_err(Halted::Sink)?;
                }
                (after, PUT)
            }
            Change::Delete { before } => (before, DELETE),
            Change::Truncate => {
                self.columns().iter().for_each(|_| sink.null());
                sink.computed_text(reading.version);
                sink.computed_text(TRUNCATE);
                return sink.end_row().map_err(Halted::Sink);
            }
        };
        self.visit_image(reading, image, change, sink)?;
        sink.end_row().map_err(Halted::Sink)
    }

    fn read_change<'b>(
        &self,
        reading: &mut Reading<'_>,
        cursor: &mut Cursor<'b>,
    ) -> Result<Change<'b>, (At, Halt)> {
        let Reading { envelope, constants, budget, version, .. } = reading;
        envelope.read(&self.writer, cursor, budget, constants, version)
    }

    fn copy_head(&self, out: &mut Vec<u8>) {
        // PostgreSQL tables have at most 1600 columns.
        let fields = (self.columns().len() + COLUMNS_BEHIND) as u16;
        out.extend_from_slice(&fields.to_be_bytes());
    }

    fn copy_image(
        &self,
        reading: &mut Reading<'_>,
        mut cursor: Cursor<'_>,
        change: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), (At, Halt)> {
        let Reading { envelope, constants, budget, version, .. } = reading;
        let (encoder, cursor) = (Encoder { nodes: &self.nodes }, &mut cursor);
        self.copy_head(out);
        for (index, (step, field)) in self.steps.iter().zip(&envelope.fields).enumerate() {
            let result = match &step.action {
                Action::Column(cell) if change == PUT || field.key => {
                    match is_unavailable(&self.nodes, field.node, cursor) {
                        true => Err(unavailable()),
                        false => encoder.cell(cell, cursor, budget, out),
                    }
                }
                Action::Column(_) => {
                    put_null(out);
                    self.nodes.skip(field.node, cursor, budget).map_err(Halt::from)
                }
                Action::Skip(node) => self.nodes.skip(*node, cursor, budget).map_err(Halt::from),
                Action::Default(field, _) => {
                    out.extend_from_slice(field);
                    Ok(())
                }
            };
            result.map_err(|halt| (At::Step(index), halt))?;
        }
        constants.tail.put(out);
        put_behind(version, change, out);
        Ok(())
    }

    /// All cells of the row, but not its end.
    fn visit_image<'b, S: CellSink<'b>>(
        &self,
        reading: &mut Reading<'_>,
        mut cursor: Cursor<'b>,
        change: &str,
        sink: &mut S,
    ) -> Result<(), (At, Halt)> {
        let Reading { envelope, constants, budget, scratch, version } = reading;
        let cursor = &mut cursor;
        for (index, (step, field)) in self.steps.iter().zip(&envelope.fields).enumerate() {
            let result = match &step.action {
                Action::Column(cell) if change == PUT || field.key => {
                    match is_unavailable(&self.nodes, field.node, cursor) {
                        true => Err(unavailable()),
                        false => cell.visit(&self.nodes, cursor, budget, scratch, sink),
                    }
                }
                Action::Column(_) => {
                    sink.null();
                    self.nodes.skip(field.node, cursor, budget).map_err(Halt::from)
                }
                Action::Skip(node) => self.nodes.skip(*node, cursor, budget).map_err(Halt::from),
                Action::Default(_, cell) => {
                    cell.give(sink);
                    Ok(())
                }
            };
            result.map_err(|halt| (At::Step(index), halt))?;
        }
        for cell in &constants.cells {
            cell.give(sink);
        }
        sink.computed_text(version);
        sink.computed_text(change);
        Ok(())
    }
}

fn put_behind(version: &str, change: &str, out: &mut Vec<u8>) {
    put_bytes(out, version.as_bytes());
    put_bytes(out, change.as_bytes());
}

fn unavailable() -> Halt {
    let why = "the change does not hold this value, which was large and did not change; set REPLICA IDENTITY FULL at the source";
    Reason::Unresolvable(why.into()).into()
}
