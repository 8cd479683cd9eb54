use super::cells::CellSink;
use super::changes::{Halted, Reading};
use super::constants::Constants;
use super::copy::Encoder;
use super::envelope::{At, Envelope};
use super::fault::{Corrupt, Fault, Halt, RowFault};
use super::json::{Mode, Renderer};
use super::node::Budget;
use super::plan::Plan;
use super::step::Action;
use super::wire::{Cursor, Flaw};

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
    /// Of the last change, where the records are changes.
    version: String,
    /// Where the last refused row lies in the block.
    refused: Option<std::ops::Range<usize>>,
}

/// Why a visit stopped: for the rows, or for the sink.
#[derive(Debug)]
pub enum Stopped<E> {
    Fault(Fault),
    Sink(E),
}

impl<'p, 'b> Rows<'p, 'b> {
    pub(crate) fn new(plan: &'p Plan, block: &'b [u8], rows: u64) -> Self {
        Self {
            plan,
            block,
            cursor: Cursor::new(block),
            budget: Budget::new(&plan.limits, block.len()),
            rows,
            done: 0,
            scratch: Vec::new(),
            version: String::new(),
            refused: None,
        }
    }

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
            let result = match &plan.envelope {
                None => plan
                    .copy_row(&mut cursor, &mut self.budget, constants, out)
                    .map_err(|(step, halt)| (At::Step(step), halt)),
                Some(envelope) => {
                    let mut reading = self.reading(envelope, constants);
                    plan.copy_change(&mut reading, &mut cursor, out)
                }
            };
            if let Err((at, halt)) = result {
                out.truncate(start);
                return Err(self.fault(at, halt, cursor.offset()));
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
            if let Some(envelope) = &plan.envelope {
                let mut reading = self.reading(envelope, constants);
                match plan.visit_change(&mut reading, &mut cursor, sink) {
                    Ok(()) => self.advance(&cursor).map_err(Stopped::Fault)?,
                    Err(Halted::Sink(error)) => return Err(Stopped::Sink(error)),
                    Err(Halted::At(at, halt)) => {
                        sink.discard_row();
                        return Err(Stopped::Fault(self.fault(at, halt, cursor.offset())));
                    }
                }
                continue;
            }
            let scratch = &mut self.scratch;
            if let Err((step, halt)) = plan.visit_row(&mut cursor, &mut self.budget, scratch, sink)
            {
                sink.discard_row();
                let at = At::Step(step);
                return Err(Stopped::Fault(self.fault(at, halt, cursor.offset())));
            }
            for cell in &constants.cells {
                cell.give(sink);
            }
            self.advance(&cursor).map_err(Stopped::Fault)?;
            sink.end_row().map_err(Stopped::Sink)?;
        }
        self.finish().map_err(Stopped::Fault)
    }

    fn reading<'r>(&'r mut self, envelope: &'r Envelope, constants: &'r Constants) -> Reading<'r> {
        let Self { budget, scratch, version, .. } = self;
        Reading { envelope, constants, budget, scratch, version }
    }

    /// The row last refused, as JSON with all the writer's fields. What JSON cannot hold is shown
    /// as `{"base64": "…"}`. `None` if no row was refused, or
    /// if an array's stated size, which skipping the row goes by, is not that of its items.
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
    fn fault(&mut self, at: At, halt: Halt, offset: usize) -> Fault {
        let plan = self.plan;
        let field = match at {
            At::Step(step) => &plan.steps[step].name,
            At::Part(part) => part,
        };
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
        // Nobody need ask for more rows when none remain, so this is the last chance to tell.
        if let Err(corrupt) = self.finish() {
            return corrupt;
        }
        Fault::Row(RowFault { ordinal, field: field.to_owned(), reason })
    }

    #[cold]
    fn corrupt(&self, field: &str, flaw: Flaw, offset: usize) -> Fault {
        let field = field.to_owned();
        Fault::Corrupt(Corrupt { ordinal: self.done, field, offset, flaw })
    }
}

impl Plan {
    /// Starts on one decompressed block.
    pub fn rows<'p, 'b>(&'p self, block: &'b [u8], rows: u64) -> Rows<'p, 'b> {
        Rows::new(self, block, rows)
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
        constants.tail.put(out);
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

#[cfg(test)]
mod tests {
    use super::super::fault::Reason;
    use super::super::limits::Limits;
    use super::super::plan::Target;
    use super::super::schema::Schema;
    use super::super::table::{Dialect, Masks, TableDef};
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
    fn bytes_left_over_after_a_bad_last_row() {
        let plan = plan(FIELDS, Dialect::Postgres);
        let fault = plan.transcode_copy(&[4, 2, 2, 0, 9], 1, &constants(&plan), &mut Vec::new());
        assert!(matches!(fault, Err(Fault::Corrupt(c)) if c.flaw == Flaw::TrailingBytes));
    }

    #[test]
    fn files_of_other_things_than_records() {
        let limits = Limits::default();
        let masks = Masks::new();
        for (json, block, field) in [
            (r#""long""#, &[2][..], &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1][..]),
            (r#"["null","boolean"]"#, &[2, 1], &[0, 0, 0, 1, 1]),
            (r#"{"type":"array","items":"int"}"#, &[2, 2, 0], b"\0\0\0\x04\x01[1]"),
        ] {
            let schema = Schema::parse(json, &limits).unwrap();
            let columns = TableDef::new(&schema, &[], false, &masks).unwrap().columns;
            assert_eq!(columns[0].name, "value");
            let (dialect, columns, masks, limits) = (Dialect::Postgres, &columns, &masks, &limits);
            let target = Target { dialect, columns, masks, limits };
            let plan = Plan::compile(&schema, None, &target).unwrap();
            let mut out = Vec::new();
            plan.transcode_copy(block, 1, &plan.constants(0, &[]).unwrap(), &mut out).unwrap();
            assert_eq!(out, [&[0, 1], field].concat());
        }
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
        let fault = plan.transcode_copy(&[], u64::MAX, &constants(&plan), &mut out);
        assert!(matches!(fault, Err(Fault::Corrupt(c)) if c.flaw == Flaw::TooManyEmpty));
        assert_eq!(out.len(), (2 + 8 + 12) * (limits.empty_values + 1));
    }
}
