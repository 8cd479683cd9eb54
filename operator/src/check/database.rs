//! The database: reachable, with a ledger this release knows, and permitted to do what an import
//! does. Nothing is changed: what must be tried is rolled back.

use sqlx::postgres::PgPool;
use sqlx::sqlite::SqlitePool;
use sqlx::{Connection, Executor, Row};
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::config::{Database, Evolve, Feed, WriteMode};
use weirgate_common::fault::chain;
use weirgate_common::ledger::Ledger;

use super::clocks;
use super::finding::{Finding, Section};
use crate::inventory;
use crate::world::World;

pub(super) async fn check(world: &World) -> Vec<Section> {
    let subject = format!("database {}", world.config.database);
    let ledger = match world.database().await {
        Ok(ledger) => ledger,
        Err(error) => {
            let finding = match &world.config.database {
                Database::Sqlite { path } if !path.exists() => absent_file(path),
                _ => Finding::fail(
                    "database_reachable",
                    chain(error.as_ref()),
                    "start it, or correct `database` (host, port, user, password, TLS) and the network path to it",
                ),
            };
            return vec![Section::new(subject, vec![finding])];
        }
    };
    let mut findings = vec![Finding::ok("database_reachable", "reachable")];
    let mut sections = Vec::new();
    let found = ledger.version().await;
    match (&ledger, &found) {
        (_, Ok(found)) => findings.push(version(*found, Ledger::version_known())),
        // Then the missing privileges are named below.
        (Ledger::Postgres(_), Err(_)) => {}
        (Ledger::Sqlite(_), Err(error)) => findings.push(Finding::fail(
            "ledger_version",
            chain(error),
            "the file may be damaged, or be no SQLite database: `PRAGMA integrity_check` tells",
        )),
    }
    match &ledger {
        Ledger::Postgres(pool) => {
            findings.extend(clock_of(pool).await);
            findings.extend(or_unknown(postgres_ledger(pool).await));
            for (name, feed) in &world.config.feeds {
                let findings = or_unknown(postgres_table(pool, feed).await);
                sections.push(table_section(name, feed, findings));
            }
        }
        Ledger::Sqlite(pool) => {
            findings.push(sqlite_writable(pool).await);
            for (name, feed) in &world.config.feeds {
                let columns = inventory::columns(&ledger, &feed.table).await;
                let findings = sqlite_table(feed, columns);
                sections.push(table_section(name, feed, findings));
            }
        }
    }
    ledger.close().await;
    sections.insert(0, Section::new(subject, findings));
    sections
}

fn table_section(name: &str, feed: &Feed, findings: Vec<Finding>) -> Section {
    Section::new(format!("feed {name} → table {}", feed.table), findings)
}

/// A question the database refused to answer is no proof of a fault.
fn or_unknown(findings: Result<Vec<Finding>, sqlx::Error>) -> Vec<Finding> {
    findings.unwrap_or_else(|error| {
        vec![Finding::warn(
            "privileges",
            format!("privileges are unknown: {}", chain(&error)),
            "check them by hand, or run this as the importers' user",
        )]
    })
}

fn absent_file(path: &std::path::Path) -> Finding {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => std::path::Path::new("."),
    };
    if folder.is_dir() {
        return Finding::warn(
            "database_reachable",
            format!("{} does not exist yet", path.display()),
            "nothing to do: the first importer creates it",
        );
    }
    Finding::fail(
        "database_reachable",
        format!("neither {} nor its folder exists", path.display()),
        "create the folder, or correct `database`",
    )
}

fn version(found: i64, known: i64) -> Finding {
    if found == 0 {
        return Finding::warn(
            "ledger_version",
            "no ledger yet",
            "nothing to do: the first importer or scaler makes it",
        );
    }
    if found > known {
        return Finding::fail(
            "ledger_version",
            format!("the ledger is at version {found}, this release knows {known}"),
            "use the newer release: an older one refuses to start",
        );
    }
    if found < known {
        return Finding::warn(
            "ledger_version",
            format!("the ledger is at version {found}, this release brings {known}"),
            "nothing to do: the next importer or scaler brings it up to date",
        );
    }
    Finding::ok("ledger_version", format!("ledger at version {found}"))
}

async fn clock_of(pool: &PgPool) -> Option<Finding> {
    let before = clock::now();
    let theirs: Timestamp =
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(pool).await.ok()?;
    Some(clocks::compare("database_clock", "the database's clock", theirs, before, clock::now()))
}

async fn postgres_ledger(pool: &PgPool) -> Result<Vec<Finding>, sqlx::Error> {
    // A role without USAGE may still ask the catalogue.
    let (exists, usage, creates): (bool, bool, bool) = sqlx::query_as(
        "SELECT count(*) > 0, coalesce(bool_and(has_schema_privilege(oid, 'USAGE')), false),
                has_database_privilege(current_database(), 'CREATE')
         FROM pg_namespace WHERE nspname = 'weirgate'",
    )
    .fetch_one(pool)
    .await?;
    if !exists {
        return Ok(vec![match creates {
            true => Finding::ok("ledger_privileges", "may create the ledger's schema"),
            false => Finding::fail(
                "ledger_privileges",
                "may not create the ledger's schema `weirgate`",
                format!("GRANT CREATE ON DATABASE … TO {}", user(pool).await?),
            ),
        }]);
    }
    // `has_table_privilege` with a list means any of them, so each is asked for.
    let mut lacking: Vec<String> = sqlx::query_scalar(
        "SELECT string_agg(p.name, ', ' ORDER BY p.name) || ' on ' || c.relname
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS p (name)
         WHERE n.nspname = 'weirgate' AND c.relkind IN ('r', 'p')
           AND NOT has_table_privilege(c.oid, p.name)
         GROUP BY c.relname ORDER BY c.relname",
    )
    .fetch_all(pool)
    .await?;
    if !usage {
        lacking.insert(0, "USAGE on the schema".to_owned());
    }
    Ok(vec![match lacking.is_empty() {
        true => Finding::ok("ledger_privileges", "may read and write the ledger"),
        false => Finding::fail(
            "ledger_privileges",
            format!("lacks privileges on the ledger's schema `weirgate`: {}", lacking.join("; ")),
            format!(
                "GRANT USAGE ON SCHEMA weirgate TO {0}; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA weirgate TO {0}; \
                 GRANT USAGE ON ALL SEQUENCES IN SCHEMA weirgate TO {0}",
                user(pool).await?
            ),
        ),
    }])
}

async fn user(pool: &PgPool) -> Result<String, sqlx::Error> {
    sqlx::query_scalar("SELECT quote_ident(current_user)").fetch_one(pool).await
}

async fn postgres_table(pool: &PgPool, feed: &Feed) -> Result<Vec<Finding>, sqlx::Error> {
    let schema = feed.table.postgres_schema();
    let table = sqlx::query(
        "SELECT n.oid IS NOT NULL,
                n.oid IS NOT NULL AND has_schema_privilege(n.oid, 'USAGE'),
                n.oid IS NOT NULL AND has_schema_privilege(n.oid, 'CREATE'),
                has_database_privilege(current_database(), 'CREATE'),
                c.oid IS NOT NULL,
                c.oid IS NOT NULL AND has_table_privilege(c.oid, 'SELECT'),
                c.oid IS NOT NULL AND has_table_privilege(c.oid, 'INSERT'),
                c.oid IS NOT NULL AND has_table_privilege(c.oid, 'DELETE'),
                c.oid IS NOT NULL AND pg_has_role(c.relowner, 'USAGE'),
                EXISTS (SELECT 1 FROM pg_attribute a
                        WHERE a.attrelid = c.oid AND a.attname = '_object' AND NOT attisdropped),
                c.oid IS NOT NULL AND has_table_privilege(c.oid, 'UPDATE')
         FROM (SELECT 1) AS one
              LEFT JOIN pg_namespace n ON n.nspname = $1
              LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = $2
                        AND c.relkind IN ('r', 'p', 'f', 'v')",
    )
    .bind(schema)
    .bind(&feed.table.name)
    .fetch_one(pool)
    .await?;
    let facts = TableFacts {
        schema_exists: table.try_get(0)?,
        schema_usage: table.try_get(1)?,
        schema_create: table.try_get(2)?,
        database_create: table.try_get(3)?,
        exists: table.try_get(4)?,
        select: table.try_get(5)?,
        insert: table.try_get(6)?,
        delete: table.try_get(7)?,
        owner: table.try_get(8)?,
        has_object_column: table.try_get(9)?,
        update: table.try_get(10)?,
    };
    let user = user(pool).await?;
    Ok(judge_table(feed, schema, &user, &facts))
}

/// What PostgreSQL says about one feed's table and the schema it lies in.
#[derive(Clone, Copy, Debug, Default)]
struct TableFacts {
    schema_exists: bool,
    schema_usage: bool,
    schema_create: bool,
    database_create: bool,
    exists: bool,
    select: bool,
    insert: bool,
    update: bool,
    delete: bool,
    owner: bool,
    has_object_column: bool,
}

fn judge_table(feed: &Feed, schema: &str, user: &str, facts: &TableFacts) -> Vec<Finding> {
    let table = feed.table.in_postgres();
    if !facts.schema_exists {
        return vec![match facts.database_create {
            true => Finding::ok(
                "table_privileges",
                format!(
                    "neither the table nor its schema `{schema}` exists yet, and the importer may create both"
                ),
            ),
            false => Finding::fail(
                "table_privileges",
                format!("there is no schema `{schema}`, and {user} may not create it"),
                format!("CREATE SCHEMA \"{schema}\" AUTHORIZATION {user}"),
            ),
        }];
    }
    if !facts.exists {
        return vec![match facts.schema_usage && facts.schema_create {
            true => Finding::ok(
                "table_privileges",
                "does not exist yet, and the importer may create it",
            ),
            false => Finding::fail(
                "table_privileges",
                format!("does not exist, and {user} may not create it"),
                format!("GRANT USAGE, CREATE ON SCHEMA \"{schema}\" TO {user}"),
            ),
        }];
    }
    let mut lacking = Vec::new();
    if !facts.schema_usage {
        lacking.push(format!("USAGE ON SCHEMA \"{schema}\""));
    }
    // Replacing an object deletes the rows of its old version.
    let (deletes, keyed) = (feed.write == WriteMode::Replace, feed.write.is_keyed());
    for (held, privilege, needed) in [
        (facts.select, "SELECT", deletes || keyed),
        (facts.insert, "INSERT", true),
        (facts.update, "UPDATE", keyed),
        (facts.delete, "DELETE", deletes || feed.write == WriteMode::Cdc),
    ] {
        if needed && !held {
            lacking.push(format!("{privilege} ON {table}"));
        }
    }
    let mut findings = Vec::new();
    if lacking.is_empty() {
        findings.push(Finding::ok("table_privileges", "exists, and may be written"));
    } else {
        let grants: Vec<String> =
            lacking.iter().map(|privilege| format!("GRANT {privilege} TO {user}")).collect();
        findings.push(Finding::fail(
            "table_privileges",
            format!("{user} lacks {}", lacking.join(", ")),
            grants.join("; "),
        ));
    }
    if deletes && !facts.has_object_column {
        findings.push(Finding::fail(
            "table_lineage",
            "has no column `_object`, which `write = \"replace\"` needs to find an object's rows",
            format!("ALTER TABLE {table} ADD COLUMN _object bigint, or set write = \"append\""),
        ));
    }
    if feed.evolve != Evolve::Fixed && !facts.owner {
        findings.push(Finding::warn(
            "table_owner",
            format!("{user} is not its owner, so it cannot follow newer schemas"),
            format!("ALTER TABLE {table} OWNER TO {user}, or set evolve = \"fixed\""),
        ));
    }
    findings
}

/// SQLite has no privileges; what is left is whether the table can be fed.
fn sqlite_table(feed: &Feed, columns: anyhow::Result<Vec<String>>) -> Vec<Finding> {
    let columns = match columns {
        Ok(columns) => columns,
        Err(error) => {
            return vec![Finding::fail(
                "table_readable",
                chain(error.as_ref()),
                "the file may be damaged: `PRAGMA integrity_check` tells",
            )];
        }
    };
    if columns.is_empty() {
        return vec![Finding::ok("table_readable", "does not exist yet; the importer creates it")];
    }
    let facts = TableFacts {
        schema_exists: true,
        schema_usage: true,
        exists: true,
        select: true,
        insert: true,
        update: true,
        delete: true,
        owner: true,
        has_object_column: columns.iter().any(|column| column == "_object"),
        ..TableFacts::default()
    };
    judge_table(feed, "", "", &facts)
}

/// A file may be readable and not writable, or lie on a full disk: creating a table tells.
async fn sqlite_writable(pool: &SqlitePool) -> Finding {
    let tried = async {
        let mut connection = pool.acquire().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        transaction.execute("CREATE TABLE weirgate_check (written integer)").await?;
        transaction.execute("INSERT INTO weirgate_check VALUES (1)").await?;
        transaction.rollback().await
    };
    match tried.await {
        Ok(()) => Finding::ok("database_writable", "tables can be created and written"),
        Err(error) => Finding::fail(
            "database_writable",
            format!("cannot be written: {}", chain(&error)),
            "let this user write the file and its folder (SQLite keeps its log beside it), and look for free space",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn feed(write: &str) -> Feed {
        let text = format!(
            "database = \"sqlite://w.db\"\n\
             [fleet.ads]\nqueue = \"https://sqs.eu-west-1.amazonaws.com/1/ads\"\n\
             [feed.imp]\nfleet = \"ads\"\nobjects = \"s3://ads/imp/**\"\ntable = \"ads.imp\"\n\
             write = \"{write}\"\n{}",
            if write == "upsert" { "key = [\"id\"]\n" } else { "" }
        );
        let config = weirgate_common::config::Config::parse(&text, &Default::default()).unwrap();
        config.feeds["imp"].clone()
    }

    fn judged(write: &str, facts: TableFacts) -> Vec<(Level, String)> {
        judge_table(&feed(write), "ads", "w", &facts)
            .into_iter()
            .map(|finding| (finding.level, finding.remedy.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn each_missing_privilege_names_its_grant() {
        let nothing = TableFacts::default();
        assert_eq!(
            judged("replace", nothing),
            [(Level::Fail, "CREATE SCHEMA \"ads\" AUTHORIZATION w".to_owned())]
        );
        assert_eq!(
            judged("replace", TableFacts { database_create: true, ..nothing })[0].0,
            Level::Ok
        );
        let schema = TableFacts { schema_exists: true, schema_usage: true, ..nothing };
        assert_eq!(
            judged("replace", schema),
            [(Level::Fail, "GRANT USAGE, CREATE ON SCHEMA \"ads\" TO w".to_owned())]
        );
        let foreign = TableFacts { exists: true, insert: true, ..schema };
        assert_eq!(
            judged("replace", foreign),
            [
                (
                    Level::Fail,
                    "GRANT SELECT ON \"ads\".\"imp\" TO w; GRANT DELETE ON \"ads\".\"imp\" TO w".to_owned()
                ),
                (
                    Level::Fail,
                    "ALTER TABLE \"ads\".\"imp\" ADD COLUMN _object bigint, or set write = \"append\""
                        .to_owned()
                ),
                (
                    Level::Warn,
                    "ALTER TABLE \"ads\".\"imp\" OWNER TO w, or set evolve = \"fixed\"".to_owned()
                ),
            ]
        );
        assert_eq!(
            judged("upsert", TableFacts { owner: true, ..foreign }),
            [(
                Level::Fail,
                "GRANT SELECT ON \"ads\".\"imp\" TO w; GRANT UPDATE ON \"ads\".\"imp\" TO w"
                    .to_owned()
            )]
        );
        assert_eq!(
            judged("append", TableFacts { owner: true, ..foreign }),
            [(Level::Ok, String::new())]
        );
    }

    #[test]
    fn ledgers_of_other_releases() {
        assert_eq!(version(0, 3).level, Level::Warn);
        assert_eq!(version(2, 3).level, Level::Warn);
        assert_eq!(version(3, 3).level, Level::Ok);
        assert_eq!(version(4, 3).level, Level::Fail);
    }
}
