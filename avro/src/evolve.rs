use super::table::{Column, Dialect, SqlType, quote};

/// One difference between a table and the columns a schema wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The table lacks the column. Allowed by `add_columns` and `widen`.
    Add(Column),
    /// The column is NOT NULL and the field may be null. Allowed by `add_columns` and `widen`: it
    /// refuses fewer rows than before and rewrites none.
    Relax { column: String },
    /// The column's type must grow to hold every value of the field. Allowed by `widen`.
    Widen { column: String, from: SqlType, to: SqlType },
    /// No type change the database does without loss. A permanent fault under every policy.
    Incompatible { field: String, old: SqlType, new: SqlType },
}

/// What must change before rows of `wanted` fit into a table with the columns `existing`.
/// Empty: nothing. Columns only the table has are left alone, NOT NULL or not: they may be the
/// user's, with a default.
pub fn diff(dialect: Dialect, existing: &[Column], wanted: &[Column]) -> Vec<Change> {
    let mut changes = Vec::new();
    for want in wanted {
        let Some(have) = find(existing, &want.name) else {
            changes.push(Change::Add(want.clone()));
            continue;
        };
        match fit(dialect, &have.sql_type, &want.sql_type) {
            Fit::Holds => {}
            Fit::Grow(to) => {
                let (column, from) = (have.name.clone(), have.sql_type.clone());
                changes.push(Change::Widen { column, from, to });
            }
            Fit::Never => changes.push(Change::Incompatible {
                field: want.name.clone(),
                old: have.sql_type.clone(),
                new: want.sql_type.clone(),
            }),
        }
        if want.nullable && !have.nullable {
            changes.push(Change::Relax { column: have.name.clone() });
        }
    }
    changes
}

/// The column of this name: exactly, or else in other letter case, as users' own tables often
/// have `userid` for `userId`.
pub fn find<'c>(columns: &'c [Column], name: &str) -> Option<&'c Column> {
    columns.iter().find(|column| column.name == name).or_else(|| {
        let folded = name.to_lowercase();
        let mut alike = columns.iter().filter(|column| column.name.to_lowercase() == folded);
        match (alike.next(), alike.next()) {
            (Some(column), None) => Some(column),
            _ => None,
        }
    })
}

/// DDL for an allowed change; `None` where SQLite needs none, since its columns hold any value.
pub fn change_sql(dialect: Dialect, table: &str, change: &Change) -> Option<String> {
    match (change, dialect) {
        (Change::Add(column), _) => Some(super::table::add_column_sql(dialect, table, column)),
        (Change::Widen { column, to, .. }, Dialect::Postgres) => {
            Some(format!("alter table {table} alter column {} type {to}", quote(column)))
        }
        (Change::Relax { column }, Dialect::Postgres) => {
            Some(format!("alter table {table} alter column {} drop not null", quote(column)))
        }
        (Change::Widen { .. } | Change::Relax { .. }, Dialect::Sqlite)
        | (Change::Incompatible { .. }, _) => None,
    }
}

enum Fit {
    Holds,
    Grow(SqlType),
    Never,
}

fn fit(dialect: Dialect, have: &SqlType, want: &SqlType) -> Fit {
    use SqlType::*;
    if dialect == Dialect::Sqlite {
        // SQLite's types are affinities: any value is stored as it comes, unless the affinity
        // converts it. Text that looks like a number would become one.
        return match (have.sqlite(), want.sqlite()) {
            (have, want) if have == want => Fit::Holds,
            ("blob", _) => Fit::Holds,
            ("real", "integer") => Fit::Never,
            ("integer", "real") => Fit::Grow(Double),
            _ => Fit::Never,
        };
    }
    match (have, want) {
        (have, want) if have == want => Fit::Holds,
        (Smallint, Integer | Bigint) | (Integer, Bigint) | (Real, Double) => {
            Fit::Grow(want.clone())
        }
        (Bigint, Integer) | (Double, Real | Integer) | (Numeric(None), Numeric(_)) => Fit::Holds,
        (Numeric(None), Integer | Bigint) => Fit::Holds,
        (Smallint | Integer, Real | Double) => Fit::Grow(Double),
        (Smallint | Integer | Bigint, Numeric(to)) => match to {
            // The numeric must hold every integer already there.
            Some((precision, scale)) if precision - scale >= 19 => Fit::Grow(want.clone()),
            _ => Fit::Grow(Numeric(None)),
        },
        (Numeric(Some(_)), Numeric(None)) => Fit::Grow(Numeric(None)),
        (Numeric(Some(have)), Numeric(Some(want))) => widest(*have, *want),
        (Numeric(Some((precision, scale))), Integer | Bigint) => {
            let digits = if *want == Integer { 10 } else { 19 };
            widest((*precision, *scale), (digits, 0))
        }
        // A table its user made may know more than the schema: that all texts are short, or
        // UUIDs, or JSON. Each row is checked.
        (Varchar(_) | Uuid | Json | Jsonb, Text) | (Text, Uuid) => Fit::Holds,
        (Jsonb | Json, _) => Fit::Holds,
        (Timestamp | Timestamptz, Timestamp | Timestamptz) => Fit::Holds,
        // The ticks as they are: what a `long` was before it got its logical type.
        (Bigint, Timestamp | Timestamptz) => Fit::Holds,
        _ => Fit::Never,
    }
}

fn widest(have: (u16, u16), want: (u16, u16)) -> Fit {
    let scale = have.1.max(want.1);
    let whole = (have.0 - have.1).max(want.0 - want.1);
    let to = (whole + scale, scale);
    if to == have { Fit::Holds } else { Fit::Grow(SqlType::Numeric(Some(to))) }
}

#[cfg(test)]
mod tests {
    use super::super::table::Source;
    use super::*;

    fn column(name: &str, sql_type: SqlType, nullable: bool) -> Column {
        Column { name: name.to_owned(), source: Source::Field(name.to_owned()), sql_type, nullable }
    }

    fn check(have: SqlType, want: SqlType) -> Vec<Change> {
        let existing = [column("A", have, true)];
        diff(Dialect::Postgres, &existing, &[column("a", want, true)])
    }

    #[test]
    fn widening_is_a_lattice() {
        use SqlType::*;
        assert_eq!(check(Bigint, Integer), []);
        assert_eq!(check(Jsonb, Integer), []);
        let widen = |from, to| [Change::Widen { column: "A".to_owned(), from, to }];
        assert_eq!(check(Integer, Bigint), widen(Integer, Bigint));
        let (have, want) = (Numeric(Some((10, 2))), Numeric(Some((10, 4))));
        assert_eq!(check(have.clone(), want), widen(have, Numeric(Some((12, 4)))));
        for (have, want) in [(Varchar(9), Text), (Uuid, Text), (Bigint, Timestamptz)] {
            assert_eq!(check(have, want), []);
        }
        assert_eq!(check(Integer, Real), widen(Integer, Double));
        assert!(matches!(check(Text, Integer)[..], [Change::Incompatible { .. }]));
        assert!(matches!(check(Bigint, Double)[..], [Change::Incompatible { .. }]));
    }

    #[test]
    fn a_fixpoint_after_one_round() {
        let wanted = [column("a", SqlType::Bigint, true), column("b", SqlType::Text, false)];
        let existing = [column("a", SqlType::Integer, false)];
        let changes = diff(Dialect::Postgres, &existing, &wanted);
        assert_eq!(changes.len(), 3);
        assert_eq!(diff(Dialect::Postgres, &wanted, &wanted), []);
    }
}
