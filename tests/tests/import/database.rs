//! What a database does to those who write to it: each fault meets several imports in the middle of
//! their transactions, passes, and nothing is lost, there twice, or dead-lettered.

use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use apache_avro::Codec;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use weirgate_local::fleet::Tuning;
use weirgate_tests::avro::{NARROW_SCHEMA, file, file_with};
use weirgate_tests::{DatabaseKind, Process, System, run};

use super::committed;

/// Imports that meet a fault before it passes.
const MEETINGS: u32 = 3;

const OBJECTS: i64 = 4;
const ROWS: u64 = 10;

#[test]
fn it_fails_in_the_middle_of_a_transaction() -> Result<()> {
    run(async {
        let (system, _importer) = start("faults").await?;
        // The server's own errors, from where a full disk or a lost race would raise them: while
        // rows are written. A sequence counts, since no rollback takes its numbers back.
        system
            .execute(
                "CREATE SEQUENCE faults;
                 CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF nextval('faults') <= TG_ARGV[1]::int THEN
                         RAISE EXCEPTION 'as planned' USING ERRCODE = TG_ARGV[0];
                     END IF;
                     RETURN NULL;
                 END $$",
            )
            .await?;
        let (disk_full, out_of_memory) = ("53100", "53200");
        let (serialization_failure, deadlock, read_only) = ("40001", "40P01", "25006");
        let codes = [disk_full, out_of_memory, serialization_failure, deadlock, read_only];
        let tables = ["impressions", "weirgate.object"];
        for (code, table) in codes.iter().flat_map(|code| tables.map(|table| (code, table))) {
            system
                .execute(&format!(
                    "SELECT setval('faults', 1, false);
                     CREATE TRIGGER fail AFTER INSERT ON {table}
                         FOR EACH STATEMENT EXECUTE FUNCTION fail('{code}', '{MEETINGS}')"
                ))
                .await?;
            imported(&system, &format!("{table}-{code}")).await?;
            let met = system.number("SELECT last_value FROM faults").await?;
            assert!(met > i64::from(MEETINGS), "{code}: the trigger ran {met} times");
            system.execute(&format!("DROP TRIGGER fail ON {table}")).await?;
        }
        nothing_else(&system).await
    })
}

#[test]
fn a_statement_takes_too_long() -> Result<()> {
    run(async {
        let (system, _importer) = start("timeout").await?;
        system
            .execute(&format!(
                "CREATE SEQUENCE faults;
                 CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF nextval('faults') <= {MEETINGS} THEN PERFORM pg_sleep(30); END IF;
                     RETURN NULL;
                 END $$;
                 CREATE TRIGGER delay AFTER INSERT ON impressions
                     FOR EACH STATEMENT EXECUTE FUNCTION delay()"
            ))
            .await?;
        set(&system, "statement_timeout = '200ms'").await?;
        imported(&system, "timeout").await?;
        let met = system.number("SELECT last_value FROM faults").await?;
        assert!(met > i64::from(MEETINGS), "the trigger ran {met} times");
        nothing_else(&system).await
    })
}

#[test]
fn two_transactions_wait_for_each_other() -> Result<()> {
    run(async {
        let (system, importer) = start("deadlock").await?;
        // Only the importer's wait ends in a look for deadlocks, once, after this time.
        set(&system, "deadlock_timeout = '3s'").await?;
        let mut other = PgConnection::connect(&system.fleet.database).await?;
        let begin = "SET deadlock_timeout = '1h'; BEGIN; LOCK TABLE weirgate.object IN SHARE MODE";
        sqlx::raw_sql(begin).execute(&mut other).await?;
        system.put(&super::key("deadlock"), file("deadlock", ROWS, Codec::Null)).await?;
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
             AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO weirgate.object%'";
        system
            .until(
                "an import waits for the ledger",
                async || Ok(system.number(waiting).await? == 1),
            )
            .await?;
        // It has written rows already.
        sqlx::raw_sql("LOCK TABLE impressions; COMMIT").execute(&mut other).await?;
        imported(&system, "after").await?;
        system
            .until("both are there", async || Ok(committed(&system).await? == OBJECTS + 2))
            .await?;
        assert!(importer.log().contains("deadlock detected"), "{}", importer.log());
        nothing_else(&system).await
    })
}

#[test]
fn it_takes_no_connections() -> Result<()> {
    run(async {
        let (system, importer) = start("closed").await?;
        let options = PgConnectOptions::from_str(&system.fleet.database)?;
        let name = options.get_database().context("the URL names one")?.to_owned();
        // A database does not close itself.
        let mut other = PgConnection::connect_with(&options.database("postgres")).await?;
        let allow = |allowed: bool| {
            format!(
                "ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS {allowed};
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            )
        };
        // What a database says while it is restored or renamed, to administrators as well.
        sqlx::raw_sql(&allow(false)).execute(&mut other).await?;
        // A connection used a moment ago would not be asked first whether it still works.
        tokio::time::sleep(Duration::from_secs(2)).await;
        system.put(&super::key("closed"), file("closed", ROWS, Codec::Null)).await?;
        system
            .until("the importer is refused", async || {
                Ok(importer.log().contains("not currently accepting connections"))
            })
            .await?;
        sqlx::raw_sql(&allow(true)).execute(&mut other).await?;
        system.until("it is there", async || Ok(committed(&system).await? == 2)).await?;
        nothing_else(&system).await
    })
}

/// The importer has a plan for the column as it was. PostgreSQL would take eight bytes of an integer
/// for a moment in 2000, and for zero as a numeric.
#[test]
fn somebody_else_alters_a_column() -> Result<()> {
    run(async {
        let (name, tuning) = ("database-altered", Tuning::default());
        let system = super::system(name, DatabaseKind::Postgres, tuning).await?;
        let importer = system.importer("i-1")?;
        let narrow = async |name: &str| {
            let bytes = file_with(NARROW_SCHEMA, name, ROWS, Codec::Null);
            system.put(&super::key(name), bytes).await
        };
        narrow("0").await?;
        system.until("it is there", async || Ok(committed(&system).await? == 1)).await?;
        let sum = system.number("SELECT sum(n)::bigint FROM impressions").await?;
        for (number, wider) in (2..).zip(["bigint", "numeric"]) {
            let alter = format!("ALTER TABLE impressions ALTER COLUMN n TYPE {wider}");
            system.execute(&alter).await?;
            narrow(wider).await?;
            let there = async || Ok(committed(&system).await? == number);
            system.until("the next is there", there).await?;
            let now = system.number("SELECT sum(n)::bigint FROM impressions").await?;
            assert_eq!(now, number * sum, "{wider}");
        }
        assert!(importer.log().contains("n is numeric now, it was bigint"), "{}", importer.log());
        nothing_else(&system).await?;
        system
            .execute(
                "ALTER TABLE impressions ALTER COLUMN n TYPE timestamptz USING to_timestamp(n)",
            )
            .await?;
        narrow("timestamptz").await?;
        let refused = async || {
            let letters = system.dead_letters().await?;
            Ok(format!("{letters:?}").contains("incompatible_schema"))
        };
        system.until("it is refused", refused).await?;
        system.assert_rows(3 * ROWS).await
    })
}

/// An importer that has imported an object, so that all tables are there.
async fn start(name: &str) -> Result<(System, Process)> {
    let name = format!("database-{name}");
    let system = super::system(&name, DatabaseKind::Postgres, Tuning::default()).await?;
    let importer = system.importer("i-1")?;
    system.put(&super::key("first"), file("first", ROWS, Codec::Null)).await?;
    system.until("the tables are there", async || Ok(committed(&system).await? == 1)).await?;
    Ok((system, importer))
}

/// Uploads [`OBJECTS`] objects, and waits until they are imported.
async fn imported(system: &System, name: &str) -> Result<()> {
    let before = committed(system).await?;
    for object in 0..OBJECTS {
        let name = format!("{name}-{object}");
        system.put(&super::key(&name), file(&name, ROWS, Codec::Null)).await?;
    }
    system
        .until("they are imported", async || Ok(committed(system).await? >= before + OBJECTS))
        .await
}

/// For all sessions to come, and none of those before.
async fn set(system: &System, setting: &str) -> Result<()> {
    system
        .execute(&format!(
            "DO $$ BEGIN
                 EXECUTE format('ALTER DATABASE %I SET ', current_database()) || $set${setting}$set$;
             END $$"
        ))
        .await?;
    system.end_sessions().await
}

/// Everything in the ledger is in the table once, and nothing anywhere else.
async fn nothing_else(system: &System) -> Result<()> {
    system.drained().await?;
    let committed = committed(system).await?;
    system.assert_rows(committed.unsigned_abs() * ROWS).await?;
    assert_eq!(system.dead_letters().await?.len(), 0);
    Ok(())
}
