use std::collections::BTreeSet;

use thiserror::Error;

use super::cells::{self, CellOp, CellSink};
use super::copy::{self, Encoder, Op};
use super::evolve::find;
use super::fault::{Corrupt, Fault, Halt, Reason, RowFault};
use super::json::{Mode, Renderer};
use super::limits::Limits;
use super::node::{Budget, Node, NodeId, Nodes};
use super::resolve::{ResolveError, resolve};
use super::schema::Schema;
use super::table::{Column, Dialect, Mask, Masks, Source, SqlType, VALUE_COLUMN, fields};
use super::wire::{Cursor, Flaw};

/// A writer's schema, a reader's and a table, compiled into the steps that turn blocks into rows.
/// Made once per schema and table, used for many blocks, on any thread.
#[derive(Debug)]
pub struct Plan {
    dialect: Dialect,
    limits: Limits,
    nodes: Nodes,
    steps: Vec<Step>,
    columns: Vec<Column>,
    /// Fields the schema makes JSON columns, which SQLite's catalog does not tell from text.
    json_fields: BTreeSet<String>,
    /// The writer's schema read as it is: for skipping and showing refused rows.
    writer: Nodes,
    writer_root: NodeId,
}

/// What a plan is compiled for.
#[derive(Clone, Debug)]
pub struct Target<'t> {
    pub dialect: Dialect,
    /// The table's columns, in any order. Columns no field or constant goes to keep their default.
    pub columns: &'t [Column],
    pub masks: &'t Masks,
    pub limits: &'t Limits,
}

#[derive(Debug, Error, PartialEq)]
pub enum PlanError {
    #[error("field {field} cannot be stored in a column of type {sql_type}")]
    Incompatible { field: String, sql_type: SqlType },
    #[error("none of the table's columns comes from the schema")]
    NoColumns,
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("the default of field {field} cannot be stored: {problem}")]
    Default { field: String, problem: String },
}

#[derive(Debug)]
struct Step {
    name: String,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Skip(NodeId),
    Column(Cell),
    /// A field only the reader has: its default, ready for COPY and as a cell.
    Default(Vec<u8>, ConstantCell),
}

#[derive(Debug)]
struct Cell {
    null: Null,
    nullable: bool,
    sql_type: SqlType,
    copy: Op,
    cell: CellOp,
}

/// Where null stands in the field's union.
#[derive(Clone, Copy, Debug)]
enum Null {
    No,
    First,
    Second,
    /// In a union of another shape, whose operation reads the index again if it is not null.
    Branch(usize),
}

impl Plan {
    /// Compiles the plan. Fields the table has no column for are skipped: whether that may be is
    /// the evolution policy's business, see [`super::evolve::diff`].
    pub fn compile(
        writer: &Schema,
        reader: Option<&Schema>,
        target: &Target<'_>,
    ) -> Result<Self, PlanError> {
        let (writer_nodes, writer_root) = Nodes::lower(writer);
        let (nodes, root) = match reader {
            Some(reader) => resolve(writer, reader, target.limits)?,
            None => (writer_nodes.clone(), writer_root),
        };
        let schema = reader.unwrap_or(writer);
        let mut plan = Self {
            dialect: target.dialect,
            limits: target.limits.clone(),
            nodes,
            steps: Vec::new(),
            columns: Vec::new(),
            json_fields: fields(schema)
                .filter(|(_, id)| SqlType::of(schema, *id) == Some(SqlType::Jsonb))
                .map(|(name, _)| name.to_owned())
                .collect(),
            writer: writer_nodes,
            writer_root,
        };
        match plan.nodes.get(root).clone() {
            Node::Record(record) => {
                for field in record.fields {
                    let kept = field.key.is_some();
                    plan.field(field.name, field.node, kept, None, target)?;
                }
                for default in record.defaults {
                    plan.field(default.name, default.node, true, Some(default.bytes), target)?;
                }
            }
            _ => plan.field(VALUE_COLUMN.to_owned(), root, true, None, target)?,
        }
        let constants =
            target.columns.iter().filter(|column| !matches!(column.source, Source::Field(_)));
        plan.columns.extend(constants.cloned());
        if plan.columns.is_empty() {
            return Err(PlanError::NoColumns);
        }
        Ok(plan)
    }

    fn field(
        &mut self,
        name: String,
        node: NodeId,
        kept: bool,
        default: Option<Box<[u8]>>,
        target: &Target<'_>,
    ) -> Result<(), PlanError> {
        let column = find(target.columns, &name)
            .filter(|column| kept && matches!(column.source, Source::Field(_)));
        let action = match (column, default) {
            (None, None) => Action::Skip(node),
            (None, Some(_)) => return Ok(()),
            (Some(column), default) => {
                let json = self.json_fields.contains(&name);
                let cell = self.cell(&name, node, column, json, target)?;
                self.columns.push(column.clone());
                match default {
                    None => Action::Column(cell),
                    Some(bytes) => self.default(&name, &cell, &bytes)?,
                }
            }
        };
        self.steps.push(Step { name, action });
        Ok(())
    }

    fn cell(
        &self,
        name: &str,
        node: NodeId,
        column: &Column,
        json: bool,
        target: &Target<'_>,
    ) -> Result<Cell, PlanError> {
        let (inner, null) = match self.nodes.get(node) {
            Node::Union(branches) => match (branches.as_slice(), self.nodes.null_branch(node)) {
                ([_, inner], Some(0)) => (*inner, Null::First),
                ([inner, _], Some(_)) => (*inner, Null::Second),
                (_, Some(index)) => (node, Null::Branch(index)),
                (_, None) => (node, Null::No),
            },
            _ => (node, Null::No),
        };
        let sql_type = column.sql_type.clone();
        let bad = || PlanError::Incompatible {
            field: name.to_owned(),
            sql_type: column.sql_type.clone(),
        };
        let text = matches!(sql_type, SqlType::Text | SqlType::Varchar(_));
        let (copy, cell) = match target.masks.get(name) {
            Some(Mask::Null) => (Op::Null(inner), CellOp::Null(inner)),
            Some(_) if !text => return Err(bad()),
            Some(mask) => (Op::Masked(inner, mask.clone()), CellOp::Masked(inner, mask.clone())),
            None if target.dialect == Dialect::Sqlite => {
                (Op::Null(inner), cells::op(&self.nodes, inner, json, column.nullable))
            }
            None => {
                let op = copy::op(&self.nodes, inner, &sql_type, column.nullable);
                (op.ok_or_else(bad)?, CellOp::Null(inner))
            }
        };
        Ok(Cell { null, nullable: column.nullable, sql_type, copy, cell })
    }

    /// Makes a default once what it would be made for every row.
    fn default(&self, name: &str, cell: &Cell, bytes: &[u8]) -> Result<Action, PlanError> {
        let bad = |halt| PlanError::Default {
            field: name.to_owned(),
            problem: match halt {
                Halt::Flaw(flaw) => flaw.to_string(),
                Halt::Reason(reason) => reason.to_string(),
            },
        };
        let mut budget = Budget::new(&self.limits, bytes.len());
        let (mut field, mut sink) = (Vec::new(), Captured(ConstantCell::Null));
        let mut cursor = Cursor::new(bytes);
        match self.dialect {
            Dialect::Postgres => {
                let encoder = Encoder { nodes: &self.nodes };
                encoder.cell(cell, &mut cursor, &mut budget, &mut field).map_err(bad)?;
            }
            Dialect::Sqlite => {
                cell.visit(&self.nodes, &mut cursor, &mut budget, &mut Vec::new(), &mut sink)
                    .map_err(bad)?;
            }
        }
        Ok(Action::Default(field, sink.0))
    }

    /// The columns in the order rows give them: the list for `COPY t (…)` or `INSERT INTO t (…)`.
    /// It follows the file, not the table, so that no row is ever reordered.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Things a user should be told once, since they hold for every row.
    pub fn notes(&self) -> Vec<String> {
        let nanos = |cell: &Cell| match (&cell.copy, self.dialect) {
            (Op::Scalar(node), Dialect::Postgres) => {
                self.nodes.is_nanos(*node)
                    && matches!(cell.sql_type, SqlType::Timestamp | SqlType::Timestamptz)
            }
            _ => false,
        };
        let lossy = self.steps.iter().filter(|step| match &step.action {
            Action::Column(cell) => nanos(cell),
            Action::Default(..) | Action::Skip(_) => false,
        });
        lossy
            .map(|step| {
                format!("{}: nanoseconds are cut to microseconds, all PostgreSQL holds", step.name)
            })
            .collect()
    }

    /// Starts on one decompressed block.
    pub fn rows<'p, 'b>(&'p self, block: &'b [u8], rows: u64) -> Rows<'p, 'b> {
        Rows {
            plan: self,
            block,
            cursor: Cursor::new(block),
            budget: Budget::new(&self.limits, block.len()),
            rows,
            done: 0,
            scratch: Vec::new(),
            refused: None,
        }
    }

    /// Appends the whole block to `out` as binary COPY tuples, without header and trailer. Stops
    /// at the first row that cannot be stored; [`Plan::rows`] can go on after it.
    pub fn transcode_copy(
        &self,
        block: &[u8],
        rows: u64,
        constants: &Constants,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        self.rows(block, rows).copy(constants, out, usize::MAX)
    }
}

/// The values of the columns that are the same for all rows of an object, ready to be appended.
#[derive(Clone, Debug, Default)]
pub struct Constants {
    /// The tuple's head: its number of fields.
    head: [u8; 2],
    /// The constant fields, last in every tuple.
    tail: Vec<u8>,
    cells: Vec<ConstantCell>,
}

#[derive(Clone, Debug)]
enum ConstantCell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl ConstantCell {
    fn give<'b, S: CellSink<'b>>(&self, sink: &mut S) {
        match self {
            Self::Null => sink.null(),
            Self::Integer(value) => sink.integer(*value),
            Self::Real(value) => sink.real(*value),
            Self::Text(text) => sink.computed_text(text),
            Self::Blob(bytes) => sink.computed_blob(bytes),
        }
    }
}

/// Keeps the one cell it is given.
struct Captured(ConstantCell);

impl CellSink<'_> for Captured {
    type Error = std::convert::Infallible;

    fn null(&mut self) {
        self.0 = ConstantCell::Null;
    }
    fn integer(&mut self, value: i64) {
        self.0 = ConstantCell::Integer(value);
    }
    fn real(&mut self, value: f64) {
        self.0 = ConstantCell::Real(value);
    }
    fn text(&mut self, text: &str) {
        self.computed_text(text);
    }
    fn computed_text(&mut self, text: &str) {
        self.0 = ConstantCell::Text(text.to_owned());
    }
    fn blob(&mut self, bytes: &[u8]) {
        self.computed_blob(bytes);
    }
    fn computed_blob(&mut self, bytes: &[u8]) {
        self.0 = ConstantCell::Blob(bytes.to_owned());
    }
    fn end_row(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
    fn discard_row(&mut self) {}
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConstantError {
    #[error("column {column} is a date, but the object's key has {value:?}")]
    NotADate { column: String, value: String },
    #[error("column {column} is of type {sql_type}, which a part of the key cannot fill")]
    Type { column: String, sql_type: String },
    #[error("the object's key has a NUL character")]
    Nul,
}

/// What Hive writes in the place of null in a key.
const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

impl Plan {
    /// Prepares the constant columns for one object: its ledger id and the captures of its key
    /// (name and value). A capture that is missing, empty or Hive's null is null.
    pub fn constants(
        &self,
        object: i64,
        captures: &[(String, String)],
    ) -> Result<Constants, ConstantError> {
        let mut constants = Constants {
            // PostgreSQL tables have at most 1600 columns.
            head: (self.columns.len() as u16).to_be_bytes(),
            ..Constants::default()
        };
        for column in &self.columns {
            let (field, cell) = match &column.source {
                Source::Field(_) => continue,
                Source::Object => {
                    (copy::field(&object.to_be_bytes()), ConstantCell::Integer(object))
                }
                Source::Capture(name) => {
                    let value = captures.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
                    match value.filter(|value| !value.is_empty() && *value != HIVE_NULL) {
                        None => ([0xff; 4].into(), ConstantCell::Null),
                        Some(value) => {
                            let field = capture_field(column, value, self.dialect)?;
                            (field, ConstantCell::Text(value.to_owned()))
                        }
                    }
                }
            };
            constants.tail.extend_from_slice(&field);
            constants.cells.push(cell);
        }
        Ok(constants)
    }
}

fn capture_field(
    column: &Column,
    value: &str,
    dialect: Dialect,
) -> Result<Box<[u8]>, ConstantError> {
    if value.contains('\0') {
        return Err(ConstantError::Nul);
    }
    match (&column.sql_type, dialect) {
        (SqlType::Date, _) => match super::calendar::parse_date(value) {
            Some(days) => {
                let days = days - super::calendar::POSTGRES_EPOCH_DAYS;
                Ok(copy::field(&days.to_be_bytes()))
            }
            None => Err(ConstantError::NotADate {
                column: column.name.clone(),
                value: value.to_owned(),
            }),
        },
        (SqlType::Text, _) | (_, Dialect::Sqlite) => Ok(copy::field(value.as_bytes())),
        (other, Dialect::Postgres) => {
            Err(ConstantError::Type { column: column.name.clone(), sql_type: other.to_string() })
        }
    }
}

/// The rows of one block, given out in order. After a [`Fault::Row`] it stands behind the refused
/// row, and the next call goes on there.
#[derive(Debug)]
pub struct Rows<'p, 'b> {
    plan: &'p Plan,
    block: &'b [u8],
    cursor: Cursor<'b>,
    budget: Budget,
    rows: u64,
    done: u64,
    scratch: Vec<u8>,
    /// Where the last refused row lies in the block.
    refused: Option<std::ops::Range<usize>>,
}

/// Why a visit stopped: for the rows, or for the sink.
#[derive(Debug)]
pub enum Stopped<E> {
    Fault(Fault),
    Sink(E),
}

impl<'b> Rows<'_, 'b> {
    /// Rows not yet given out.
    pub fn remaining(&self) -> u64 {
        self.rows - self.done
    }

    /// Appends rows to `out` as binary COPY tuples until none remain or `out` holds at least
    /// `enough` bytes. A row that fails leaves no trace in `out`.
    pub fn copy(
        &mut self,
        constants: &Constants,
        out: &mut Vec<u8>,
        enough: usize,
    ) -> Result<(), Fault> {
        let plan = self.plan;
        let mut cursor = self.cursor.clone();
        while self.done < self.rows && out.len() < enough {
            let start = out.len();
            let result = plan.copy_row(&mut cursor, &mut self.budget, constants, out);
            if let Err((step, halt)) = result {
                out.truncate(start);
                return Err(self.fault(step, halt, cursor.offset()));
            }
            self.advance(&cursor)?;
        }
        self.finish()
    }

    /// Gives the remaining rows to a sink, cell by cell.
    pub fn visit<S: CellSink<'b>>(
        &mut self,
        constants: &Constants,
        sink: &mut S,
    ) -> Result<(), Stopped<S::Error>> {
        let plan = self.plan;
        let mut cursor = self.cursor.clone();
        while self.done < self.rows {
            let scratch = &mut self.scratch;
            if let Err((step, halt)) = plan.visit_row(&mut cursor, &mut self.budget, scratch, sink)
            {
                sink.discard_row();
                return Err(Stopped::Fault(self.fault(step, halt, cursor.offset())));
            }
            for cell in &constants.cells {
                cell.give(sink);
            }
            self.advance(&cursor).map_err(Stopped::Fault)?;
            sink.end_row().map_err(Stopped::Sink)?;
        }
        self.finish().map_err(Stopped::Fault)
    }

    /// The row last refused, as JSON with all the writer's fields. What JSON cannot hold is shown
    /// as `{"base64": "…"}`. `None` if no row was refused.
    pub fn refused_json(&self) -> Option<String> {
        let bytes = &self.block[self.refused.clone()?];
        let renderer = Renderer { nodes: &self.plan.writer, mode: Mode::Lenient };
        let mut budget = Budget::new(&self.plan.limits, bytes.len());
        let mut out = Vec::new();
        let mut cursor = Cursor::new(bytes);
        match renderer.value(self.plan.writer_root, &mut cursor, &mut budget, &mut out) {
            Ok(()) => String::from_utf8(out).ok(),
            Err(_) => None,
        }
    }

    #[inline(always)]
    fn advance(&mut self, cursor: &Cursor<'b>) -> Result<(), Fault> {
        if cursor.offset() == self.cursor.offset() {
            self.budget.spend_empty().map_err(|flaw| self.corrupt("", flaw, cursor.offset()))?;
        }
        self.cursor = cursor.clone();
        self.done += 1;
        Ok(())
    }

    fn finish(&self) -> Result<(), Fault> {
        if self.done == self.rows && !self.cursor.is_empty() {
            return Err(self.corrupt("", Flaw::TrailingBytes, self.cursor.offset()));
        }
        Ok(())
    }

    /// Moves behind the row that failed.
    #[cold]
    fn fault(&mut self, step: usize, halt: Halt, offset: usize) -> Fault {
        let field = &self.plan.steps[step].name;
        self.budget.depth = self.plan.limits.value_depth;
        let reason = match halt {
            Halt::Flaw(flaw) => return self.corrupt(field, flaw, offset),
            Halt::Reason(reason) => *reason,
        };
        let start = self.cursor.offset();
        let skipped =
            self.plan.writer.skip(self.plan.writer_root, &mut self.cursor, &mut self.budget);
        if let Err(flaw) = skipped {
            return self.corrupt(field, flaw, self.cursor.offset());
        }
        self.refused = Some(start..self.cursor.offset());
        let ordinal = self.done;
        self.done += 1;
        Fault::Row(RowFault { ordinal, field: field.clone(), reason })
    }

    #[cold]
    fn corrupt(&self, field: &str, flaw: Flaw, offset: usize) -> Fault {
        let field = field.to_owned();
        Fault::Corrupt(Corrupt { ordinal: self.done, field, offset, flaw })
    }
}

impl Plan {
    #[inline]
    fn copy_row(
        &self,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
        constants: &Constants,
        out: &mut Vec<u8>,
    ) -> Result<(), (usize, Halt)> {
        let encoder = Encoder { nodes: &self.nodes };
        out.extend_from_slice(&constants.head);
        for (index, step) in self.steps.iter().enumerate() {
            let result = match &step.action {
                Action::Column(cell) => encoder.cell(cell, cursor, budget, out),
                Action::Skip(node) => self.nodes.skip(*node, cursor, budget).map_err(Halt::from),
                Action::Default(field, _) => {
                    out.extend_from_slice(field);
                    Ok(())
                }
            };
            result.map_err(|halt| (index, halt))?;
        }
        out.extend_from_slice(&constants.tail);
        Ok(())
    }

    fn visit_row<'b, S: CellSink<'b>>(
        &self,
        cursor: &mut Cursor<'b>,
        budget: &mut Budget,
        scratch: &mut Vec<u8>,
        sink: &mut S,
    ) -> Result<(), (usize, Halt)> {
        for (index, step) in self.steps.iter().enumerate() {
            let result = match &step.action {
                Action::Column(cell) => cell.visit(&self.nodes, cursor, budget, scratch, sink),
                Action::Skip(node) => self.nodes.skip(*node, cursor, budget).map_err(Halt::from),
                Action::Default(_, cell) => {
                    cell.give(sink);
                    Ok(())
                }
            };
            result.map_err(|halt| (index, halt))?;
        }
        Ok(())
    }
}

impl Encoder<'_> {
    #[inline(always)]
    fn cell(
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
    fn visit<'b, S: CellSink<'b>>(
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
        let null = match self.null {
            Null::No => return Ok(false),
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

#[cfg(test)]
mod tests {
    use super::super::table::TableDef;
    use super::*;

    fn plan(fields: &str, dialect: Dialect) -> Plan {
        let json = format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
        let limits = Limits::default();
        let schema = Schema::parse(&json, &limits).unwrap();
        let captures = [("dt".to_owned(), "2026-11-20".to_owned())];
        let table = TableDef::new(&schema, &captures, true, &Masks::new()).unwrap();
        let (columns, masks) = (&table.columns, &Masks::new());
        Plan::compile(&schema, None, &Target { dialect, columns, masks, limits: &limits }).unwrap()
    }

    const FIELDS: &str = r#"{"name":"id","type":"long"},{"name":"name","type":["null","string"]}"#;

    fn constants(plan: &Plan) -> Constants {
        plan.constants(7, &[("dt".to_owned(), "2000-01-02".to_owned())]).unwrap()
    }

    #[test]
    fn tuples() {
        let plan = plan(FIELDS, Dialect::Postgres);
        let mut out = Vec::new();
        plan.transcode_copy(&[2, 2, 4, b'o', b'k'], 1, &constants(&plan), &mut out).unwrap();
        let expected = [
            &[0, 4][..],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 2, b'o', b'k'],
            &[0, 0, 0, 4, 0, 0, 0, 1],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7],
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn a_bad_row_is_passed_over() {
        let plan = plan(FIELDS, Dialect::Postgres);
        let block = [2, 0, 4, 2, 2, 0, 6, 0];
        let mut rows = plan.rows(&block, 3);
        let mut out = Vec::new();
        let fault = rows.copy(&constants(&plan), &mut out, usize::MAX).unwrap_err();
        let expected = RowFault { ordinal: 1, field: "name".to_owned(), reason: Reason::Nul };
        assert_eq!(fault, Fault::Row(expected));
        assert_eq!(rows.refused_json().unwrap(), r#"{"id":2,"name":{"base64":"AA=="}}"#);
        rows.copy(&constants(&plan), &mut out, usize::MAX).unwrap();
        assert_eq!(rows.remaining(), 0);
        assert_eq!(out.len(), 2 * (2 + 12 + 4 + 8 + 12));
    }

    #[test]
    fn corruption_stops_the_block() {
        let plan = plan(FIELDS, Dialect::Postgres);
        let mut out = Vec::new();
        for (block, flaw) in [
            (&[2, 4][..], Flaw::UnionIndex),
            (&[2, 2, 4], Flaw::Truncated),
            (&[2, 0, 0], Flaw::TrailingBytes),
        ] {
            let fault = plan.transcode_copy(block, 1, &constants(&plan), &mut out).unwrap_err();
            assert!(matches!(fault, Fault::Corrupt(corrupt) if corrupt.flaw == flaw));
        }
        assert!(plan.transcode_copy(&[], u64::MAX, &constants(&plan), &mut out).is_err());
    }

    #[test]
    fn rows_without_bytes_are_bounded() {
        let plan = plan(r#"{"name":"n","type":"null"}"#, Dialect::Postgres);
        let limits = Limits::default();
        let mut out = Vec::new();
        let fault = plan.transcode_copy(&[], u64::MAX, &Constants::default(), &mut out);
        assert!(matches!(fault, Err(Fault::Corrupt(c)) if c.flaw == Flaw::TooManyEmpty));
        assert_eq!(out.len(), 2 * (limits.empty_values + 1));
    }
}
