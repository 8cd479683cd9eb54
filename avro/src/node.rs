use super::fault::{Halt, Reason};
use super::limits::Limits;
use super::schema::{Logical, Schema, Shape, Type, TypeId, Unit};
use super::wire::{Cursor, Flaw, Snippet};

/// How to read values of a writer's schema as values of the reader's. An arena like [`Schema`];
/// recursion is an id that points back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    pub(crate) list: Vec<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Leaf(Leaf),
    Array(NodeId),
    Map(NodeId),
    Record(Record),
    /// By the writer's branch index.
    Union(Vec<NodeId>),
    /// The schemas do not match here: a value is an error, reading `skip` finds its end.
    Mismatch {
        skip: NodeId,
        why: Box<str>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// In the writer's order.
    pub(crate) fields: Vec<Field>,
    /// Fields only the reader's schema has.
    pub(crate) defaults: Vec<Default>,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// The reader's name.
    pub(crate) name: String,
    /// `,"name":` as it stands in JSON; `None` for a field the reader does not have.
    pub(crate) key: Option<Snippet>,
    pub(crate) node: NodeId,
}

#[derive(Clone, Debug)]
pub(crate) struct Default {
    pub(crate) name: String,
    pub(crate) key: Snippet,
    pub(crate) node: NodeId,
    /// The default in binary encoding.
    pub(crate) bytes: Box<[u8]>,
}

/// A value without parts: how its bytes lie, and what they mean to the reader.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) wire: Wire,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    /// `bytes` and `string`.
    Bytes,
    Fixed(usize),
    Enum,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    /// The reader's symbol by the writer's index; `None` for one the reader does not know.
    Enum(Vec<Option<Box<str>>>),
    Decimal {
        precision: u32,
        scale: u32,
    },
    BigDecimal,
    Uuid,
    Date,
    TimeMillis,
    TimeMicros,
    Timestamp {
        unit: Unit,
        local: bool,
    },
    Duration,
}

/// One leaf's value, borrowed from the block (`'b`) or the plan (`'p`). Text is not yet checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar<'p, 'b> {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f32),
    Double(f64),
    Bytes(&'b [u8]),
    Text(&'b [u8]),
    Symbol(&'p str),
    Decimal { unscaled: &'b [u8], precision: u32, scale: u32 },
    BigDecimal(&'b [u8]),
    Uuid(&'b [u8; 16]),
    UuidText(&'b [u8]),
    Date(i32),
    Time { value: i64, unit: Unit },
    Timestamp { value: i64, unit: Unit, local: bool },
    Duration { months: u32, days: u32, millis: u32 },
}

/// What reading values may still use up; see [`Limits`].
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    pub(crate) depth: u32,
    pub(crate) empty: usize,
    pub(crate) field_bytes: usize,
    pub(crate) decimal_bytes: usize,
}

impl Budget {
    pub(crate) fn new(limits: &Limits, block_bytes: usize) -> Self {
        Self {
            depth: limits.value_depth,
            empty: limits.empty_values.saturating_add(block_bytes),
            field_bytes: limits.field_bytes,
            decimal_bytes: limits.decimal_bytes,
        }
    }

    /// Accounts for a value that took no bytes.
    #[inline]
    pub(crate) fn spend_empty(&mut self) -> Result<(), Flaw> {
        self.empty = self.empty.checked_sub(1).ok_or(Flaw::TooManyEmpty)?;
        Ok(())
    }

    #[inline]
    pub(crate) fn deeper(&mut self) -> Result<(), Flaw> {
        self.depth = self.depth.checked_sub(1).ok_or(Flaw::TooDeep)?;
        Ok(())
    }
}

impl NodeId {
    /// The node of a type in an arena made by [`Nodes::lower`].
    pub(crate) fn of(id: TypeId) -> Self {
        Self(id.index() as u32)
    }
}

impl Nodes {
    #[inline]
    pub(crate) fn get(&self, id: NodeId) -> &Node {
        &self.list[id.0 as usize]
    }

    pub(crate) fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId(self.list.len() as u32);
        self.list.push(node);
        id
    }

    pub(crate) fn set(&mut self, id: NodeId, node: Node) {
        self.list[id.0 as usize] = node;
    }

    /// Adds another arena behind this one; its ids grow by this one's length.
    pub(crate) fn append(&mut self, other: Self) {
        let offset = self.list.len() as u32;
        let moved = |id: NodeId| NodeId(id.0 + offset);
        self.list.extend(other.list.into_iter().map(|node| match node {
            Node::Leaf(leaf) => Node::Leaf(leaf),
            Node::Array(items) => Node::Array(moved(items)),
            Node::Map(values) => Node::Map(moved(values)),
            Node::Union(branches) => Node::Union(branches.into_iter().map(moved).collect()),
            Node::Mismatch { skip, why } => Node::Mismatch { skip: moved(skip), why },
            Node::Record(mut record) => {
                record.fields.iter_mut().for_each(|field| field.node = moved(field.node));
                record.defaults.iter_mut().for_each(|field| field.node = moved(field.node));
                Node::Record(record)
            }
        }));
    }

    pub(crate) fn is_null(&self, id: NodeId) -> bool {
        matches!(self.get(id), Node::Leaf(Leaf { wire: Wire::Null, .. }))
    }

    pub(crate) fn is_nanos(&self, id: NodeId) -> bool {
        let nanos = |kind: &Kind| matches!(kind, Kind::Timestamp { unit: Unit::Nanos, .. });
        matches!(self.get(id), Node::Leaf(leaf) if nanos(&leaf.kind))
    }

    /// Where a union's null branch is, if it has one.
    pub(crate) fn null_branch(&self, id: NodeId) -> Option<usize> {
        let Node::Union(branches) = self.get(id) else { return None };
        branches.iter().position(|branch| self.is_null(*branch))
    }

    /// Moves past one value.
    pub(crate) fn skip(
        &self,
        id: NodeId,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
    ) -> Result<(), Flaw> {
        match self.get(id) {
            Node::Leaf(leaf) => leaf.skip(cursor),
            Node::Mismatch { skip, .. } => self.skip(*skip, cursor, budget),
            Node::Union(branches) => {
                let index = cursor.index(Flaw::UnionIndex)?;
                let branch = *branches.get(index).ok_or(Flaw::UnionIndex)?;
                budget.deeper()?;
                self.skip(branch, cursor, budget)?;
                budget.depth += 1;
                Ok(())
            }
            Node::Record(record) => {
                budget.deeper()?;
                for field in &record.fields {
                    self.skip(field.node, cursor, budget)?;
                }
                budget.depth += 1;
                Ok(())
            }
            Node::Array(items) => self.skip_runs(*items, false, cursor, budget),
            Node::Map(values) => self.skip_runs(*values, true, cursor, budget),
        }
    }

    fn skip_runs(
        &self,
        item: NodeId,
        keyed: bool,
        cursor: &mut Cursor<'_>,
        budget: &mut Budget,
    ) -> Result<(), Flaw> {
        budget.deeper()?;
        loop {
            let run = cursor.run()?;
            if run.count == 0 {
                break;
            }
            if let Some(bytes) = run.bytes {
                cursor.take(bytes)?;
                continue;
            }
            for _ in 0..run.count {
                let before = cursor.offset();
                if keyed {
                    cursor.bytes()?;
                }
                self.skip(item, cursor, budget)?;
                if cursor.offset() == before {
                    budget.spend_empty()?;
                }
            }
        }
        budget.depth += 1;
        Ok(())
    }

    /// Reads every value of `schema` as what it is. Node ids equal type ids.
    pub(crate) fn lower(schema: &Schema) -> (Self, NodeId) {
        let list = (0..schema.len()).map(|index| node(schema.get(TypeId::new(index)))).collect();
        (Self { list }, NodeId::of(schema.root()))
    }
}

/// The node that reads a type as itself, for an arena laid out as the schema's.
fn node(ty: &Type) -> Node {
    match &ty.shape {
        Shape::Array(items) => Node::Array(NodeId::of(*items)),
        Shape::Map(values) => Node::Map(NodeId::of(*values)),
        Shape::Union(branches) => Node::Union(branches.iter().map(|id| NodeId::of(*id)).collect()),
        Shape::Record(record) => {
            let field = |field: &super::schema::Field| Field {
                name: field.name.clone(),
                key: Some(json_key(&field.name)),
                node: NodeId::of(field.schema),
            };
            Node::Record(Record {
                fields: record.fields.iter().map(field).collect(),
                defaults: Vec::new(),
            })
        }
        _ => Node::Leaf(Leaf { wire: wire(ty), kind: kind(ty) }),
    }
}

/// `,"name":` with the name escaped.
pub(crate) fn json_key(name: &str) -> Snippet {
    Snippet::new(format!(",{}:", serde_json::Value::from(name)).as_bytes())
}

/// How a leaf type lies in the bytes. Null for types with parts, which have no wire of their own.
pub(crate) fn wire(ty: &Type) -> Wire {
    match &ty.shape {
        Shape::Boolean => Wire::Boolean,
        Shape::Int => Wire::Int,
        Shape::Long => Wire::Long,
        Shape::Float => Wire::Float,
        Shape::Double => Wire::Double,
        Shape::Bytes | Shape::String => Wire::Bytes,
        Shape::Fixed(fixed) => Wire::Fixed(fixed.size),
        Shape::Enum(_) => Wire::Enum,
        Shape::Null | Shape::Array(_) | Shape::Map(_) | Shape::Union(_) | Shape::Record(_) => {
            Wire::Null
        }
    }
}

pub(crate) fn kind(ty: &Type) -> Kind {
    match (&ty.logical, &ty.shape) {
        (Some(Logical::Decimal { precision, scale }), _) => {
            Kind::Decimal { precision: *precision, scale: *scale }
        }
        (Some(Logical::BigDecimal), _) => Kind::BigDecimal,
        (Some(Logical::Uuid), _) => Kind::Uuid,
        (Some(Logical::Date), _) => Kind::Date,
        (Some(Logical::TimeMillis), _) => Kind::TimeMillis,
        (Some(Logical::TimeMicros), _) => Kind::TimeMicros,
        (Some(Logical::Timestamp { unit, local }), _) => {
            Kind::Timestamp { unit: *unit, local: *local }
        }
        (Some(Logical::Duration), _) => Kind::Duration,
        (None, Shape::Boolean) => Kind::Boolean,
        (None, Shape::Int) => Kind::Int,
        (None, Shape::Long) => Kind::Long,
        (None, Shape::Float) => Kind::Float,
        (None, Shape::Double) => Kind::Double,
        (None, Shape::Bytes | Shape::Fixed(_)) => Kind::Bytes,
        (None, Shape::String) => Kind::Text,
        (None, Shape::Enum(symbols)) => {
            Kind::Enum(symbols.symbols.iter().map(|symbol| Some(symbol.as_str().into())).collect())
        }
        (
            None,
            Shape::Null | Shape::Array(_) | Shape::Map(_) | Shape::Union(_) | Shape::Record(_),
        ) => Kind::Null,
    }
}

impl Leaf {
    fn skip(&self, cursor: &mut Cursor<'_>) -> Result<(), Flaw> {
        match self.wire {
            Wire::Null => Ok(()),
            Wire::Boolean => cursor.boolean().map(drop),
            Wire::Int => cursor.int().map(drop),
            Wire::Long => cursor.long().map(drop),
            Wire::Float => cursor.take(4).map(drop),
            Wire::Double => cursor.take(8).map(drop),
            Wire::Bytes => cursor.bytes().map(drop),
            Wire::Fixed(size) => cursor.take(size).map(drop),
            Wire::Enum => {
                let index = cursor.index(Flaw::EnumIndex)?;
                let known = matches!(&self.kind, Kind::Enum(symbols) if index < symbols.len());
                if known { Ok(()) } else { Err(Flaw::EnumIndex) }
            }
        }
    }

    #[inline]
    pub(crate) fn read<'p, 'b>(&'p self, cursor: &mut Cursor<'b>) -> Result<Scalar<'p, 'b>, Halt> {
        Ok(match self.wire {
            Wire::Null => Scalar::Null,
            Wire::Boolean => Scalar::Boolean(cursor.boolean()?),
            Wire::Int => self.integer(i64::from(cursor.int()?)),
            Wire::Long => self.integer(cursor.long()?),
            Wire::Float => match self.kind {
                Kind::Double => Scalar::Double(f64::from(cursor.float()?)),
                _ => Scalar::Float(cursor.float()?),
            },
            Wire::Double => Scalar::Double(cursor.double()?),
            Wire::Bytes => self.bytes(cursor.bytes()?),
            Wire::Fixed(size) => self.fixed(cursor.take(size)?),
            Wire::Enum => {
                let index = cursor.index(Flaw::EnumIndex)?;
                let Kind::Enum(symbols) = &self.kind else { return Err(Flaw::EnumIndex.into()) };
                match symbols.get(index).ok_or(Flaw::EnumIndex)? {
                    Some(symbol) => Scalar::Symbol(symbol),
                    None => return Err(unknown_symbol().into()),
                }
            }
        })
    }

    #[inline]
    fn integer<'p, 'b>(&self, value: i64) -> Scalar<'p, 'b> {
        match self.kind {
            Kind::Float => Scalar::Float(value as f32),
            Kind::Double => Scalar::Double(value as f64),
            Kind::Date => Scalar::Date(value as i32),
            Kind::TimeMillis => Scalar::Time { value, unit: Unit::Millis },
            Kind::TimeMicros => Scalar::Time { value, unit: Unit::Micros },
            Kind::Timestamp { unit, local } => Scalar::Timestamp { value, unit, local },
            _ => Scalar::Integer(value),
        }
    }

    #[inline]
    fn bytes<'p, 'b>(&self, bytes: &'b [u8]) -> Scalar<'p, 'b> {
        match self.kind {
            Kind::Text => Scalar::Text(bytes),
            Kind::Uuid => Scalar::UuidText(bytes),
            Kind::Decimal { precision, scale } => {
                Scalar::Decimal { unscaled: bytes, precision, scale }
            }
            Kind::BigDecimal => Scalar::BigDecimal(bytes),
            _ => Scalar::Bytes(bytes),
        }
    }

    #[inline]
    fn fixed<'p, 'b>(&self, bytes: &'b [u8]) -> Scalar<'p, 'b> {
        match self.kind {
            Kind::Decimal { precision, scale } => {
                Scalar::Decimal { unscaled: bytes, precision, scale }
            }
            Kind::Uuid => match bytes.try_into() {
                Ok(uuid) => Scalar::Uuid(uuid),
                Err(_) => Scalar::Bytes(bytes),
            },
            Kind::Duration => match bytes.as_chunks::<4>().0 {
                [months, days, millis] => Scalar::Duration {
                    months: u32::from_le_bytes(*months),
                    days: u32::from_le_bytes(*days),
                    millis: u32::from_le_bytes(*millis),
                },
                _ => Scalar::Bytes(bytes),
            },
            _ => Scalar::Bytes(bytes),
        }
    }
}

pub(crate) fn unknown_symbol() -> Reason {
    Reason::Unresolvable("the reader's enum does not have this symbol, nor a default".into())
}
