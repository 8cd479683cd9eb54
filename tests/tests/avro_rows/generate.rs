//! Random schemas, values of them, and changed copies of them to read the values with.

use apache_avro::types::Value;
use apache_avro::{Days, Decimal, Duration, Millis, Months, Uuid};
use serde_json::{Value as Json, json};

/// SplitMix64: all that is wanted of randomness here is that a seed repeats it.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// A type of a generated schema.
#[derive(Clone, Debug)]
pub(crate) enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Enum(String, Vec<String>),
    Fixed(String, usize),
    Decimal {
        precision: u32,
        scale: u32,
    },
    DecimalFixed {
        name: String,
        size: usize,
        precision: u32,
        scale: u32,
    },
    Uuid,
    UuidFixed(String),
    Date,
    TimeMillis,
    TimeMicros,
    Timestamp(&'static str),
    Duration(String),
    Unknown,
    Array(Box<Type>),
    Map(Box<Type>),
    Union(Vec<Type>),
    Record(String, Vec<Field>),
    /// A record that encloses this place.
    Recursive(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) ty: Type,
    pub(crate) default: Option<Json>,
}

pub(crate) struct Generator {
    pub(crate) random: Random,
    /// Leaves out what apache-avro 0.22 resolves wrongly: it reads recursive references in the
    /// writer's data by the reader's definition, and takes maps for records in unions.
    pub(crate) resolvable: bool,
    names: usize,
    enclosing: Vec<String>,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random(seed), resolvable: false, names: 0, enclosing: Vec::new() }
    }

    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    pub(crate) fn record(&mut self, depth: usize) -> Type {
        let name = self.name("R");
        self.enclosing.push(name.clone());
        let count = if depth == 0 { 1 + self.random.below(8) } else { self.random.below(4) };
        let fields = (0..count)
            .map(|index| {
                let ty = self.ty(depth + 1);
                Field { name: format!("f{index}"), alias: None, ty, default: None }
            })
            .collect();
        self.enclosing.pop();
        Type::Record(name, fields)
    }

    fn ty(&mut self, depth: usize) -> Type {
        let plain = self.plain(depth);
        if matches!(plain, Type::Null | Type::Union(_)) || !self.random.chance(4) {
            return plain;
        }
        let mut branches = vec![Type::Null, plain];
        if self.random.chance(2) {
            branches.reverse();
        }
        Type::Union(branches)
    }

    fn plain(&mut self, depth: usize) -> Type {
        let kinds = if depth > 3 { 22 } else { 27 };
        match self.random.below(kinds) {
            0 => Type::Boolean,
            1 | 2 => Type::Int,
            3 | 4 => Type::Long,
            5 => Type::Float,
            6 => Type::Double,
            7 => Type::Bytes,
            8 | 9 => Type::String,
            10 => {
                let count = 1 + self.random.below(5);
                let name = self.name("E");
                Type::Enum(name, (0..count).map(|n| format!("S{n}")).collect())
            }
            11 => Type::Fixed(self.name("F"), self.random.below(20)),
            12 => {
                let precision = 1 + self.random.below(80) as u32;
                Type::Decimal { precision, scale: self.random.below(precision as usize + 1) as u32 }
            }
            13 => {
                let size = 1 + self.random.below(40);
                let most = ((8 * size - 1) as f64 * std::f64::consts::LOG10_2).floor() as usize;
                let precision = 1 + self.random.below(most) as u32;
                let scale = self.random.below(precision as usize + 1) as u32;
                Type::DecimalFixed { name: self.name("D"), size, precision, scale }
            }
            14 => Type::Uuid,
            15 => Type::UuidFixed(self.name("U")),
            16 => Type::Date,
            17 => Type::TimeMillis,
            18 => Type::TimeMicros,
            19 => {
                const KINDS: [&str; 6] = [
                    "timestamp-millis",
                    "timestamp-micros",
                    "timestamp-nanos",
                    "local-timestamp-millis",
                    "local-timestamp-micros",
                    "local-timestamp-nanos",
                ];
                Type::Timestamp(KINDS[self.random.below(6)])
            }
            20 => Type::Duration(self.name("I")),
            21 => Type::Unknown,
            22 => Type::Array(Box::new(self.ty(depth + 1))),
            23 => Type::Map(Box::new(self.ty(depth + 1))),
            24 => self.record(depth + 1),
            25 => self.union(depth + 1),
            _ => match self.enclosing.last() {
                Some(name) if !self.resolvable => {
                    Type::Union(vec![Type::Null, Type::Recursive(name.clone())])
                }
                _ => Type::Null,
            },
        }
    }

    /// A union of several branches, of which no two share an unnamed type.
    fn union(&mut self, depth: usize) -> Type {
        let mut pool = vec![
            Type::Null,
            Type::Boolean,
            Type::Long,
            Type::Double,
            Type::String,
            Type::Array(Box::new(Type::Int)),
            Type::Map(Box::new(Type::String)),
            self.record(depth),
        ];
        if self.resolvable {
            pool.pop();
        }
        let count = self.random.below(4) + 2;
        let mut branches = Vec::new();
        for _ in 0..count {
            let index = self.random.below(pool.len());
            branches.push(pool.swap_remove(index));
        }
        Type::Union(branches)
    }

    /// A value the databases can hold.
    pub(crate) fn value(&mut self, ty: &Type, root: &Type, depth: usize) -> Value {
        match ty {
            Type::Null => Value::Null,
            Type::Boolean => Value::Boolean(self.random.chance(2)),
            Type::Int => Value::Int(self.long() as i32),
            Type::Long | Type::Unknown => Value::Long(self.long()),
            Type::Float => Value::Float(self.double() as f32),
            Type::Double => Value::Double(self.double()),
            Type::Bytes => Value::Bytes(self.bytes()),
            Type::String => Value::String(self.text()),
            Type::Enum(_, symbols) => {
                let index = self.random.below(symbols.len());
                Value::Enum(index as u32, symbols[index].clone())
            }
            Type::Fixed(_, size) => Value::Fixed(*size, self.exactly(*size)),
            Type::Decimal { precision, .. } => {
                let (digits, negative) = self.digits(*precision);
                Value::Decimal(Decimal::from(signed(&digits, negative, None)))
            }
            Type::DecimalFixed { size, precision, .. } => {
                let (digits, negative) = self.digits(*precision);
                Value::Decimal(Decimal::from(signed(&digits, negative, Some(*size))))
            }
            Type::Uuid | Type::UuidFixed(_) => {
                let bytes = self.exactly(16).try_into().unwrap();
                Value::Uuid(Uuid::from_bytes(bytes))
            }
            // Years 0001 to 9999, which all that read dates agree on.
            Type::Date => Value::Date(self.between(-719_162, 2_932_896) as i32),
            Type::TimeMillis => Value::TimeMillis(self.between(0, 86_399_999) as i32),
            Type::TimeMicros => Value::TimeMicros(self.between(0, 86_399_999_999)),
            Type::Timestamp(kind) => {
                let (from, to) = (-62_135_596_800, 253_402_300_799);
                match *kind {
                    "timestamp-millis" => {
                        Value::TimestampMillis(self.between(from * 1000, to * 1000))
                    }
                    "local-timestamp-millis" => {
                        Value::LocalTimestampMillis(self.between(from * 1000, to * 1000))
                    }
                    "timestamp-micros" => {
                        Value::TimestampMicros(self.between(from * 1_000_000, to * 1_000_000))
                    }
                    "local-timestamp-micros" => {
                        Value::LocalTimestampMicros(self.between(from * 1_000_000, to * 1_000_000))
                    }
                    "timestamp-nanos" => Value::TimestampNanos(self.long()),
                    _ => Value::LocalTimestampNanos(self.long()),
                }
            }
            Type::Duration(_) => Value::Duration(Duration::new(
                Months::new(self.between(0, i64::from(i32::MAX)) as u32),
                Days::new(self.between(0, i64::from(i32::MAX)) as u32),
                Millis::new(self.random.next() as u32),
            )),
            Type::Array(items) => {
                let count = if depth > 6 { 0 } else { self.random.below(4) };
                Value::Array((0..count).map(|_| self.value(items, root, depth + 1)).collect())
            }
            Type::Map(values) => {
                let count = if depth > 6 { 0 } else { self.random.below(4) };
                Value::Map(
                    (0..count)
                        .map(|_| (self.text(), self.value(values, root, depth + 1)))
                        .collect(),
                )
            }
            Type::Union(branches) => {
                let null = branches.iter().position(|branch| matches!(branch, Type::Null));
                let index = match null {
                    Some(null) if depth > 6 => null,
                    _ => self.random.below(branches.len()),
                };
                let value = self.value(&branches[index], root, depth + 1);
                Value::Union(index as u32, Box::new(value))
            }
            Type::Record(_, fields) => Value::Record(
                fields
                    .iter()
                    .map(|field| (field.name.clone(), self.value(&field.ty, root, depth + 1)))
                    .collect(),
            ),
            Type::Recursive(name) => {
                let record = find(root, name).unwrap().clone();
                self.value(&record, root, depth + 2)
            }
        }
    }

    /// Numbers of every magnitude, the extremes included.
    fn long(&mut self) -> i64 {
        match self.random.below(8) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 => 0,
            3 => i64::from(i32::MIN),
            4 => i64::from(i32::MAX),
            _ => (self.random.next() as i64) >> self.random.below(64),
        }
    }

    fn double(&mut self) -> f64 {
        const ODD: [f64; 7] =
            [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, f64::MAX, 1.5];
        match self.random.below(3) {
            0 => ODD[self.random.below(7)],
            1 => self.long() as f64 / 1000.0,
            _ => Some(f64::from_bits(self.random.next())).filter(|x| !x.is_nan()).unwrap_or(0.25),
        }
    }

    fn between(&mut self, from: i64, to: i64) -> i64 {
        match self.random.below(10) {
            0 => from,
            1 => to,
            _ => from + (self.random.next() % (to - from) as u64) as i64,
        }
    }

    fn exactly(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.random.next() as u8).collect()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let count = self.random.below(20);
        self.exactly(count)
    }

    fn text(&mut self) -> String {
        const CHARS: [char; 12] =
            ['a', 'Z', '0', ' ', '"', '\\', '\n', '\u{1}', '\u{7f}', 'ß', '水', '🌊'];
        let count = self.random.below(24);
        let plain = self.random.chance(2);
        (0..count).map(|_| CHARS[self.random.below(if plain { 4 } else { 12 })]).collect()
    }

    fn digits(&mut self, precision: u32) -> (String, bool) {
        let count = 1 + self.random.below(precision as usize);
        let digit = |random: &mut Random| match random.below(3) {
            0 => '0',
            1 => '9',
            _ => char::from(b'0' + random.below(10) as u8),
        };
        let digits = (0..count).map(|_| digit(&mut self.random)).collect();
        (digits, self.random.chance(2))
    }

    /// A schema that can read what `ty` wrote: fields dropped, renamed, added, reordered, types
    /// promoted.
    pub(crate) fn evolve(&mut self, ty: &Type) -> Type {
        match ty {
            Type::Int => [Type::Int, Type::Long, Type::Double][self.random.below(3)].clone(),
            Type::Long => [Type::Long, Type::Double][self.random.below(2)].clone(),
            Type::Float => [Type::Float, Type::Double][self.random.below(2)].clone(),
            Type::String => [Type::String, Type::Bytes][self.random.below(2)].clone(),
            Type::Array(items) => Type::Array(Box::new(self.evolve(items))),
            Type::Map(values) => Type::Map(Box::new(self.evolve(values))),
            Type::Union(branches) => match branches.as_slice() {
                [Type::Null, other] | [other, Type::Null]
                    if !matches!(other, Type::Recursive(_)) =>
                {
                    Type::Union(vec![self.evolve(other), Type::Null])
                }
                _ => ty.clone(),
            },
            Type::Enum(name, symbols) if self.random.chance(2) => {
                let mut symbols = symbols.clone();
                symbols.reverse();
                symbols.push("NEW".to_owned());
                Type::Enum(name.clone(), symbols)
            }
            Type::Record(name, fields) => {
                let mut evolved: Vec<Field> = Vec::new();
                for field in fields {
                    if self.random.chance(5) && fields.len() > 1 {
                        continue;
                    }
                    let ty = self.evolve(&field.ty);
                    evolved.push(Field { ty, ..field.clone() });
                }
                if self.random.chance(2) {
                    evolved.reverse();
                }
                let (ty, default) = match self.random.below(5) {
                    0 => (Type::Long, json!(-5)),
                    1 => (Type::String, json!("höh\"er")),
                    2 => (Type::Union(vec![Type::Null, Type::String]), Json::Null),
                    3 => (Type::Array(Box::new(Type::Double)), json!([1.5, -2.0])),
                    // ASCII only: apache-avro takes the default's UTF-8, not its code points.
                    _ => (Type::Bytes, json!("\u{1}a")),
                };
                let name_added = format!("added{}", self.random.below(1000));
                evolved.push(Field { name: name_added, alias: None, ty, default: Some(default) });
                Type::Record(name.clone(), evolved)
            }
            other => other.clone(),
        }
    }
}

/// Two's complement, big-endian, shortest or sign-extended to a size.
fn signed(digits: &str, negative: bool, size: Option<usize>) -> Vec<u8> {
    let mut number: num_bigint::BigInt = digits.parse().unwrap();
    if negative {
        number = -number;
    }
    let bytes = number.to_signed_bytes_be();
    let fill = if number.sign() == num_bigint::Sign::Minus { 0xff } else { 0 };
    let missing = size.map_or(0, |size| size - bytes.len());
    [vec![fill; missing], bytes].concat()
}

pub(crate) fn find<'t>(ty: &'t Type, name: &str) -> Option<&'t Type> {
    match ty {
        Type::Record(own, _) if own == name => Some(ty),
        Type::Record(_, fields) => fields.iter().find_map(|field| find(&field.ty, name)),
        Type::Array(inner) | Type::Map(inner) => find(inner, name),
        Type::Union(branches) => branches.iter().find_map(|branch| find(branch, name)),
        _ => None,
    }
}

impl Type {
    pub(crate) fn json(&self) -> Json {
        let logical = |base: &str, kind: &str| json!({"type": base, "logicalType": kind});
        let fixed = |name: &str, size: usize| json!({"type": "fixed", "name": name, "size": size});
        match self {
            Self::Null => json!("null"),
            Self::Boolean => json!("boolean"),
            Self::Int => json!("int"),
            Self::Long => json!("long"),
            Self::Float => json!("float"),
            Self::Double => json!("double"),
            Self::Bytes => json!("bytes"),
            Self::String => json!("string"),
            Self::Enum(name, symbols) => json!({"type": "enum", "name": name, "symbols": symbols}),
            Self::Fixed(name, size) => fixed(name, *size),
            Self::Decimal { precision, scale } => {
                let mut json = logical("bytes", "decimal");
                json["precision"] = json!(precision);
                json["scale"] = json!(scale);
                json
            }
            Self::DecimalFixed { name, size, precision, scale } => {
                let mut json = fixed(name, *size);
                json["logicalType"] = json!("decimal");
                json["precision"] = json!(precision);
                json["scale"] = json!(scale);
                json
            }
            Self::Uuid => logical("string", "uuid"),
            Self::UuidFixed(name) => {
                let mut json = fixed(name, 16);
                json["logicalType"] = json!("uuid");
                json
            }
            Self::Date => logical("int", "date"),
            Self::TimeMillis => logical("int", "time-millis"),
            Self::TimeMicros => logical("long", "time-micros"),
            Self::Timestamp(kind) => logical("long", kind),
            Self::Duration(name) => {
                let mut json = fixed(name, 12);
                json["logicalType"] = json!("duration");
                json
            }
            Self::Unknown => logical("long", "fathoms"),
            Self::Array(items) => json!({"type": "array", "items": items.json()}),
            Self::Map(values) => json!({"type": "map", "values": values.json()}),
            Self::Union(branches) => Json::Array(branches.iter().map(Self::json).collect()),
            Self::Recursive(name) => json!(name),
            Self::Record(name, fields) => {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|field| {
                        let mut json = json!({"name": field.name, "type": field.ty.json()});
                        if let Some(default) = &field.default {
                            json["default"] = default.clone();
                        }
                        if let Some(alias) = &field.alias {
                            json["aliases"] = json!([alias]);
                        }
                        json
                    })
                    .collect();
                json!({"type": "record", "name": name, "fields": fields})
            }
        }
    }
}
