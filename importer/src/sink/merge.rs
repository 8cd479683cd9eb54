//! Rows written by key: they are staged in a table of the transaction's own, then merged into the
//! feed's in a few statements, whose number does not depend on that of the rows.
//!
//! A row is written over as a whole. If it kept what the newer object has no column for, the table
//! would depend on the order in which objects arrived.

use weirgate_avro::envelope::{CHANGE_COLUMN, DELETE, PUT, TRUNCATE};
use weirgate_avro::table::{Column, Dialect, OBJECT_COLUMN, Source, VERSION_COLUMN, quote};

/// The statements for one table and one schema.
#[derive(Debug)]
pub(super) struct Merge {
    dialect: Dialect,
    /// Quoted, with its schema where it has one.
    table: String,
    /// The table that remembers deleted rows, where what is staged are changes.
    deleted: Option<String>,
    /// The columns that rows have, but for the version.
    names: Vec<String>,
    /// The same, quoted, separated by commas.
    columns: String,
    /// Quoted.
    key: Vec<String>,
}

/// The order of the staged rows, which is that of the file.
const ROW: &str = "_weirgate_row";

impl Merge {
    /// `columns` are those of the rows.
    pub(super) fn new(
        dialect: Dialect,
        table: &str,
        deleted: Option<String>,
        columns: &[Column],
        key: &[String],
    ) -> Self {
        let quoted = |names: &[String]| names.iter().map(|name| quote(name)).collect::<Vec<_>>();
        let names: Vec<String> = columns
            .iter()
            .filter(|column| column.source != Source::Version)
            .map(|column| column.name.clone())
            .collect();
        let (columns, key) = (quoted(&names).join(", "), quoted(key));
        Merge { dialect, table: table.to_owned(), deleted, names, columns, key }
    }

    /// What staged rows have, quoted, separated by commas.
    pub(super) fn staged(&self) -> String {
        let (version, change) = (quote(VERSION_COLUMN), quote(CHANGE_COLUMN));
        match self.deleted {
            None => format!("{}, {version}", self.columns),
            Some(_) => format!("{}, {version}, {change}", self.columns),
        }
    }

    /// The same, as places for values.
    pub(super) fn places(&self) -> String {
        vec!["?"; self.names.len() + if self.is_of_changes() { 2 } else { 1 }].join(", ")
    }

    /// Where rows are staged.
    pub(super) fn stage(&self) -> &'static str {
        match self.dialect {
            Dialect::Postgres => "pg_temp.weirgate_stage",
            Dialect::Sqlite => "temp.weirgate_stage",
        }
    }

    /// Makes the staging table.
    pub(super) fn begin(&self) -> String {
        let (table, stage, change) = (&self.table, self.stage(), quote(CHANGE_COLUMN));
        let columns = self.staged().replace(&change, &format!("CAST(NULL AS text) AS {change}"));
        match self.dialect {
            Dialect::Postgres => format!(
                "CREATE TEMPORARY TABLE weirgate_stage ON COMMIT DROP AS
                 SELECT {columns} FROM {table} WITH NO DATA;
                 ALTER TABLE {stage} ADD COLUMN {ROW} bigint GENERATED ALWAYS AS IDENTITY"
            ),
            Dialect::Sqlite => {
                format!("CREATE TABLE {stage} AS SELECT {columns} FROM {table} WHERE false")
            }
        }
    }

    /// Gives staged rows of the first version the second.
    pub(super) fn bend(&self) -> String {
        let (stage, version) = (self.stage(), quote(VERSION_COLUMN));
        format!("UPDATE {stage} SET {version} = $2 WHERE {version} = $1")
    }

    /// Merges what is staged: of the rows of one key the newest, and of one object the last, unless
    /// the table has a newer one. `existing` are the table's columns as they are now.
    pub(super) fn upsert(&self, existing: &[Column]) -> String {
        let Merge { table, columns, .. } = self;
        let (key, assignments) = (self.key.join(", "), self.assignments(existing));
        let (stage, row, version) = (self.stage(), self.row(), quote(VERSION_COLUMN));
        let (kept, new, staged) =
            (self.version("kept"), self.version("excluded"), self.version("staged"));
        // In the order of the key, so that two importers never wait for each other's rows.
        format!(
            "INSERT INTO {table} AS kept ({columns}, {version})
             SELECT {columns}, {version} FROM (
                 SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY {staged} DESC, {row} DESC)
                               AS _weirgate_nth
                 FROM {stage} AS staged) AS ranked
             WHERE _weirgate_nth = 1 ORDER BY {key}
             ON CONFLICT ({key}) DO UPDATE SET {assignments}
             WHERE kept.{version} IS NULL OR {kept} <= {new}"
        )
    }

    /// Leaves of the staged changes of each key the newest, and of all truncates the newest, which
    /// have no key.
    pub(super) fn newest_changes(&self) -> String {
        let (stage, row, key) = (self.stage(), self.row(), self.key.join(", "));
        let version = self.version("staged");
        format!(
            "DELETE FROM {stage} WHERE {row} IN (
                 SELECT {ROW} FROM (
                     SELECT {row} AS {ROW},
                            row_number() OVER (PARTITION BY {key} ORDER BY {version} DESC, {row} DESC)
                                AS _weirgate_nth
                     FROM {stage} AS staged) AS ranked
                 WHERE _weirgate_nth > 1)"
        )
    }

    /// How many truncates are staged: one or none.
    pub(super) fn truncates(&self) -> String {
        format!(
            "SELECT count(*) FROM {} WHERE {} = '{TRUNCATE}'",
            self.stage(),
            quote(CHANGE_COLUMN)
        )
    }

    /// Takes away everything that is older than the staged truncate.
    pub(super) fn truncate(&self) -> String {
        let (table, stage, change) = (&self.table, self.stage(), quote(CHANGE_COLUMN));
        let (kept, gone) = (self.version("kept"), self.version("gone"));
        let staged = self.version("staged");
        let truncate =
            format!("(SELECT {staged} FROM {stage} AS staged WHERE {change} = '{TRUNCATE}')");
        let mut statements = vec![
            format!(
                "DELETE FROM {stage} AS staged WHERE {change} <> '{TRUNCATE}' AND {staged} < {truncate}"
            ),
            format!("DELETE FROM {table} AS kept WHERE {kept} IS NULL OR {kept} < {truncate}"),
        ];
        // Older truncates, too: this one stands for them.
        statements.extend(
            self.deleted
                .iter()
                .map(|d| format!("DELETE FROM {d} AS gone WHERE {gone} <= {truncate}")),
        );
        statements.join(";\n")
    }

    /// Applies the newest changes of each key, unless the table, or its memory of deleted rows,
    /// knows something newer. `existing` are the table's columns as they are now. Nobody else may
    /// merge into the table meanwhile: a row and the memory of its deletion are not one row, whose
    /// lock would do.
    pub(super) fn apply(&self, existing: &[Column]) -> String {
        let Merge { table, columns, deleted, .. } = self;
        let Some(deleted) = deleted else { return String::new() };
        let (stage, key, change) = (self.stage(), self.key.join(", "), quote(CHANGE_COLUMN));
        let (version, assignments) = (quote(VERSION_COLUMN), self.assignments(existing));
        let (staged, gone, kept) =
            (self.version("staged"), self.version("gone"), self.version("kept"));
        let first = &self.key[0];
        let statements = [
            format!(
                "DELETE FROM {stage} AS staged
                 WHERE {staged} < (SELECT max({gone}) FROM {deleted} AS gone WHERE gone.{first} IS NULL)"
            ),
            format!(
                "DELETE FROM {stage} AS staged WHERE EXISTS (
                     SELECT 1 FROM {deleted} AS gone WHERE {} AND {gone} > {staged})",
                self.same_key("gone")
            ),
            format!(
                "DELETE FROM {stage} AS staged WHERE EXISTS (
                     SELECT 1 FROM {table} AS kept WHERE {} AND {kept} > {staged})",
                self.same_key("kept")
            ),
            format!(
                "DELETE FROM {table} WHERE ({key}) IN (
                     SELECT {key} FROM {stage} WHERE {change} = '{DELETE}')"
            ),
            format!(
                "DELETE FROM {deleted} WHERE ({key}) IN (
                     SELECT {key} FROM {stage} WHERE {change} <> '{TRUNCATE}')"
            ),
            format!(
                "INSERT INTO {deleted} ({key}, {version})
                 SELECT {key}, {version} FROM {stage} WHERE {change} <> '{PUT}'"
            ),
            format!(
                "INSERT INTO {table} ({columns}, {version})
                 SELECT {columns}, {version} FROM {stage} WHERE {change} = '{PUT}' ORDER BY {key}
                 ON CONFLICT ({key}) DO UPDATE SET {assignments}"
            ),
        ];
        statements.join(";\n")
    }

    fn same_key(&self, table: &str) -> String {
        let same = self.key.iter().map(|name| format!("{table}.{name} = staged.{name}"));
        same.collect::<Vec<_>>().join(" AND ")
    }

    pub(super) fn is_of_changes(&self) -> bool {
        self.deleted.is_some()
    }

    /// Removes the staging table, so that the transaction can stage another object's rows.
    pub(super) fn end(&self) -> String {
        format!("DROP TABLE {}", self.stage())
    }

    /// What a newer row does to an older one.
    fn assignments(&self, existing: &[Column]) -> String {
        let mut assignments: Vec<String> = self
            .names
            .iter()
            .map(String::as_str)
            .chain([VERSION_COLUMN])
            .map(|name| format!("{0} = excluded.{0}", quote(name)))
            .collect();
        let absent = existing.iter().filter(|column| {
            let kept = [OBJECT_COLUMN, VERSION_COLUMN].contains(&column.name.as_str());
            column.nullable && !kept && !self.names.contains(&column.name)
        });
        // SQLite knows no DEFAULT here; in tables that Weirgate made both mean null.
        let nothing = match self.dialect {
            Dialect::Postgres => "DEFAULT",
            Dialect::Sqlite => "NULL",
        };
        assignments.extend(absent.map(|column| format!("{} = {nothing}", quote(&column.name))));
        assignments.join(", ")
    }

    fn row(&self) -> &'static str {
        match self.dialect {
            Dialect::Postgres => ROW,
            // SQLite numbers rows by itself.
            Dialect::Sqlite => "_rowid_",
        }
    }

    /// Versions compare by bytes, whatever the locale of the database.
    fn version(&self, table: &str) -> String {
        let collation = match self.dialect {
            Dialect::Postgres => " COLLATE \"C\"",
            Dialect::Sqlite => "",
        };
        format!("{table}.{}{collation}", quote(VERSION_COLUMN))
    }
}
