//! Typed reading of a TOML document that remembers which keys were asked for, so that every
//! other key is an error with its line and the nearest name that would have been understood.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// 1-based line of the file.
    Line(usize),
    Variable(String),
    WholeFile,
}

impl Problem {
    pub fn display(&self, path: &Path) -> String {
        let path = path.display();
        match &self.place {
            Place::Line(line) => format!("{path}:{line}: {}", self.message),
            Place::Variable(name) => format!("environment variable {name}: {}", self.message),
            Place::WholeFile => format!("{path}: {}", self.message),
        }
    }
}

pub(super) struct Reader<'a> {
    text: &'a str,
    document: DeTable<'a>,
    environment: &'a BTreeMap<String, String>,
    /// Every variable that would have been understood.
    variables: BTreeSet<String>,
    problems: Vec<Problem>,
}

/// A table of the document, by path. It may be absent from the file and exist only in the
/// environment.
pub(super) struct Section {
    path: Vec<String>,
    asked: Vec<&'static str>,
}

/// A value as text, and where it came from.
struct Found {
    text: String,
    place: Place,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        text: &'a str,
        environment: &'a BTreeMap<String, String>,
    ) -> Result<Self, Vec<Problem>> {
        let document = DeTable::parse(text).map_err(|error| {
            let place = match error.span() {
                Some(span) => Place::Line(line_of(text, &span)),
                None => Place::WholeFile,
            };
            vec![Problem { place, message: format!("not TOML: {}", error.message()) }]
        })?;
        Ok(Reader {
            text,
            document: document.into_inner(),
            environment,
            variables: BTreeSet::new(),
            problems: Vec::new(),
        })
    }

    pub(super) fn root(&mut self) -> Section {
        Section { path: Vec::new(), asked: Vec::new() }
    }

    /// The section of one feed.
    pub(super) fn feed(&self, name: &str) -> Section {
        Section { path: vec!["feed".to_owned(), name.to_owned()], asked: Vec::new() }
    }

    pub(super) fn missing(&mut self, what: &str, remedy: &str) {
        let message = format!("{what} is missing; {remedy}");
        self.problems.push(Problem { place: Place::WholeFile, message });
    }

    /// All problems, in the order of the file; overrides that nothing understood come last.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        let prefixes = ["FLEET_", "FEED_", "IMPORTER_", "SCALER_"];
        for name in self.environment.keys() {
            let ours = name
                .strip_prefix("WEIRGATE_")
                .is_some_and(|rest| prefixes.iter().any(|prefix| rest.starts_with(prefix)));
            if ours && !self.variables.contains(name) {
                let hint = nearest(name, self.variables.iter().map(String::as_str))
                    .map(|near| format!("; did you mean {near}?"))
                    .unwrap_or_default();
                self.problems.push(Problem {
                    place: Place::Variable(name.clone()),
                    message: format!("overrides nothing in the file{hint}"),
                });
            }
        }
        self.problems.sort_by_key(|problem| match problem.place {
            Place::Line(line) => line,
            Place::WholeFile => usize::MAX - 1,
            Place::Variable(_) => usize::MAX,
        });
        self.problems
    }

    fn table(&self, path: &[String]) -> Option<&DeTable<'a>> {
        let mut table = &self.document;
        for part in path {
            table = table.get(part.as_str())?.get_ref().as_table()?;
        }
        Some(table)
    }

    fn value(&self, path: &[String], key: &str) -> Option<&Spanned<DeValue<'a>>> {
        self.table(path)?.get(key)
    }
}

impl Section {
    pub(super) fn required<T>(
        &mut self,
        reader: &mut Reader<'_>,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let count = reader.problems.len();
        let value = self.optional(reader, key, parse);
        if value.is_none() && reader.problems.len() == count {
            let place = self.place(reader);
            let message = format!("`{}` is missing; give {expected}", self.name_of(key));
            reader.problems.push(Problem { place, message });
        }
        value
    }

    pub(super) fn optional<T>(
        &mut self,
        reader: &mut Reader<'_>,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.asked.push(key);
        let found = self.find(reader, key)?;
        match resolve(&found.text, reader.environment).and_then(|text| parse(&text)) {
            Ok(value) => Some(value),
            Err(message) => {
                let message = format!("{}: {message}", self.name_of(key));
                reader.problems.push(Problem { place: found.place, message });
                None
            }
        }
    }

    /// An array of names, without repetitions. In the environment they stand between commas.
    pub(super) fn names(
        &mut self,
        reader: &mut Reader<'_>,
        key: &'static str,
    ) -> Option<Vec<String>> {
        self.asked.push(key);
        let found = match reader.value(&self.path, key) {
            Some(value) if !self.is_overridden(reader, key) => {
                let place = Place::Line(line_of(reader.text, &value.span()));
                let names = value.get_ref().as_array().and_then(|items| {
                    let name =
                        |item: &Spanned<DeValue<'_>>| Some(item.get_ref().as_str()?.to_owned());
                    items.iter().map(name).collect::<Option<Vec<_>>>()
                });
                Some((names, place))
            }
            _ => self.find(reader, key).map(|found| {
                let names = found.text.split(',').map(|name| name.trim().to_owned()).collect();
                (Some(names), found.place)
            }),
        };
        reader.variables.insert(variable(&[&self.path[..], &[key.to_owned()]].concat()));
        let (names, place) = found?;
        let distinct = names.filter(|names| {
            let once: BTreeSet<_> = names.iter().map(|name| name.to_lowercase()).collect();
            !names.is_empty() && once.len() == names.len() && !once.contains("")
        });
        if distinct.is_none() {
            let message = format!("{}: expected different names, e.g. [\"id\"]", self.name_of(key));
            reader.problems.push(Problem { place, message });
        }
        distinct
    }

    /// Whether the file or the environment says anything about the key.
    pub(super) fn mentions(&self, reader: &Reader<'_>, key: &str) -> bool {
        reader.value(&self.path, key).is_some() || self.is_overridden(reader, key)
    }

    fn is_overridden(&self, reader: &Reader<'_>, key: &str) -> bool {
        let name = variable(&[&self.path[..], &[key.to_owned()]].concat());
        reader.environment.contains_key(&name)
    }

    /// A sub-table; `None` when neither the file nor the environment mentions it.
    pub(super) fn section(
        &mut self,
        reader: &mut Reader<'_>,
        key: &'static str,
    ) -> Option<Section> {
        self.asked.push(key);
        let section =
            Section { path: [&self.path[..], &[key.to_owned()]].concat(), asked: Vec::new() };
        let mentioned = match reader.value(&self.path, key) {
            Some(value) if value.get_ref().is_table() => true,
            Some(value) => {
                let place = Place::Line(line_of(reader.text, &value.span()));
                let kind = value.get_ref().type_str();
                let message = format!("{}: expected a table, found {kind}", self.name_of(key));
                reader.problems.push(Problem { place, message });
                false
            }
            None => false,
        };
        let prefix = format!("{}_", variable(&section.path));
        let overridden = reader.environment.keys().any(|name| name.starts_with(&prefix));
        (mentioned || overridden).then_some(section)
    }

    /// `[key.NAME]` for every NAME in the file.
    pub(super) fn named_sections(
        &mut self,
        reader: &mut Reader<'_>,
        key: &'static str,
    ) -> Vec<(String, Section)> {
        let Some(parent) = self.section(reader, key) else { return Vec::new() };
        let Some(table) = reader.table(&parent.path) else { return Vec::new() };
        let mut sections = Vec::new();
        let mut problems = Vec::new();
        for (name, value) in table {
            let name = name.get_ref().to_string();
            if value.get_ref().is_table() {
                let path = [&parent.path[..], std::slice::from_ref(&name)].concat();
                sections.push((name, Section { path, asked: Vec::new() }));
            } else {
                let place = Place::Line(line_of(reader.text, &value.span()));
                let message = format!("{key}.{name} must be a table: write [{key}.NAME] above it");
                problems.push(Problem { place, message });
            }
        }
        reader.problems.extend(problems);
        sections
    }

    pub(super) fn problem(&self, reader: &mut Reader<'_>, key: &str, message: String) {
        let place = match reader.value(&self.path, key) {
            Some(value) => Place::Line(line_of(reader.text, &value.span())),
            None => self.place(reader),
        };
        let message = format!("{}: {message}", self.name_of(key));
        reader.problems.push(Problem { place, message });
    }

    /// Reports the keys of this table that were never asked for.
    pub(super) fn finish(self, reader: &mut Reader<'_>) {
        let Some(table) = reader.table(&self.path) else { return };
        let mut problems = Vec::new();
        for key in table.keys() {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let within = match self.path.is_empty() {
                true => "the top level".to_owned(),
                false => format!("[{}]", self.path.join(".")),
            };
            let hint = match nearest(name, self.asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known keys: {}", self.asked.join(", ")),
            };
            let place = Place::Line(line_of(reader.text, &key.span()));
            problems.push(Problem {
                place,
                message: format!("unknown key `{name}` in {within}; {hint}"),
            });
        }
        reader.problems.extend(problems);
    }

    fn find(&self, reader: &mut Reader<'_>, key: &str) -> Option<Found> {
        let name = variable(&[&self.path[..], &[key.to_owned()]].concat());
        reader.variables.insert(name.clone());
        if let Some(text) = reader.environment.get(&name) {
            return Some(Found { text: text.clone(), place: Place::Variable(name) });
        }
        let value = reader.value(&self.path, key)?;
        let place = Place::Line(line_of(reader.text, &value.span()));
        match value.get_ref() {
            DeValue::String(text) => Some(Found { text: text.to_string(), place }),
            DeValue::Integer(number) => Some(Found { text: number.as_str().to_owned(), place }),
            other => {
                let kind = other.type_str();
                let message =
                    format!("{}: expected text or a number, found {kind}", self.name_of(key));
                reader.problems.push(Problem { place, message });
                None
            }
        }
    }

    fn place(&self, reader: &Reader<'_>) -> Place {
        let Some((last, parents)) = self.path.split_last() else { return Place::WholeFile };
        reader
            .table(parents)
            .and_then(|table| table.get_key_value(last.as_str()))
            .map(|(key, _)| Place::Line(line_of(reader.text, &key.span())))
            .unwrap_or(Place::WholeFile)
    }

    fn name_of(&self, key: &str) -> String {
        let mut name = self.path.join(".");
        if !name.is_empty() {
            name.push('.');
        }
        name + key
    }
}

/// `fleet.my-ads.queue` → `WEIRGATE_FLEET_MY_ADS_QUEUE`.
fn variable(path: &[String]) -> String {
    let mut name = String::from("WEIRGATE");
    for part in path {
        name.push('_');
        name.extend(part.chars().map(|c| match c.is_ascii_alphanumeric() {
            true => c.to_ascii_uppercase(),
            false => '_',
        }));
    }
    name
}

/// Follows `env:NAME` and `file:PATH`. Errors name the reference, never the secret.
fn resolve(text: &str, environment: &BTreeMap<String, String>) -> Result<String, String> {
    if let Some(name) = text.strip_prefix("env:") {
        return environment
            .get(name)
            .cloned()
            .ok_or_else(|| format!("refers to the environment variable {name}, which is not set"));
    }
    if let Some(path) = text.strip_prefix("file:") {
        return std::fs::read_to_string(path)
            .map(|secret| secret.trim_end_matches(['\r', '\n']).to_owned())
            .map_err(|error| format!("cannot read the file {path}: {error}"));
    }
    Ok(text.to_owned())
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    let end = span.start.min(text.len());
    text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The closest known name, when it is close enough to be a slip of the finger.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(name.len()) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}
