//! PostgreSQL goes away under load. A binary of its own, since the other tests need theirs.

use std::time::Duration;

use anyhow::Result;
use apache_avro::Codec;
use weirgate_local::fleet::Tuning;
use weirgate_tests::avro::file;
use weirgate_tests::{DatabaseKind, System, run};

#[test]
fn an_outage_of_the_database_loses_and_buries_nothing() -> Result<()> {
    run(async {
        let programs = env!("CARGO_BIN_EXE_weirgate-programs");
        let (database, tuning) = (DatabaseKind::Postgres, Tuning::default());
        let system = System::start(programs, "test-outage", "outage", database, tuning).await?;
        let importers = [system.importer("i-1")?, system.importer("i-2")?];
        let upload = async {
            for object in 0..120 {
                let name = format!("o{object}");
                let key = format!("impressions/dt=2026-03-01/{name}.avro");
                system.put(&key, file(&name, 200, Codec::Snappy)).await?;
            }
            anyhow::Ok(())
        };
        let outage = async {
            system.until("rows arrive", async || Ok(system.rows().await? > 0)).await?;
            system.crash_postgres(Duration::from_secs(6)).await
        };
        tokio::try_join!(upload, outage)?;
        system.until("all rows are there", async || Ok(system.rows().await? == 24_000)).await?;
        system.drained().await?;
        system.assert_rows(24_000).await?;
        assert_eq!(system.dead_letters().await?.len(), 0);
        let logs = importers.map(|importer| importer.log()).concat();
        assert!(logs.contains("database_away"), "no importer noticed the outage:\n{logs}");
        assert!(logs.contains("back dependency=database"), "nobody saw it return:\n{logs}");
        Ok(())
    })
}
