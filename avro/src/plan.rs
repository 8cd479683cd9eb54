use std::collections::BTreeSet;

use thiserror::Error;

use super::cells::{self, CellOp};
use super::constants::{Captured, ConstantCell, ConstantError, Constants};
use super::copy::{self, Encoder, Op};
use super::envelope::{Envelope, NoEnvelope};
use super::evolve::find;
use super::fault::Halt;
use super::limits::Limits;
use super::node::{Budget, Node, NodeId, Nodes};
use super::resolve::{ResolveError, resolve};
use super::schema::Schema;
use super::step::{Action, Cell, Null, Step};
use super::table::{Column, Dialect, Mask, Masks, Source, SqlType, VALUE_COLUMN, fields};
use super::wire::Cursor;

/// A writer's schema, a reader's and a table, compiled into the steps that turn blocks into rows.
/// Made once per schema and table, used for many blocks, on any thread.
#[derive(Debug)]
pub struct Plan {
    dialect: Dialect,
    pub(crate) limits: Limits,
    pub(crate) nodes: Nodes,
    pub(crate) steps: Vec<Step>,
    columns: Vec<Column>,
    /// Fields the schema makes JSON columns, which SQLite's catalog does not tell from text.
    json_fields: BTreeSet<String>,
    /// The writer's schema read as it is: for skipping and showing refused rows.
    pub(crate) writer: Nodes,
    pub(crate) writer_root: NodeId,
    /// Where the records are changes, and the rows lie in them.
    pub(crate) envelope: Option<Envelope>,
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
    #[error(transparent)]
    Envelope(#[from] NoEnvelope),
    #[error("the default of field {field} cannot be stored: {problem}")]
    Default { field: String, problem: String },
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
            envelope: None,
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
        // The version comes last, wherever the table has it.
        let (versions, others): (Vec<&Column>, Vec<&Column>) =
            constants.partition(|column| column.source == Source::Version);
        plan.columns.extend(others.into_iter().chain(versions).cloned());
        if plan.columns.is_empty() {
            return Err(PlanError::NoColumns);
        }
        Ok(plan)
    }

    /// Compiles the plan for a writer of Debezium envelopes. It gives rows to be staged: those of
    /// [`Plan::columns`], with [`super::table::VERSION_COLUMN`] and
    /// [`super::envelope::CHANGE_COLUMN`] behind them. `key` names the fields that a delete has.
    pub fn compile_changes(
        writer: &Schema,
        key: &[String],
        target: &Target<'_>,
    ) -> Result<Self, PlanError> {
        let (envelope, image) = Envelope::find(writer, key)?;
        let mut plan = Self::compile(&writer.rooted(image), None, target)?;
        // Each change has a version of its own.
        plan.columns.retain(|column| column.source != Source::Version);
        (plan.writer, plan.writer_root) = Nodes::lower(writer);
        plan.envelope = Some(envelope);
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

    /// Prepares the constant columns for one object: its ledger id and the captures of its key
    /// (name and value). A capture that is missing, empty or Hive's null is null.
    pub fn constants(
        &self,
        object: i64,
        captures: &[(String, String)],
    ) -> Result<Constants, ConstantError> {
        self.constants_in_order(object, captures, "")
    }

    /// The same for a table written by key: `order` is the object's among others, as text whose
    /// byte order it is.
    pub fn constants_in_order(
        &self,
        object: i64,
        captures: &[(String, String)],
        order: &str,
    ) -> Result<Constants, ConstantError> {
        Constants::new(&self.columns, self.dialect, object, captures, order)
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::Decompressor;
    use super::super::evolve::{Change, diff};
    use super::super::table::TableDef;
    use super::*;

    #[test]
    fn plans_go_to_any_thread() {
        fn shared<T: Send + Sync>() {}
        fn sent<T: Send>() {}
        shared::<Plan>();
        shared::<Constants>();
        sent::<Decompressor>();
    }

    /// What [`diff`] lets pass, as it is or after widening, a plan must be able to store.
    #[test]
    fn fitting_columns_are_accepted() {
        use SqlType::*;
        let limits = Limits::default();
        let types = [
            r#""boolean""#,
            r#""int""#,
            r#""long""#,
            r#""float""#,
            r#""double""#,
            r#""bytes""#,
            r#""string""#,
            r#"{"type":"enum","name":"E","symbols":["A"]}"#,
            r#"{"type":"fixed","name":"F","size":3}"#,
            r#"{"type":"bytes","logicalType":"decimal","precision":10,"scale":3}"#,
            r#"{"type":"bytes","logicalType":"decimal","precision":40,"scale":20}"#,
            r#"{"type":"bytes","logicalType":"big-decimal"}"#,
            r#"{"type":"string","logicalType":"uuid"}"#,
            r#"{"type":"int","logicalType":"date"}"#,
            r#"{"type":"long","logicalType":"time-micros"}"#,
            r#"{"type":"long","logicalType":"timestamp-micros"}"#,
            r#"{"type":"long","logicalType":"local-timestamp-nanos"}"#,
            r#"{"type":"fixed","name":"D","size":12,"logicalType":"duration"}"#,
            r#"{"type":"array","items":"int"}"#,
            r#"["int","string"]"#,
        ];
        let columns = [
            Boolean,
            Smallint,
            Integer,
            Bigint,
            Real,
            Double,
            Numeric(None),
            Numeric(Some((10, 3))),
            Numeric(Some((40, 2))),
            Bytea,
            Text,
            Varchar(5),
            Uuid,
            Date,
            Time,
            Timestamp,
            Timestamptz,
            Interval,
            Json,
            Jsonb,
            Other("point".to_owned()),
        ];
        for ty in types {
            let json =
                format!(r#"{{"type":"record","name":"R","fields":[{{"name":"x","type":{ty}}}]}}"#);
            let schema = Schema::parse(&json, &limits).unwrap();
            let masks = Masks::new();
            let wanted = TableDef::new(&schema, &[], false, &masks).unwrap().columns;
            for have in &columns {
                let existing = [Column { sql_type: have.clone(), ..wanted[0].clone() }];
                let fitting = match diff(Dialect::Postgres, &existing, &wanted).as_slice() {
                    [] => have.clone(),
                    [Change::Widen { to, .. }] => to.clone(),
                    _ => continue,
                };
                let columns = [Column { sql_type: fitting, ..wanted[0].clone() }];
                assert_eq!(diff(Dialect::Postgres, &columns, &wanted), [], "a fixpoint");
                let (dialect, columns) = (Dialect::Postgres, &columns);
                let target = Target { dialect, columns, masks: &masks, limits: &limits };
                let plan = Plan::compile(&schema, None, &target);
                assert!(plan.is_ok(), "{ty} into {have}: {plan:?}");
            }
        }
    }
}
