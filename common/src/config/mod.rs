//! `weirgate.toml`: one file, read by every program, parsed once into typed values.
//!
//! Every value can be overridden by an environment variable named after its path
//! (`database` → `WEIRGATE_DATABASE`, `fleet.ads.queue` → `WEIRGATE_FLEET_ADS_QUEUE`), and every
//! text value may refer to a secret kept elsewhere (`env:NAME`, `file:/path`). All problems of a
//! file are reported together, each with its line and what to do.

mod keyed;
mod pattern;
mod quantity;
mod reader;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use weirgate_avro::limits::Limits;
use weirgate_avro::schema::Schema;

pub use pattern::{MESSAGES, ObjectPattern, PatternError, is_leftover};
pub use quantity::parse_duration;
use quantity::{parse_bytes, parse_lease};
pub use reader::Problem;
use reader::{Reader, Section};

use crate::fault;

/// Where programs look for the file when no `--config` is given.
pub const PATH_VARIABLE: &str = "WEIRGATE_CONFIG";

/// Used when neither `--config` nor [`PATH_VARIABLE`] names a file.
pub const DEFAULT_PATH: &str = "weirgate.toml";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub database: Database,
    pub fleets: BTreeMap<String, Fleet>,
    pub feeds: BTreeMap<String, Feed>,
    pub importer: Importer,
    pub scaler: Scaler,
}

/// Where tables and ledger live. `Debug` and `Display` never show a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    Postgres { url: String },
    Sqlite { path: PathBuf },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    pub queue: String,
    /// Absent: the fleet is not scaled by us.
    pub auto_scaling_group: Option<String>,
    /// The freshness objective: commit time minus object creation time.
    pub freshness: Duration,
    pub instances_min: u32,
    pub instances_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    pub fleet: String,
    pub objects: ObjectPattern,
    pub table: TableName,
    pub write: WriteMode,
    /// The columns that name a row, where rows are written by key; else none.
    pub key: Vec<String>,
    pub evolve: Evolve,
    pub on_missing_object: OnMissingObject,
    pub on_bad_row: OnBadRow,
    /// The reader's schema as JSON: files are resolved to it. Absent: tables follow the files.
    pub schema: Option<String>,
    /// Masks by field.
    pub masks: BTreeMap<String, Mask>,
}

/// What leaves the importer in the place of a field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    Sha256 { salt: Secret },
    Null,
    Last4,
}

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A table, with its schema where the user named one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    pub schema: Option<String>,
    pub name: String,
}

/// What a new version of an object does to the rows of the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// The table holds the rows of the latest version of each key.
    Replace,
    /// Each distinct version's rows are added once.
    Append,
    /// One row per key: that of the newest object.
    Upsert,
    /// Debezium envelopes, applied in the order of their source.
    Cdc,
}

impl WriteMode {
    pub fn name(self) -> &'static str {
        WRITE_MODES.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }

    /// Whether a row takes the place of the one with its key.
    pub fn is_keyed(self) -> bool {
        match self {
            WriteMode::Replace | WriteMode::Append => false,
            WriteMode::Upsert | WriteMode::Cdc => true,
        }
    }
}

const WRITE_MODES: [(&str, WriteMode); 4] = [
    ("replace", WriteMode::Replace),
    ("append", WriteMode::Append),
    ("upsert", WriteMode::Upsert),
    ("cdc", WriteMode::Cdc),
];

/// What a schema newer than the table does to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evolve {
    Fixed,
    /// New fields become columns.
    AddColumns,
    /// Column types grow, too, where the database does so without loss.
    Widen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissingObject {
    DeadLetter,
    Skip,
}

/// What a row that the database cannot hold does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBadRow {
    /// The whole object is refused.
    Object,
    /// The row goes to the ledger's `rejected_row`; the others are imported.
    Quarantine,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Importer {
    /// Objects worked on at the same time.
    pub slots: usize,
    /// Visibility asked for at receive and at each extension.
    pub lease: Duration,
    /// What held messages may take to finish after SIGTERM.
    pub drain_grace: Duration,
    /// Bytes of objects in flight. Object sizes are known before download.
    pub bytes_in_flight_max: u64,
    /// Larger objects are refused (dead-lettered) before download.
    pub object_bytes_max: u64,
    /// In-place retries of a transient failure before the message is released.
    pub attempts_max: u32,
    /// A folder with the schemas of records in messages.
    pub schemas: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scaler {
    /// How often the queue is read.
    pub period: Duration,
    /// How long the queue must read empty, in flight included, before the group shrinks.
    pub settle: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read {path}; write one (see the configuration section of the README) or name it with --config"
    )]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}", list(path, problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

fn list(path: &Path, problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| problem.display(path));
    lines.collect::<Vec<_>>().join("\n")
}

impl Config {
    /// Reads and checks the file, with overrides from the process environment.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, &std::env::vars().collect())
            .map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }

    /// The pure part of [`Config::load`]: only `file:` references touch the disk.
    pub fn parse(text: &str, environment: &BTreeMap<String, String>) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader::new(text, environment)?;
        let mut root = reader.root();

        let database =
            root.required(&mut reader, "database", "postgres://… or sqlite://FILE", |t| {
                Database::parse(t)
            });
        let salt = root.optional(&mut reader, "mask_salt", parse_text);
        let mut fleets = BTreeMap::new();
        for (name, mut section) in root.named_sections(&mut reader, "fleet") {
            if let Some(fleet) = fleet(&mut reader, &mut section) {
                fleets.insert(name, fleet);
            }
            section.finish(&mut reader);
        }
        let mut feeds = BTreeMap::new();
        for (name, mut section) in root.named_sections(&mut reader, "feed") {
            if let Some(feed) = feed(&mut reader, &mut section, &fleets, salt.as_deref()) {
                feeds.insert(name, feed);
            }
            section.finish(&mut reader);
        }
        keyed::agree(&mut reader, &feeds);
        let importer = importer(&mut reader, &mut root);
        let scaler = scaler(&mut reader, &mut root);
        root.finish(&mut reader);
        if fleets.is_empty() {
            reader.missing("[fleet.NAME]", "add one with `queue = \"https://sqs…\"`");
        }
        if feeds.is_empty() {
            reader.missing("[feed.NAME]", "add one with `fleet`, `objects` and `table`");
        }

        let problems = reader.into_problems();
        match database {
            Some(database) if problems.is_empty() => {
                Ok(Config { database, fleets, feeds, importer, scaler })
            }
            _ => Err(problems),
        }
    }

    /// The feeds that take the object: usually one, none for a stranger, more when a user loads
    /// the same object into two tables.
    pub fn feeds_for<'a>(
        &'a self,
        fleet: &'a str,
        bucket: &'a str,
        key: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Feed)> {
        self.feeds
            .iter()
            .filter(move |(_, feed)| feed.fleet == fleet && feed.objects.matches(bucket, key))
            .map(|(name, feed)| (name.as_str(), feed))
    }

    /// The fleet by name, or the only one when no name is given.
    pub fn fleet<'a>(
        &'a self,
        name: Option<&'a str>,
    ) -> Result<(&'a str, &'a Fleet), UnknownFleet> {
        let known = || self.fleets.keys().cloned().collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => self
                .fleets
                .get(name)
                .map(|fleet| (name, fleet))
                .ok_or_else(|| UnknownFleet::NoSuch { name: name.to_owned(), known: known() }),
            None if self.fleets.len() == 1 => {
                let (name, fleet) = self.fleets.iter().next().expect("there is exactly one");
                Ok((name, fleet))
            }
            None => Err(UnknownFleet::Ambiguous { known: known() }),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum UnknownFleet {
    #[error("no fleet `{name}` in the configuration; it has: {known}")]
    NoSuch { name: String, known: String },
    #[error("the configuration has several fleets ({known}); choose one with --fleet")]
    Ambiguous { known: String },
}

fn fleet(reader: &mut Reader<'_>, section: &mut Section) -> Option<Fleet> {
    let queue = section.required(reader, "queue", "the queue's URL", parse_queue_url);
    let auto_scaling_group = section.optional(reader, "auto_scaling_group", parse_text);
    let freshness = section.optional(reader, "freshness", parse_duration);
    let (mut instances_min, mut instances_max) = (0, 10);
    if let Some(mut instances) = section.section(reader, "instances") {
        instances_min = instances.optional(reader, "min", parse_number).unwrap_or(instances_min);
        instances_max = instances
            .optional(reader, "max", parse_number)
            .unwrap_or(instances_max.max(instances_min));
        instances.finish(reader);
        if instances_min > instances_max {
            section.problem(
                reader,
                "instances",
                format!(
                    "min = {instances_min} is above max = {instances_max}; lower min or raise max"
                ),
            );
        }
    }
    Some(Fleet {
        queue: queue?,
        auto_scaling_group,
        freshness: freshness.unwrap_or(Duration::from_secs(300)),
        instances_min,
        instances_max,
    })
}

fn feed(
    reader: &mut Reader<'_>,
    section: &mut Section,
    fleets: &BTreeMap<String, Fleet>,
    salt: Option<&str>,
) -> Option<Feed> {
    let fleet = section.required(reader, "fleet", "the name of a [fleet.NAME]", parse_text);
    if let Some(name) = &fleet
        && !fleets.contains_key(name)
    {
        let known = fleets.keys().map(String::as_str).collect::<Vec<_>>();
        let hint = reader::nearest(name, known.iter().copied())
            .map(|near| format!("did you mean `{near}`?"))
            .unwrap_or_else(|| format!("fleets: {}", known.join(", ")));
        section.problem(reader, "fleet", format!("there is no [fleet.{name}]; {hint}"));
    }
    let objects = section.required(reader, "objects", "s3://BUCKET/KEY-PATTERN", |text| {
        ObjectPattern::parse(text).map_err(|e| e.to_string())
    });
    let table = section.required(reader, "table", "TABLE or SCHEMA.TABLE", TableName::parse);
    let write = section.optional(reader, "write", |text| one_of(text, &WRITE_MODES));
    let key = section.names(reader, "key");
    let evolve = section.optional(reader, "evolve", |text| {
        let choices = [
            ("fixed", Evolve::Fixed),
            ("add_columns", Evolve::AddColumns),
            ("widen", Evolve::Widen),
        ];
        one_of(text, &choices)
    });
    let on_missing_object = section.optional(reader, "on_missing_object", |text| {
        one_of(
            text,
            &[("dead_letter", OnMissingObject::DeadLetter), ("skip", OnMissingObject::Skip)],
        )
    });
    let on_bad_row = section.optional(reader, "on_bad_row", |text| {
        one_of(text, &[("object", OnBadRow::Object), ("quarantine", OnBadRow::Quarantine)])
    });
    let schema = section.optional(reader, "schema", parse_schema);
    let mut masks = BTreeMap::new();
    for (field, mut column) in section.named_sections(reader, "columns") {
        let mask =
            column.required(reader, "mask", "sha256, null or last4", |text| parse_mask(text, salt));
        column.finish(reader);
        masks.extend(mask.map(|mask| (field, mask)));
    }
    let write = write.unwrap_or(WriteMode::Replace);
    keyed::check(reader, section, write, key.as_deref(), &masks);
    if write == WriteMode::Cdc {
        keyed::check_changes(reader, section, table.as_ref());
    }
    Some(Feed {
        fleet: fleet?,
        objects: objects?,
        table: table?,
        write,
        key: key.unwrap_or_default(),
        evolve: evolve.unwrap_or(Evolve::AddColumns),
        on_missing_object: on_missing_object.unwrap_or(OnMissingObject::DeadLetter),
        on_bad_row: on_bad_row.unwrap_or(OnBadRow::Object),
        schema,
        masks,
    })
}

fn importer(reader: &mut Reader<'_>, root: &mut Section) -> Importer {
    let mut importer = Importer {
        slots: 4,
        lease: Duration::from_secs(60),
        drain_grace: Duration::from_secs(60),
        bytes_in_flight_max: 256 << 20,
        object_bytes_max: 5 << 30,
        attempts_max: 5,
        schemas: None,
    };
    let Some(mut section) = root.section(reader, "importer") else { return importer };
    let at_least_one = |text: &str| match parse_number::<u32>(text) {
        Ok(0) => Err("must be at least 1".to_owned()),
        other => other,
    };
    if let Some(slots) = section.optional(reader, "slots", at_least_one) {
        importer.slots = slots as usize;
    }
    if let Some(lease) = section.optional(reader, "lease", parse_lease) {
        importer.lease = lease;
    }
    if let Some(grace) = section.optional(reader, "drain_grace", parse_duration) {
        importer.drain_grace = grace;
    }
    if let Some(bytes) = section.optional(reader, "bytes_in_flight_max", parse_bytes) {
        importer.bytes_in_flight_max = bytes;
    }
    if let Some(bytes) = section.optional(reader, "object_bytes_max", parse_bytes) {
        importer.object_bytes_max = bytes;
    }
    if let Some(attempts) = section.optional(reader, "attempts_max", at_least_one) {
        importer.attempts_max = attempts;
    }
    importer.schemas = section.optional(reader, "schemas", parse_text).map(PathBuf::from);
    section.finish(reader);
    importer
}

fn scaler(reader: &mut Reader<'_>, root: &mut Section) -> Scaler {
    let mut scaler = Scaler { period: Duration::from_secs(10), settle: Duration::from_secs(75) };
    let Some(mut section) = root.section(reader, "scaler") else { return scaler };
    if let Some(period) = section.optional(reader, "period", parse_duration) {
        scaler.period = period;
    }
    if let Some(settle) = section.optional(reader, "settle", parse_duration) {
        scaler.settle = settle;
    }
    section.finish(reader);
    scaler
}

impl Database {
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Database::Postgres { url: text.to_owned() });
        }
        match text.strip_prefix("sqlite://") {
            Some("") => Err("names no file; write sqlite://weirgate.db".to_owned()),
            Some(path) => Ok(Database::Sqlite { path: PathBuf::from(path) }),
            // The text may hold a password in some other scheme: never echo it.
            None => Err("must begin with postgres:// or sqlite://".to_owned()),
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Database::Sqlite { path } => write!(f, "sqlite://{}", path.display()),
            Database::Postgres { url } => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
                let rest = rest.split('?').next().unwrap_or_default();
                match rest.rsplit_once('@') {
                    Some((user, host)) => {
                        let user = user.split(':').next().unwrap_or_default();
                        write!(f, "{scheme}://{user}@{host}")
                    }
                    None => write!(f, "{scheme}://{rest}"),
                }
            }
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({self})")
    }
}

/// PostgreSQL cuts longer identifiers silently, which would make two tables one.
pub const IDENTIFIER_BYTES_MAX: usize = 63;

impl TableName {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        for part in schema.iter().chain([&name]) {
            if part.is_empty() || part.contains('.') {
                return Err(format!("`{text}` is not TABLE or SCHEMA.TABLE"));
            }
            if part.len() > IDENTIFIER_BYTES_MAX {
                return Err(format!("`{part}` is longer than {IDENTIFIER_BYTES_MAX} bytes"));
            }
            if part.chars().any(|c| c.is_control() || c == '"') {
                return Err(format!("`{part}` holds a quote or a control character"));
            }
        }
        if schema == Some("weirgate") || name.starts_with("weirgate_") {
            return Err(format!("`{text}` lies where the ledger lives; choose another name"));
        }
        Ok(TableName { schema: schema.map(str::to_owned), name: name.to_owned() })
    }

    /// The schema on PostgreSQL. Unless the user names one it is `public`: the search path would
    /// put a schema named like the role first, and the natural name of ours is the ledger's.
    pub fn postgres_schema(&self) -> &str {
        self.schema.as_deref().unwrap_or("public")
    }

    /// Quoted, for statements on PostgreSQL.
    pub fn in_postgres(&self) -> String {
        format!("\"{}\".\"{}\"", self.postgres_schema(), self.name)
    }

    /// Plain. SQLite has no schemas: theirs becomes a prefix, as the ledger's does.
    pub fn in_sqlite(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{schema}_{}", self.name),
            None => self.name.clone(),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words = choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        format!("`{text}` is none of: {words}")
    })
}

fn parse_mask(text: &str, salt: Option<&str>) -> Result<Mask, String> {
    match (text, salt) {
        ("null", _) => Ok(Mask::Null),
        ("last4", _) => Ok(Mask::Last4),
        ("sha256", Some(salt)) => Ok(Mask::Sha256 { salt: Secret(salt.to_owned()) }),
        ("sha256", None) => Err("sha256 needs a top-level `mask_salt`, e.g. env:SALT".to_owned()),
        _ => Err(format!("`{text}` is none of: sha256, null, last4")),
    }
}

fn parse_text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// JSON of a schema that Weirgate understands.
fn parse_schema(text: &str) -> Result<String, String> {
    match Schema::parse(text, &Limits::default()) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("is no Avro schema: {}", fault::chain(&error))),
    }
}

fn parse_number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a whole number in range"))
}

fn parse_queue_url(text: &str) -> Result<String, String> {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .ok_or_else(|| format!("`{text}` is not a URL; SQS queue URLs begin with https://"))?;
    if rest.split('/').filter(|part| !part.is_empty()).count() < 3 {
        return Err(format!("`{text}` is not a queue URL; expected https://HOST/ACCOUNT/NAME"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
database = "sqlite://w.db"
[fleet.ads]
queue = "https://sqs.eu-west-1.amazonaws.com/111122223333/ads-ingest"
[feed.impressions]
fleet = "ads"
objects = "s3://ads-events/impressions/dt={dt}/**.avro"
table = "ads.impressions"
"#;

    fn parse(text: &str) -> Result<Config, String> {
        parse_with(text, &[])
    }

    fn parse_with(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::parse(text, &environment).map_err(|p| list(Path::new("weirgate.toml"), &p))
    }

    #[test]
    fn the_minimal_file_gets_the_documented_defaults() {
        let config = parse(MINIMAL).unwrap();
        let feed = &config.feeds["impressions"];
        assert_eq!(feed.write, WriteMode::Replace);
        assert_eq!(feed.evolve, Evolve::AddColumns);
        assert_eq!(feed.on_missing_object, OnMissingObject::DeadLetter);
        assert_eq!(config.fleets["ads"].freshness, Duration::from_secs(300));
        assert_eq!(config.fleet(None).unwrap().0, "ads");
    }

    #[test]
    fn problems_name_line_key_and_remedy() {
        for (edit, expected) in [
            (
                ("queue =", "quue ="),
                &["weirgate.toml:4: unknown key `quue` in [fleet.ads]; did you mean `queue`?"][..],
            ),
            (
                ("sqlite://w.db", "mysql://u:secret@h/db"),
                &["weirgate.toml:2: database: must begin"],
            ),
            (("fleet = \"ads\"", "fleet = \"adz\""), &["weirgate.toml:6:", "did you mean `ads`?"]),
            (("s3://ads-events/", "ads-events/"), &["weirgate.toml:7: feed.impressions.objects:"]),
            (("table = ", "freshnes = \"5m\"\ntable = "), &["unknown key `freshnes`"]),
            (("[feed.impressions]", "[feed.impressions"), &["weirgate.toml:5:"]),
            (
                ("\"ads.impressions\"", "true"),
                &["weirgate.toml:8: feed.impressions.table: expected text"],
            ),
            (("https://sqs", "sqs"), &["weirgate.toml:4: fleet.ads.queue:", "is not a URL"]),
        ] {
            let error = parse(&MINIMAL.replace(edit.0, edit.1)).unwrap_err();
            for part in expected {
                assert!(error.contains(part), "{edit:?} gave:\n{error}\nwithout `{part}`");
            }
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let error = parse("[fleet.ads]\nfreshness = \"soon\"\n").unwrap_err();
        for part in ["`database`", "fleet.ads.queue", "`soon` is not a duration", "[feed.NAME]"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_environment_overrides_and_resolves_secrets() {
        let config = parse_with(
            MINIMAL,
            &[
                ("WEIRGATE_DATABASE", "env:DB"),
                ("DB", "postgres://u:hunter2@db/x?sslmode=require"),
                ("WEIRGATE_FLEET_ADS_FRESHNESS", "90s"),
                ("WEIRGATE_IMPORTER_SLOTS", "7"),
            ],
        )
        .unwrap();
        assert_eq!(config.fleets["ads"].freshness, Duration::from_secs(90));
        assert_eq!(config.importer.slots, 7);
        assert_eq!(config.database.to_string(), "postgres://u@db/x");
        assert!(!format!("{config:?}").contains("hunter2"));

        let error = parse_with(MINIMAL, &[("WEIRGATE_DATABASE", "env:ABSENT")]).unwrap_err();
        assert!(error.contains("WEIRGATE_DATABASE") && error.contains("ABSENT"), "{error}");
        let error = parse_with(MINIMAL, &[("WEIRGATE_FLEET_ADS_QUEU", "x")]).unwrap_err();
        assert!(error.contains("WEIRGATE_FLEET_ADS_QUEUE"), "{error}");
    }

    #[test]
    fn masks_need_a_salt_and_never_show_it() {
        let masked = format!("{MINIMAL}columns.email = {{ mask = \"sha256\" }}\n");
        assert!(parse(&masked).unwrap_err().contains("mask_salt"));
        let config = parse(&format!("mask_salt = \"pepper\"\n{masked}")).unwrap();
        let salt = Secret("pepper".to_owned());
        assert_eq!(config.feeds["impressions"].masks["email"], Mask::Sha256 { salt });
        assert!(!format!("{config:?}").contains("pepper"));
        let error = parse(&masked.replace("sha256", "md5")).unwrap_err();
        assert!(error.contains("feed.impressions.columns.email.mask") && error.contains("last4"));
    }

    #[test]
    fn rows_written_by_key_need_one() {
        let with = |lines: &str| parse(&format!("{MINIMAL}{lines}\n"));
        let config = with("write = \"upsert\"\nkey = [\"id\", \"dt\"]").unwrap();
        assert_eq!(config.feeds["impressions"].key, ["id", "dt"]);
        let config = parse_with(
            &format!("{MINIMAL}write = \"upsert\"\n"),
            &[("WEIRGATE_FEED_IMPRESSIONS_KEY", "id, n")],
        );
        assert_eq!(config.unwrap().feeds["impressions"].key, ["id", "n"]);
        for (lines, expected) in [
            (
                "write = \"upsert\"",
                "weirgate.toml:9: feed.impressions.write: \"upsert\" needs `key`",
            ),
            ("key = [\"id\"]", "weirgate.toml:9: feed.impressions.key: is for upsert"),
            ("write = \"cdc\"", "weirgate.toml:9: feed.impressions.write: \"cdc\" needs `key`"),
            (
                "write = \"cdc\"\nkey = [\"id\"]\nschema = '\"long\"'",
                "weirgate.toml:11: feed.impressions.schema: \"cdc\" reads envelopes",
            ),
            ("write = \"upsert\"\nkey = []", "weirgate.toml:10: feed.impressions.key: expected"),
            ("write = \"upsert\"\nkey = [\"id\", \"ID\"]", "expected different names"),
            ("write = \"upsert\"\nkey = [1]", "expected different names"),
            (
                "write = \"upsert\"\nkey = [\"id\"]\ncolumns.id = { mask = \"last4\" }",
                "weirgate.toml:10: feed.impressions.key: `id` is masked",
            ),
            (
                "[feed.more]\nfleet = \"ads\"\nobjects = \"s3://b/**\"\ntable = \"ads.impressions\"\nwrite = \"upsert\"\nkey = [\"id\"]",
                "weirgate.toml:13: feed.more.write: [feed.impressions] writes ads.impressions too",
            ),
        ] {
            let error = with(lines).unwrap_err();
            assert!(error.contains(expected), "{lines} gave:\n{error}\nwithout `{expected}`");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn names_that_would_hit_the_ledger_are_refused() {
        assert!(TableName::parse("weirgate.object").is_err());
        assert!(TableName::parse("weirgate_object").is_err());
        assert!(TableName::parse("a.b.c").is_err() && TableName::parse("").is_err());
        assert!(TableName::parse(&"x".repeat(64)).is_err());
        assert_eq!(TableName::parse("ads.impressions").unwrap().to_string(), "ads.impressions");
    }
}
