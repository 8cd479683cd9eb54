//! Schema resolution: reading a writer's values as a reader's schema has them, as the Avro 1.12
//! specification says in its section of that name.
//!
//! Where it leaves room: of a reader's union the first branch that resolves is taken, but those of
//! the very same type or full name go before others, as in Java, lest `[double, long]` read a
//! `long` it wrote itself as a `double`; two timestamps (or times of day) of different
//! units match, and keep the instant the writer meant rather than its number.

use std::collections::BTreeMap;

use thiserror::Error;

use super::default::encode_default;
use super::limits::Limits;
use super::node::{self, Default, Field, Kind, Leaf, Node, NodeId, Nodes, Record};
use super::schema::{Enum, Logical, Name, Schema, Shape, Type, TypeId};

#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the reader's schema cannot read the writer's at {at}: {problem}")]
pub struct ResolveError {
    pub at: String,
    pub problem: String,
}

/// Compiles the pair; the root does not match if this fails. Branches of the writer's unions that
/// do not match become errors of the rows that use them.
pub(crate) fn resolve(
    writer: &Schema,
    reader: &Schema,
    limits: &Limits,
) -> Result<(Nodes, NodeId), ResolveError> {
    // The arena starts with both schemas read as they are: the writer's, to skip values by, and
    // the reader's, to read defaults by.
    let (mut nodes, _) = Nodes::lower(writer);
    let reader_offset = nodes.list.len() as u32;
    nodes.append(Nodes::lower(reader).0);
    let mut resolver =
        Resolver { writer, reader, limits, nodes, reader_offset, known: BTreeMap::new() };
    let root = resolver.pair(writer.root(), reader.root(), "the root")?;
    Ok((resolver.nodes, root))
}

struct Resolver<'s> {
    writer: &'s Schema,
    reader: &'s Schema,
    limits: &'s Limits,
    nodes: Nodes,
    reader_offset: u32,
    /// Pairs of records, done, failed or (the recursive case) under way.
    known: BTreeMap<(TypeId, TypeId), Result<NodeId, ResolveError>>,
}

type Resolved = Result<NodeId, ResolveError>;

impl Resolver<'_> {
    fn pair(&mut self, writer: TypeId, reader: TypeId, at: &str) -> Resolved {
        let (from, to) = (self.writer.get(writer).clone(), self.reader.get(reader).clone());
        match (&from.shape, &to.shape) {
            (Shape::Union(branches), _) => {
                let branches = branches
                    .iter()
                    .map(|branch| match self.pair(*branch, reader, at) {
                        Ok(node) => node,
                        Err(error) => {
                            let why = error.to_string().into();
                            self.nodes.push(Node::Mismatch { skip: NodeId::of(*branch), why })
                        }
                    })
                    .collect();
                Ok(self.nodes.push(Node::Union(branches)))
            }
            (_, Shape::Union(branches)) => self.branch(writer, &from, branches, at),
            (Shape::Array(from), Shape::Array(to)) => {
                let items = self.pair(*from, *to, &format!("{at}[]"))?;
                Ok(self.nodes.push(Node::Array(items)))
            }
            (Shape::Map(from), Shape::Map(to)) => {
                let values = self.pair(*from, *to, &format!("{at}{{}}"))?;
                Ok(self.nodes.push(Node::Map(values)))
            }
            (Shape::Record(_), Shape::Record(_)) => self.record(writer, reader, at),
            _ => {
                let kind = leaf(&from, &to).map_err(|problem| error(at, problem))?;
                Ok(self.nodes.push(Node::Leaf(Leaf { wire: node::wire(&from), kind })))
            }
        }
    }

    fn branch(&mut self, writer: TypeId, from: &Type, to: &[TypeId], at: &str) -> Resolved {
        let same = |id: &&TypeId| {
            let shape = &self.reader.get(**id).shape;
            describe(shape) == describe(&from.shape) && full_name(shape) == full_name(&from.shape)
        };
        let first: Vec<TypeId> = to.iter().filter(same).copied().collect();
        let mut last = None;
        for branch in first.into_iter().chain(to.iter().copied()) {
            match self.pair(writer, branch, at) {
                Ok(node) => return Ok(node),
                Err(error) => last = Some(error),
            }
        }
        match (last, to) {
            (Some(only), [_]) => Err(only),
            _ => Err(error(at, "no branch of the reader's union matches".to_owned())),
        }
    }

    fn record(&mut self, writer: TypeId, reader: TypeId, at: &str) -> Resolved {
        if let Some(known) = self.known.get(&(writer, reader)) {
            return known.clone();
        }
        // Reserved, so that the record can refer to itself.
        let reserved = self.nodes.push(Node::Mismatch { skip: NodeId::of(writer), why: "".into() });
        self.known.insert((writer, reader), Ok(reserved));
        let result = self.fields(writer, reader, at);
        match result {
            Ok(record) => {
                self.nodes.set(reserved, Node::Record(record));
                Ok(reserved)
            }
            Err(error) => {
                let why = error.to_string().into();
                self.nodes.set(reserved, Node::Mismatch { skip: NodeId::of(writer), why });
                self.known.insert((writer, reader), Err(error.clone()));
                Err(error)
            }
        }
    }

    fn fields(&mut self, writer: TypeId, reader: TypeId, at: &str) -> Result<Record, ResolveError> {
        let (Shape::Record(from), Shape::Record(to)) =
            (self.writer.get(writer).shape.clone(), self.reader.get(reader).shape.clone())
        else {
            return Err(error(at, "not a record".to_owned()));
        };
        names_match(&from.name, &to.name).map_err(|problem| error(at, problem))?;
        // Which of the reader's fields each of the writer's fills: by name, or else by alias.
        let mut fills = vec![None; from.fields.len()];
        let mut defaults = Vec::new();
        for (index, field) in to.fields.iter().enumerate() {
            let named = from.fields.iter().position(|other| other.name == field.name);
            let place = named.or_else(|| {
                from.fields.iter().position(|other| field.aliases.contains(&other.name))
            });
            match (place, &field.default) {
                (Some(place), _) if fills[place].is_none() => fills[place] = Some(index),
                (_, Some(default)) => {
                    let bytes = encode_default(self.reader, field.schema, default, self.limits)
                        .map_err(|problem| error(&format!("{at}.{}", field.name), problem))?;
                    defaults.push(Default {
                        name: field.name.clone(),
                        key: node::json_key(&field.name),
                        node: NodeId(self.reader_offset + NodeId::of(field.schema).0),
                        bytes: bytes.into(),
                    });
                }
                (_, None) => {
                    let problem = "the writer has no such field, and it has no default".to_owned();
                    return Err(error(&format!("{at}.{}", field.name), problem));
                }
            }
        }
        let mut fields = Vec::with_capacity(from.fields.len());
        for (field, fills) in from.fields.iter().zip(fills) {
            fields.push(match fills.map(|index| &to.fields[index]) {
                Some(target) => Field {
                    name: target.name.clone(),
                    key: Some(node::json_key(&target.name)),
                    node: self.pair(
                        field.schema,
                        target.schema,
                        &format!("{at}.{}", target.name),
                    )?,
                },
                None => {
                    Field { name: field.name.clone(), key: None, node: NodeId::of(field.schema) }
                }
            });
        }
        Ok(Record { fields, defaults })
    }
}

/// What the reader makes of a leaf of the writer's.
fn leaf(from: &Type, to: &Type) -> Result<Kind, String> {
    use Shape::*;
    match (&from.shape, &to.shape) {
        (Fixed(from), Fixed(to)) => {
            names_match(&from.name, &to.name)?;
            if from.size != to.size {
                return Err(format!("fixed of {} bytes, not {}", from.size, to.size));
            }
        }
        (Enum(from), Enum(to)) => {
            names_match(&from.name, &to.name)?;
            return Ok(symbols(from, to));
        }
        (Null, Null)
        | (Boolean, Boolean)
        | (Int, Int | Long | Float | Double)
        | (Long, Long | Float | Double)
        | (Float, Float | Double)
        | (Double, Double)
        | (Bytes | String, Bytes | String) => {}
        (from, to) => return Err(format!("{} is not {}", describe(from), describe(to))),
    }
    if let (Some(Logical::Decimal { .. }), Some(Logical::Decimal { .. })) =
        (from.logical, to.logical)
        && from.logical != to.logical
    {
        return Err("decimals of different precision or scale".to_owned());
    }
    Ok(match (node::kind(from), node::kind(to)) {
        (Kind::Timestamp { unit, .. }, Kind::Timestamp { local, .. }) => {
            Kind::Timestamp { unit, local }
        }
        (time @ (Kind::TimeMillis | Kind::TimeMicros), Kind::TimeMillis | Kind::TimeMicros) => time,
        (_, kind) => kind,
    })
}

/// The reader's symbol for each of the writer's; the reader's default for those it lacks.
fn symbols(from: &Enum, to: &Enum) -> Kind {
    let known = |symbol: &String| to.symbols.contains(symbol);
    let default = to.default.as_ref().filter(|symbol| known(symbol));
    let symbol = |symbol: &String| {
        let symbol = if known(symbol) { Some(symbol) } else { default };
        symbol.map(|symbol| symbol.as_str().into())
    };
    Kind::Enum(from.symbols.iter().map(symbol).collect())
}

/// Unqualified names must be equal, or the writer's name be an alias of the reader's.
fn names_match(from: &Name, to: &Name) -> Result<(), String> {
    if from.short() == to.short() || to.aliases.contains(&from.full) {
        return Ok(());
    }
    Err(format!("{} is not {}, nor an alias of it", from.full, to.full))
}

fn full_name(shape: &Shape) -> Option<&str> {
    match shape {
        Shape::Record(record) => Some(&record.name.full),
        Shape::Enum(symbols) => Some(&symbols.name.full),
        Shape::Fixed(fixed) => Some(&fixed.name.full),
        _ => None,
    }
}

fn describe(shape: &Shape) -> &'static str {
    match shape {
        Shape::Null => "null",
        Shape::Boolean => "boolean",
        Shape::Int => "int",
        Shape::Long => "long",
        Shape::Float => "float",
        Shape::Double => "double",
        Shape::Bytes => "bytes",
        Shape::String => "string",
        Shape::Array(_) => "array",
        Shape::Map(_) => "map",
        Shape::Union(_) => "union",
        Shape::Record(_) => "record",
        Shape::Enum(_) => "enum",
        Shape::Fixed(_) => "fixed",
    }
}

fn error(at: &str, problem: String) -> ResolveError {
    ResolveError { at: at.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::super::node::Wire;
    use super::*;

    fn check(writer: &str, reader: &str) -> Result<Node, String> {
        let limits = Limits::default();
        let parse = |json: &str| Schema::parse(json, &limits).unwrap();
        resolve(&parse(writer), &parse(reader), &limits)
            .map(|(nodes, root)| nodes.get(root).clone())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn promotions() {
        for (from, to, matches) in [
            ("int", "long", true),
            ("int", "double", true),
            ("long", "int", false),
            ("long", "float", true),
            ("float", "double", true),
            ("double", "float", false),
            ("string", "bytes", true),
            ("bytes", "string", true),
            ("boolean", "int", false),
            ("null", "string", false),
        ] {
            let result = check(&format!("\"{from}\""), &format!("\"{to}\""));
            assert_eq!(result.is_ok(), matches, "{from} to {to}");
        }
    }

    #[test]
    fn enums_fall_back_to_the_readers_default() {
        let from = r#"{"type":"enum","name":"a.E","symbols":["A","B"]}"#;
        let to = r#"{"type":"enum","name":"b.E","symbols":["X","B"],"default":"X"}"#;
        let Ok(Node::Leaf(Leaf { wire: Wire::Enum, kind: Kind::Enum(symbols) })) = check(from, to)
        else {
            panic!()
        };
        assert_eq!(symbols, [Some("X".into()), Some("B".into())]);
    }

    #[test]
    fn records() {
        let from = r#"{"type":"record","name":"R","fields":[{"name":"gone","type":"int"},{"name":"old","type":"int"}]}"#;
        let to = r#"{"type":"record","name":"R","fields":[
            {"name":"new","aliases":["old"],"type":"long"},
            {"name":"extra","type":["null","R"],"default":null}]}"#;
        let Ok(Node::Record(record)) = check(from, to) else { panic!() };
        assert!(record.fields[0].key.is_none());
        assert_eq!(record.fields[1].name, "new");
        assert_eq!(&*record.defaults[0].bytes, [0]);
        let strict = to.replace(r#","default":null"#, "");
        assert!(check(from, &strict).unwrap_err().contains("extra"));
    }
}
