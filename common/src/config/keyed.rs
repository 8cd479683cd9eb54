//! Feeds whose rows are written by key: what must go together.

use std::collections::BTreeMap;

use super::reader::{Reader, Section};
use super::{Feed, IDENTIFIER_BYTES_MAX, Mask, TableName, WriteMode};

/// Reports a key that is missing, superfluous or masked out of recognition.
pub(super) fn check(
    reader: &mut Reader<'_>,
    section: &Section,
    write: WriteMode,
    key: Option<&[String]>,
    masks: &BTreeMap<String, Mask>,
) {
    let mode = write.name();
    match (write.is_keyed(), key) {
        (true, None) if !section.mentions(reader, "key") => {
            let message = format!("\"{mode}\" needs `key`, e.g. key = [\"id\"]");
            section.problem(reader, "write", message);
        }
        (false, Some(_)) => {
            let message = format!("is for upsert and cdc, but this feed has write = \"{mode}\"");
            section.problem(reader, "key", message);
        }
        _ => {}
    }
    for name in key.unwrap_or_default() {
        // Different values would become one, and their rows too.
        if let Some(Mask::Null | Mask::Last4) = masks.get(name) {
            let message = format!("`{name}` is masked so that values become alike; use sha256");
            section.problem(reader, "key", message);
        }
    }
}

/// What the name of the table that remembers deleted rows ends with.
const DELETED: &str = "__deleted";

impl TableName {
    /// The table that remembers which rows of this one are deleted.
    #[must_use]
    pub fn of_deleted(&self) -> TableName {
        TableName { schema: self.schema.clone(), name: format!("{}{DELETED}", self.name) }
    }
}

/// Reports what feeds of changes cannot have.
pub(super) fn check_changes(reader: &mut Reader<'_>, section: &Section, table: Option<&TableName>) {
    if section.mentions(reader, "schema") {
        let message = "\"cdc\" reads envelopes as they were written; leave it out".to_owned();
        section.problem(reader, "schema", message);
    }
    if table.is_some_and(|table| table.name.len() + DELETED.len() > IDENTIFIER_BYTES_MAX) {
        let message = format!("leaves no room for {DELETED}, which \"cdc\" adds for deleted rows");
        section.problem(reader, "table", message);
    }
}

/// Reports feeds that write one table in ways that do not go together: by key and otherwise, or
/// by different keys.
pub(super) fn agree(reader: &mut Reader<'_>, feeds: &BTreeMap<String, Feed>) {
    for (name, feed) in feeds {
        let way = |feed: &Feed| (feed.write.is_keyed().then_some(feed.write), feed.key.clone());
        let other = feeds
            .iter()
            .find(|(_, other)| other.table == feed.table && way(other) != way(feed))
            .filter(|(other, _)| *other < name);
        if let Some((other, _)) = other {
            let message = format!(
                "[feed.{other}] writes {} too, but with another `write` or `key`; give both the \
                 same, or a table each",
                feed.table
            );
            let section = reader.feed(name);
            section.problem(reader, "write", message);
        }
    }
}
