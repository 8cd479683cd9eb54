use std::collections::BTreeMap;

use serde_json::Value;
use thiserror::Error;

use super::limits::Limits;

/// A parsed Avro schema: an arena of types in which named references are already followed, so
/// recursion is an id that points back.
///
/// The parser is deliberately lenient where the specification tells *readers* to be (unknown
/// attributes, unknown or invalid logical types, misplaced `logicalType`) and where writers are
/// known to be sloppy (names with dashes, defaults of the wrong type): such files hold data that
/// every other implementation reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    types: Vec<Type>,
    root: TypeId,
}

/// Index of a type in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(u32);

impl TypeId {
    pub(crate) fn new(index: usize) -> Self {
        Self(index as u32)
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Type {
    pub shape: Shape,
    pub logical: Option<Logical>,
}

/// How a value is laid out, before its logical type gives it a meaning.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Array(TypeId),
    Map(TypeId),
    Union(Vec<TypeId>),
    Record(Record),
    Enum(Enum),
    Fixed(Fixed),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub name: Name,
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub aliases: Vec<String>,
    pub schema: TypeId,
    /// The default as it stands in the schema; `None` if there is none. It is only checked when
    /// schema resolution needs it.
    pub default: Option<Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Enum {
    pub name: Name,
    pub symbols: Vec<String>,
    pub default: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Fixed {
    pub name: Name,
    pub size: usize,
}

/// A full name (`namespace.name`) and the full names it is also known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub full: String,
    pub aliases: Vec<String>,
}

impl Name {
    /// The name without its namespace: what schema resolution compares.
    pub fn short(&self) -> &str {
        short(&self.full)
    }
}

/// A logical type whose conditions hold for the type it annotates. Unknown ones, and known ones
/// on the wrong base type, are dropped while parsing, as the specification demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logical {
    Decimal {
        precision: u32,
        scale: u32,
    },
    /// Bytes that hold an unscaled value and their own scale.
    BigDecimal,
    Uuid,
    Date,
    TimeMillis,
    TimeMicros,
    /// `local` means without a time zone.
    Timestamp {
        unit: Unit,
        local: bool,
    },
    Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Millis,
    Micros,
    Nanos,
}

#[derive(Debug, Error, PartialEq)]
pub enum SchemaError {
    #[error("schema is not JSON: {0}")]
    Json(String),
    #[error("schema of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("schema nests deeper than the limit of {limit} brackets")]
    TooDeep { limit: usize },
    #[error("union at {at} has {branches} branches, over the limit of {limit}")]
    UnionTooWide { at: String, branches: usize, limit: usize },
    #[error("type at {at} refers to {name}, which is not defined before it")]
    UnknownName { at: String, name: String },
    #[error("name {name} is defined twice, the second time at {at}")]
    DefinedTwice { at: String, name: String },
    #[error("record at {at} has two fields named {field}")]
    DuplicateField { at: String, field: String },
    #[error("{at}: {problem}")]
    Invalid { at: String, problem: &'static str },
}

impl Schema {
    /// Parses schema JSON. Deep or large text is refused before it is parsed.
    pub fn parse(json: &str, limits: &Limits) -> Result<Self, SchemaError> {
        if json.len() > limits.schema_bytes {
            return Err(SchemaError::TooLarge { bytes: json.len(), limit: limits.schema_bytes });
        }
        check_depth(json, limits.schema_depth)?;
        // The depth is checked above; serde_json's own limit of 128 would refuse some 32 nested
        // records, which is not absurd.
        let mut deserializer = serde_json::Deserializer::from_str(json);
        deserializer.disable_recursion_limit();
        let value: Value = serde::Deserialize::deserialize(&mut deserializer)
            .and_then(|value| deserializer.end().map(|()| value))
            .map_err(|error| SchemaError::Json(error.to_string()))?;
        let mut parser = Parser { types: Vec::new(), names: BTreeMap::new(), limits };
        let root = parser.any(&value, "", "schema")?;
        Ok(Self { types: parser.types, root })
    }

    pub fn root(&self) -> TypeId {
        self.root
    }

    /// The schema of one of its types.
    #[must_use]
    pub fn rooted(&self, root: TypeId) -> Self {
        Self { types: self.types.clone(), root }
    }

    /// How many types there are; their ids count from 0.
    pub(crate) fn len(&self) -> usize {
        self.types.len()
    }

    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The type `id` stands for as a column: the one branch that is not null, and whether null is
    /// the other. `None` for unions that are neither `[null, T]`, `[T, null]` nor `[T]`.
    pub fn optional(&self, id: TypeId) -> Option<(TypeId, bool)> {
        let Shape::Union(branches) = &self.get(id).shape else { return Some((id, false)) };
        let is_null = |id: &TypeId| matches!(self.get(*id).shape, Shape::Null);
        let is_union = |id: &TypeId| matches!(self.get(*id).shape, Shape::Union(_));
        match branches.as_slice() {
            [one] if !is_union(one) => Some((*one, false)),
            [null, one] | [one, null] if is_null(null) && !is_null(one) && !is_union(one) => {
                Some((*one, true))
            }
            _ => None,
        }
    }
}

/// Counts brackets outside strings; JSON that is otherwise malformed is left to the JSON parser.
fn check_depth(json: &str, limit: usize) -> Result<(), SchemaError> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return Err(SchemaError::TooDeep { limit });
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

struct Parser<'l> {
    types: Vec<Type>,
    names: BTreeMap<String, TypeId>,
    limits: &'l Limits,
}

impl Parser<'_> {
    fn any(&mut self, json: &Value, namespace: &str, at: &str) -> Result<TypeId, SchemaError> {
        match json {
            Value::String(name) => self.reference(name, namespace, at),
            Value::Array(branches) => self.union(branches, namespace, at),
            Value::Object(_) => match json.get("type") {
                Some(Value::String(name)) => self.complex(name, json, namespace, at),
                // {"type": {"type": …}}: some generators wrap a type once too often.
                Some(inner) => self.any(inner, namespace, at),
                None => Err(invalid(at, "a type object without \"type\"")),
            },
            _ => Err(invalid(at, "a schema is a JSON string, array or object")),
        }
    }

    fn push(&mut self, shape: Shape, logical: Option<Logical>) -> TypeId {
        let id = TypeId(self.types.len() as u32);
        self.types.push(Type { shape, logical });
        id
    }

    fn reference(&mut self, name: &str, space: &str, at: &str) -> Result<TypeId, SchemaError> {
        if let Some(shape) = primitive(name) {
            return Ok(self.push(shape, None));
        }
        let full = qualify(name, space);
        // A bare name may also mean the null namespace: Java writes such references.
        let found = self.names.get(&full).or_else(|| self.names.get(name));
        found
            .copied()
            .ok_or_else(|| SchemaError::UnknownName { at: at.to_owned(), name: full.clone() })
    }

    fn union(&mut self, branches: &[Value], space: &str, at: &str) -> Result<TypeId, SchemaError> {
        let limit = self.limits.union_branches;
        if branches.len() > limit {
            let (at, branches) = (at.to_owned(), branches.len());
            return Err(SchemaError::UnionTooWide { at, branches, limit });
        }
        if branches.iter().any(Value::is_array) {
            return Err(invalid(at, "a union directly inside a union"));
        }
        let branches =
            branches.iter().map(|branch| self.any(branch, space, at)).collect::<Result<_, _>>()?;
        Ok(self.push(Shape::Union(branches), None))
    }

    fn complex(
        &mut self,
        kind: &str,
        json: &Value,
        space: &str,
        at: &str,
    ) -> Result<TypeId, SchemaError> {
        match kind {
            "array" => {
                let items = json.get("items").ok_or_else(|| invalid(at, "array without items"))?;
                let items = self.any(items, space, &format!("{at}[]"))?;
                Ok(self.push(Shape::Array(items), None))
            }
            "map" => {
                let values = json.get("values").ok_or_else(|| invalid(at, "map without values"))?;
                let values = self.any(values, space, &format!("{at}{{}}"))?;
                Ok(self.push(Shape::Map(values), None))
            }
            "record" | "error" => self.record(json, space, at),
            "enum" => self.enumeration(json, space, at),
            "fixed" => self.fixed(json, space, at),
            primitive_or_name => match primitive(primitive_or_name) {
                Some(shape) => {
                    let logical = logical(json, &shape);
                    Ok(self.push(shape, logical))
                }
                None => self.reference(primitive_or_name, space, at),
            },
        }
    }

    /// Reserves the named type's place before its parts are parsed, so they can refer to it.
    fn define(
        &mut self,
        json: &Value,
        space: &str,
        at: &str,
    ) -> Result<(TypeId, Name), SchemaError> {
        let name = json.get("name").and_then(Value::as_str).unwrap_or_default();
        if short(name).is_empty() {
            return Err(invalid(at, "a named type without a name"));
        }
        if name.contains('\0') {
            return Err(invalid(at, "a name with a NUL character"));
        }
        let space = json.get("namespace").and_then(Value::as_str).unwrap_or(space);
        let full = qualify(name, space);
        let own_space = namespace(&full);
        let aliases = strings(json.get("aliases")).map(|alias| qualify(alias, own_space)).collect();
        let id = self.push(Shape::Null, None);
        if primitive(&full).is_some() {
            return Err(invalid(at, "a named type with the name of a primitive type"));
        }
        if self.names.insert(full.clone(), id).is_some() {
            return Err(SchemaError::DefinedTwice { at: at.to_owned(), name: full });
        }
        Ok((id, Name { full, aliases }))
    }

    fn record(&mut self, json: &Value, space: &str, at: &str) -> Result<TypeId, SchemaError> {
        let (id, name) = self.define(json, space, at)?;
        let space = namespace(&name.full).to_owned();
        let Some(Value::Array(list)) = json.get("fields") else {
            return Err(invalid(at, "a record without a list of fields"));
        };
        let mut fields = Vec::with_capacity(list.len());
        let mut seen = std::collections::BTreeSet::new();
        for field in list {
            let Some(name) = field.get("name").and_then(Value::as_str).filter(|n| !n.is_empty())
            else {
                return Err(invalid(at, "a field without a name"));
            };
            let at = format!("{at}.{name}");
            if name.contains('\0') {
                return Err(invalid(&at, "a name with a NUL character"));
            }
            if !seen.insert(name) {
                return Err(SchemaError::DuplicateField { at, field: name.to_owned() });
            }
            let schema = field.get("type").ok_or_else(|| invalid(&at, "a field without a type"))?;
            let schema = self.any(schema, &space, &at)?;
            let aliases = strings(field.get("aliases")).map(str::to_owned).collect();
            let default = field.get("default").cloned();
            fields.push(Field { name: name.to_owned(), aliases, schema, default });
        }
        self.types[id.0 as usize].shape = Shape::Record(Record { name, fields });
        Ok(id)
    }

    fn enumeration(&mut self, json: &Value, space: &str, at: &str) -> Result<TypeId, SchemaError> {
        let (id, name) = self.define(json, space, at)?;
        let Some(Value::Array(list)) = json.get("symbols") else {
            return Err(invalid(at, "an enum without a list of symbols"));
        };
        let symbols = list
            .iter()
            .map(|symbol| symbol.as_str().filter(|s| !s.contains('\0')).map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| invalid(at, "an enum symbol that is not a string, or holds a NUL"))?;
        let default = json.get("default").and_then(Value::as_str).map(str::to_owned);
        self.types[id.0 as usize].shape = Shape::Enum(Enum { name, symbols, default });
        Ok(id)
    }

    fn fixed(&mut self, json: &Value, space: &str, at: &str) -> Result<TypeId, SchemaError> {
        let (id, name) = self.define(json, space, at)?;
        let size = json
            .get("size")
            .and_then(Value::as_u64)
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| invalid(at, "a fixed without a size"))?;
        let shape = Shape::Fixed(Fixed { name, size });
        let logical = logical(json, &shape);
        self.types[id.0 as usize] = Type { shape, logical };
        Ok(id)
    }
}

fn primitive(name: &str) -> Option<Shape> {
    Some(match name {
        "null" => Shape::Null,
        "boolean" => Shape::Boolean,
        "int" => Shape::Int,
        "long" => Shape::Long,
        "float" => Shape::Float,
        "double" => Shape::Double,
        "bytes" => Shape::Bytes,
        "string" => Shape::String,
        _ => return None,
    })
}

fn logical(json: &Value, shape: &Shape) -> Option<Logical> {
    let timestamp = |unit, local| Some(Logical::Timestamp { unit, local });
    match (json.get("logicalType")?.as_str()?, shape) {
        ("decimal", Shape::Bytes | Shape::Fixed(_)) => decimal(json, shape),
        ("big-decimal", Shape::Bytes) => Some(Logical::BigDecimal),
        ("uuid", Shape::String) => Some(Logical::Uuid),
        ("uuid", Shape::Fixed(fixed)) if fixed.size == 16 => Some(Logical::Uuid),
        ("date", Shape::Int) => Some(Logical::Date),
        ("time-millis", Shape::Int) => Some(Logical::TimeMillis),
        ("time-micros", Shape::Long) => Some(Logical::TimeMicros),
        ("timestamp-millis", Shape::Long) => timestamp(Unit::Millis, false),
        ("timestamp-micros", Shape::Long) => timestamp(Unit::Micros, false),
        ("timestamp-nanos", Shape::Long) => timestamp(Unit::Nanos, false),
        ("local-timestamp-millis", Shape::Long) => timestamp(Unit::Millis, true),
        ("local-timestamp-micros", Shape::Long) => timestamp(Unit::Micros, true),
        ("local-timestamp-nanos", Shape::Long) => timestamp(Unit::Nanos, true),
        ("duration", Shape::Fixed(fixed)) if fixed.size == 12 => Some(Logical::Duration),
        _ => None,
    }
}

/// A decimal whose scale exceeds its precision, or whose precision does not fit its fixed size,
/// is invalid, hence just bytes.
fn decimal(json: &Value, shape: &Shape) -> Option<Logical> {
    let number = |key| json.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let precision = number("precision").filter(|precision| *precision > 0)?;
    let scale = match json.get("scale") {
        None => 0,
        Some(_) => number("scale")?,
    };
    if let Shape::Fixed(fixed) = shape {
        // floor(log10(2^(8·n-1) - 1)), the specification's bound.
        let digits = ((8.0 * fixed.size as f64 - 1.0) * std::f64::consts::LOG10_2).floor();
        if fixed.size == 0 || f64::from(precision) > digits {
            return None;
        }
    }
    (scale <= precision).then_some(Logical::Decimal { precision, scale })
}

fn strings(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn qualify(name: &str, namespace: &str) -> String {
    match name.strip_prefix('.') {
        Some(bare) => bare.to_owned(),
        None if name.contains('.') || namespace.is_empty() => name.to_owned(),
        None => format!("{namespace}.{name}"),
    }
}

fn namespace(full: &str) -> &str {
    full.rsplit_once('.').map_or("", |(space, _)| space)
}

fn short(full: &str) -> &str {
    full.rsplit_once('.').map_or(full, |(_, name)| name)
}

fn invalid(at: &str, problem: &'static str) -> SchemaError {
    SchemaError::Invalid { at: at.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Schema, SchemaError> {
        Schema::parse(json, &Limits::default())
    }

    #[test]
    fn recursion_and_namespaces() {
        let schema = parse(
            r#"{"type":"record","name":"a.b.Node","fields":[
                {"name":"next","type":["null","Node"]},
                {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["A","B"]}},
                {"name":"again","type":"a.b.Kind"}]}"#,
        )
        .unwrap();
        let Shape::Record(record) = &schema.get(schema.root()).shape else { panic!() };
        assert_eq!(record.name.short(), "Node");
        assert_eq!(schema.optional(record.fields[0].schema), Some((schema.root(), true)));
        assert_eq!(record.fields[1].schema, record.fields[2].schema);
    }

    #[test]
    fn invalid_logical_types_fall_back_to_their_base() {
        for json in [
            r#"{"type":"bytes","logicalType":"decimal","precision":2,"scale":3}"#,
            r#"{"type":"bytes","logicalType":"decimal"}"#,
            r#"{"type":"fixed","name":"f","size":1,"logicalType":"decimal","precision":3}"#,
            r#"{"type":"long","logicalType":"date"}"#,
            r#"{"type":"fixed","name":"f","size":15,"logicalType":"uuid"}"#,
            r#"{"type":"string","logicalType":"made-up"}"#,
        ] {
            let schema = parse(json).unwrap();
            assert_eq!(schema.get(schema.root()).logical, None, "{json}");
        }
    }

    #[test]
    fn refusals() {
        assert!(matches!(parse("{"), Err(SchemaError::Json(_))));
        assert!(matches!(parse(r#""Missing""#), Err(SchemaError::UnknownName { .. })));
        assert!(matches!(parse(&"[".repeat(1000)), Err(SchemaError::TooDeep { .. })));
        let twice =
            r#"["null",{"type":"fixed","name":"f","size":1},{"type":"fixed","name":"f","size":2}]"#;
        assert!(matches!(parse(twice), Err(SchemaError::DefinedTwice { .. })));
    }
}
