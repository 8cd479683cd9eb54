use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use super::schema::{Logical, Schema, Shape, TypeId};

/// PostgreSQL cuts longer identifiers off silently (NAMEDATALEN - 1 bytes).
pub const IDENTIFIER_BYTES_MAX: usize = 63;

/// PostgreSQL's bound on a table's columns (MaxHeapAttributeNumber); SQLite's default is 2000.
pub const COLUMNS_MAX: usize = 1600;

/// The lineage column: the ledger id of the object a row came from.
pub const OBJECT_COLUMN: &str = "_object";

/// The column that tells which of two rows of one key is newer, in tables that are written by key:
/// text whose byte order is the order of time.
pub const VERSION_COLUMN: &str = "_version";

/// The column of a file whose schema is not a record.
pub const VALUE_COLUMN: &str = "value";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Postgres,
    Sqlite,
}

/// A column's type in PostgreSQL's terms; SQLite's follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqlType {
    Boolean,
    Smallint,
    Integer,
    Bigint,
    Real,
    Double,
    /// Precision and scale; `None` holds any number.
    Numeric(Option<(u16, u16)>),
    Bytea,
    /// Also SQLite's type of everything kept as text.
    Text,
    /// `varchar(n)`, `n` in characters.
    Varchar(u32),
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Json,
    Jsonb,
    /// A type no Avro value is converted to.
    Other(String),
}

/// PostgreSQL's bound on a declared precision. A wider decimal goes to plain `numeric`.
const NUMERIC_PRECISION_MAX: u32 = 1000;

impl SqlType {
    /// The type of a column for a schema. `None` for `null`, which tells nothing about a type.
    pub fn of(schema: &Schema, id: TypeId) -> Option<Self> {
        let Some((id, _)) = schema.optional(id) else { return Some(Self::Jsonb) };
        let ty = schema.get(id);
        Some(match (&ty.logical, &ty.shape) {
            (Some(Logical::Decimal { precision, scale }), _) => {
                Self::Numeric((*precision <= NUMERIC_PRECISION_MAX).then_some(
                    // Both fit: the scale is at most the precision.
                    (*precision as u16, *scale as u16),
                ))
            }
            (Some(Logical::BigDecimal), _) => Self::Numeric(None),
            (Some(Logical::Uuid), _) => Self::Uuid,
            (Some(Logical::Date), _) => Self::Date,
            (Some(Logical::TimeMillis | Logical::TimeMicros), _) => Self::Time,
            (Some(Logical::Timestamp { local: false, .. }), _) => Self::Timestamptz,
            (Some(Logical::Timestamp { local: true, .. }), _) => Self::Timestamp,
            (Some(Logical::Duration), _) => Self::Interval,
            (None, Shape::Null) => return None,
            (None, Shape::Boolean) => Self::Boolean,
            (None, Shape::Int) => Self::Integer,
            (None, Shape::Long) => Self::Bigint,
            (None, Shape::Float) => Self::Real,
            (None, Shape::Double) => Self::Double,
            (None, Shape::Bytes | Shape::Fixed(_)) => Self::Bytea,
            (None, Shape::String | Shape::Enum(_)) => Self::Text,
            (None, Shape::Array(_) | Shape::Map(_) | Shape::Union(_) | Shape::Record(_)) => {
                Self::Jsonb
            }
        })
    }

    /// The type `format_type(atttypid, atttypmod)` prints, e.g. `numeric(12,2)`.
    pub fn from_postgres(text: &str) -> Self {
        let argument = |name: &str| {
            let inner = text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')?;
            inner.split(',').map(|part| part.trim().parse().ok()).collect::<Option<Vec<u32>>>()
        };
        match text {
            "boolean" => Self::Boolean,
            "smallint" => Self::Smallint,
            "integer" => Self::Integer,
            "bigint" => Self::Bigint,
            "real" => Self::Real,
            "double precision" => Self::Double,
            "numeric" => Self::Numeric(None),
            "bytea" => Self::Bytea,
            "text" | "character varying" | "citext" => Self::Text,
            "uuid" => Self::Uuid,
            "date" => Self::Date,
            "time without time zone" => Self::Time,
            "timestamp without time zone" => Self::Timestamp,
            "timestamp with time zone" => Self::Timestamptz,
            "interval" => Self::Interval,
            "json" => Self::Json,
            "jsonb" => Self::Jsonb,
            _ => {
                let chars = argument("character varying").or_else(|| argument("character"));
                match (argument("numeric").as_deref(), chars.as_deref()) {
                    (Some([precision, scale]), _) if *precision <= 1000 && *scale <= *precision => {
                        Self::Numeric(Some((*precision as u16, *scale as u16)))
                    }
                    (_, Some([chars])) => Self::Varchar(*chars),
                    _ => Self::Other(text.to_owned()),
                }
            }
        }
    }

    /// The type of a declared SQLite column, by SQLite's own affinity rules. Everything Weirgate
    /// keeps as text is [`SqlType::Text`] here.
    pub fn from_sqlite(declared: &str) -> Self {
        let upper = declared.to_ascii_uppercase();
        let has = |part: &str| upper.contains(part);
        if has("INT") || has("BOOL") {
            Self::Bigint
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Self::Text
        } else if has("BLOB") || upper.is_empty() {
            Self::Bytea
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Self::Double
        } else {
            Self::Other(declared.to_owned())
        }
    }

    /// The type's name in DDL.
    pub fn ddl(&self, dialect: Dialect) -> String {
        match dialect {
            Dialect::Postgres => self.to_string(),
            Dialect::Sqlite => self.sqlite().to_owned(),
        }
    }

    /// SQLite's storage: numbers it can hold exactly as such, everything else as ISO 8601 text,
    /// decimal text or JSON text.
    pub(crate) fn sqlite(&self) -> &'static str {
        match self {
            Self::Boolean | Self::Smallint | Self::Integer | Self::Bigint => "integer",
            Self::Real | Self::Double => "real",
            Self::Bytea => "blob",
            Self::Numeric(_)
            | Self::Text
            | Self::Varchar(_)
            | Self::Uuid
            | Self::Date
            | Self::Time
            | Self::Timestamp
            | Self::Timestamptz
            | Self::Interval
            | Self::Json
            | Self::Jsonb
            | Self::Other(_) => "text",
        }
    }
}

/// PostgreSQL's name of the type.
impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boolean => "boolean",
            Self::Smallint => "smallint",
            Self::Integer => "integer",
            Self::Bigint => "bigint",
            Self::Real => "real",
            Self::Double => "double precision",
            Self::Numeric(None) => "numeric",
            Self::Numeric(Some((precision, scale))) => {
                return write!(f, "numeric({precision},{scale})");
            }
            Self::Bytea => "bytea",
            Self::Text => "text",
            Self::Varchar(chars) => return write!(f, "varchar({chars})"),
            Self::Uuid => "uuid",
            Self::Date => "date",
            Self::Time => "time",
            Self::Timestamp => "timestamp",
            Self::Timestamptz => "timestamptz",
            Self::Interval => "interval",
            Self::Json => "json",
            Self::Jsonb => "jsonb",
            Self::Other(name) => name,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub source: Source,
    pub sql_type: SqlType,
    pub nullable: bool,
}

/// Where a column's values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The field of this name in the record.
    Field(String),
    /// The capture of this name in the object's key, the same for all its rows.
    Capture(String),
    /// The ledger id of the object.
    Object,
    /// What decides between two rows of one key; see [`VERSION_COLUMN`].
    Version,
}

/// What leaves the importer in place of a field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Lower-case hex of SHA-256 over the salt and the value as text, both UTF-8, in this order:
    /// in SQL `encode(sha256(convert_to(salt || value, 'UTF8')), 'hex')`. Null stays null.
    Sha256 { salt: String },
    /// Null.
    Null,
    /// The last four characters of the value as text, every other replaced by `*`. Values of
    /// four characters or fewer are replaced whole, since they would not be masked at all.
    Last4,
}

/// Masks by field name.
pub type Masks = BTreeMap<String, Mask>;

/// The table a schema and a feed ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDef {
    pub columns: Vec<Column>,
    /// The columns whose values occur once together; none in tables that are not written by key.
    pub key: Vec<String>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum TableError {
    #[error("column name {0:?} is longer than {IDENTIFIER_BYTES_MAX} bytes")]
    NameTooLong(String),
    #[error("columns {first:?} and {second:?} differ in letter case only")]
    Duplicate { first: String, second: String },
    #[error("masked field {0:?} is not in the schema")]
    UnknownMask(String),
    #[error(
        "the key names {0:?}, which is neither in the schema nor captured from the object's key"
    )]
    UnknownKey(String),
    #[error("the schema and the feed give no column at all")]
    NoColumns,
    #[error("{0} columns are more than a table may have ({COLUMNS_MAX})")]
    TooManyColumns(usize),
}

impl TableDef {
    /// The columns for `schema` (the reader's, if the feed names one), then one per capture
    /// (name and a value, whose look decides between `date` and `text`), then, if `lineage`, the
    /// object's ledger id.
    pub fn new(
        schema: &Schema,
        captures: &[(String, String)],
        lineage: bool,
        masks: &Masks,
    ) -> Result<Self, TableError> {
        let mut columns: Vec<_> =
            fields(schema).filter_map(|(name, id)| field_column(schema, name, id, masks)).collect();
        if let Some(name) = masks.keys().find(|name| !fields(schema).any(|(f, _)| f == *name)) {
            return Err(TableError::UnknownMask(name.clone()));
        }
        columns.extend(captures.iter().map(|(name, value)| Column {
            name: name.clone(),
            source: Source::Capture(name.clone()),
            sql_type: if super::calendar::parse_date(value).is_some() {
                SqlType::Date
            } else {
                SqlType::Text
            },
            // Hive writes __HIVE_DEFAULT_PARTITION__ for null.
            nullable: true,
        }));
        if lineage {
            columns.push(Column {
                name: OBJECT_COLUMN.to_owned(),
                source: Source::Object,
                sql_type: SqlType::Bigint,
                nullable: true,
            });
        }
        check_names(&columns)?;
        Ok(Self { columns, key: Vec::new() })
    }

    /// The same table written by key: the key's columns hold no null, and [`VERSION_COLUMN`] tells
    /// newer rows from older ones.
    pub fn keyed(mut self, key: &[String]) -> Result<Self, TableError> {
        for name in key {
            // No two columns differ in letter case only.
            let folded = name.to_lowercase();
            let found = self
                .columns
                .iter()
                .find(|column| column.name.to_lowercase() == folded)
                .filter(|column| column.source != Source::Object)
                .ok_or_else(|| TableError::UnknownKey(name.clone()))?;
            self.key.push(found.name.clone());
        }
        for column in &mut self.columns {
            column.nullable &= !self.key.contains(&column.name);
        }
        self.columns.push(Column {
            name: VERSION_COLUMN.to_owned(),
            source: Source::Version,
            sql_type: SqlType::Text,
            nullable: true,
        });
        check_names(&self.columns)?;
        Ok(self)
    }

    /// `create table if not exists`; `table` is already quoted (see [`quote`]).
    ///
    /// Only the key is NOT NULL: files come in any order, and those of older and newer schemas may
    /// lack any other field.
    pub fn create_table_sql(&self, dialect: Dialect, table: &str) -> String {
        let mut lines: Vec<_> = self
            .columns
            .iter()
            .map(|column| {
                let ddl = column.sql_type.ddl(dialect);
                let required = self.key.contains(&column.name) && !column.nullable;
                let not_null = if required { " not null" } else { "" };
                format!("    {} {ddl}{not_null}", quote(&column.name))
            })
            .collect();
        if !self.key.is_empty() {
            let key: Vec<_> = self.key.iter().map(|name| quote(name)).collect();
            let nullable = |column: &Column| column.nullable && self.key.contains(&column.name);
            let constraint = match dialect {
                // Of one integer SQLite would make the row's number, which holds nothing else.
                Dialect::Sqlite => "unique",
                Dialect::Postgres if self.columns.iter().any(nullable) => "unique",
                Dialect::Postgres => "primary key",
            };
            lines.push(format!("    {constraint} ({})", key.join(", ")));
        }
        format!("create table if not exists {table} (\n{}\n)", lines.join(",\n"))
    }
}

/// `alter table … add column`. Always nullable: the rows already there have no value.
pub fn add_column_sql(dialect: Dialect, table: &str, column: &Column) -> String {
    let ddl = column.sql_type.ddl(dialect);
    let exists = if dialect == Dialect::Postgres { "if not exists " } else { "" };
    format!("alter table {table} add column {exists}{} {ddl}", quote(&column.name))
}

/// A quoted identifier, for both dialects.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// The fields that become columns: the record's, or the whole value if it is not a record.
pub(crate) fn fields(schema: &Schema) -> Box<dyn Iterator<Item = (&str, TypeId)> + '_> {
    match &schema.get(schema.root()).shape {
        Shape::Record(record) => {
            Box::new(record.fields.iter().map(|field| (field.name.as_str(), field.schema)))
        }
        _ => Box::new(std::iter::once((VALUE_COLUMN, schema.root()))),
    }
}

fn field_column(schema: &Schema, name: &str, id: TypeId, masks: &Masks) -> Option<Column> {
    let natural = SqlType::of(schema, id)?;
    // A union that is not optional in the plain sense may still hold null.
    let optional = schema.optional(id).is_none_or(|(_, nullable)| nullable);
    let (sql_type, nullable) = match masks.get(name) {
        None => (natural, optional),
        Some(Mask::Null) => (natural, true),
        Some(Mask::Sha256 { .. } | Mask::Last4) => (SqlType::Text, optional),
    };
    let source = Source::Field(name.to_owned());
    Some(Column { name: name.to_owned(), source, sql_type, nullable })
}

fn check_names(columns: &[Column]) -> Result<(), TableError> {
    if columns.is_empty() {
        return Err(TableError::NoColumns);
    }
    if columns.len() > COLUMNS_MAX {
        return Err(TableError::TooManyColumns(columns.len()));
    }
    // SQLite folds case in every identifier, and people in unquoted ones.
    let mut seen = BTreeMap::new();
    for Column { name, .. } in columns {
        if name.len() > IDENTIFIER_BYTES_MAX {
            return Err(TableError::NameTooLong(name.clone()));
        }
        if let Some(first) = seen.insert(name.to_lowercase(), name) {
            return Err(TableError::Duplicate { first: first.clone(), second: name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::*;

    fn table(fields: &str, captures: &[(&str, &str)]) -> Result<TableDef, TableError> {
        let json = format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
        let schema = Schema::parse(&json, &Limits::default()).unwrap();
        let captures: Vec<_> =
            captures.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        TableDef::new(&schema, &captures, true, &Masks::new())
    }

    #[test]
    fn ddl_of_both_dialects() {
        let def = table(
            r#"{"name":"id","type":"long"},
               {"name":"price","type":["null",{"type":"bytes","logicalType":"decimal","precision":12,"scale":2}]},
               {"name":"at","type":{"type":"long","logicalType":"timestamp-nanos"}},
               {"name":"tags","type":{"type":"array","items":"string"}},
               {"name":"any","type":["null","int","string"]},
               {"name":"nothing","type":"null"}"#,
            &[("dt", "2026-11-20"), ("region", "eu")],
        )
        .unwrap();
        assert_eq!(
            def.create_table_sql(Dialect::Postgres, "\"ads\".\"t\""),
            "create table if not exists \"ads\".\"t\" (\n    \"id\" bigint,\n    \
             \"price\" numeric(12,2),\n    \"at\" timestamptz,\n    \
             \"tags\" jsonb,\n    \"any\" jsonb,\n    \"dt\" date,\n    \
             \"region\" text,\n    \"_object\" bigint\n)"
        );
        assert_eq!(
            def.create_table_sql(Dialect::Sqlite, "\"t\""),
            "create table if not exists \"t\" (\n    \"id\" integer,\n    \"price\" text,\n    \
             \"at\" text,\n    \"tags\" text,\n    \"any\" text,\n    \"dt\" text,\n    \
             \"region\" text,\n    \"_object\" integer\n)"
        );
    }

    #[test]
    fn a_key_is_unique_and_never_null() {
        let fields = r#"{"name":"Id","type":["null","long"]},{"name":"n","type":"long"}"#;
        let key = ["id".to_owned(), "dt".to_owned()];
        let def = table(fields, &[("dt", "2026-11-20")]).unwrap().keyed(&key).unwrap();
        assert_eq!(
            def.create_table_sql(Dialect::Sqlite, "\"t\""),
            "create table if not exists \"t\" (\n    \"Id\" integer not null,\n    \
             \"n\" integer,\n    \"dt\" text not null,\n    \"_object\" integer,\n    \
             \"_version\" text,\n    unique (\"Id\", \"dt\")\n)"
        );
        let postgres = def.create_table_sql(Dialect::Postgres, "\"t\"");
        assert!(
            postgres.contains("\"n\" bigint,") && postgres.contains("primary key (\"Id\", \"dt\")")
        );
        for unknown in ["missing", "_object"] {
            let keyed = table(fields, &[]).unwrap().keyed(&[unknown.to_owned()]);
            assert_eq!(keyed, Err(TableError::UnknownKey(unknown.to_owned())));
        }
    }

    #[test]
    fn names_are_checked() {
        let twice = table(r#"{"name":"Id","type":"long"},{"name":"id","type":"long"}"#, &[]);
        assert!(matches!(twice, Err(TableError::Duplicate { .. })));
        let capture = table(r#"{"name":"dt","type":"long"}"#, &[("dt", "x")]);
        assert!(matches!(capture, Err(TableError::Duplicate { .. })));
        let long = format!(r#"{{"name":"{}","type":"long"}}"#, "x".repeat(64));
        assert!(matches!(table(&long, &[]), Err(TableError::NameTooLong(_))));
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn catalog_types_are_recognised() {
        for sql_type in [SqlType::Bigint, SqlType::Numeric(Some((12, 2))), SqlType::Jsonb] {
            assert_eq!(SqlType::from_postgres(&sql_type.to_string()), sql_type);
        }
        assert_eq!(SqlType::from_postgres("character varying(20)"), SqlType::Varchar(20));
        assert_eq!(SqlType::from_postgres("character(2)"), SqlType::Varchar(2));
        assert_eq!(SqlType::from_postgres("point"), SqlType::Other("point".to_owned()));
    }
}
