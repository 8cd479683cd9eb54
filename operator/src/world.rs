//! The configuration and the clients made from it: what every command starts with.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aws_config::SdkConfig;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use weirgate_common::aws;
use weirgate_common::config::{Config, Database, Feed, Fleet};
use weirgate_common::ledger::Ledger;
use weirgate_common::queue::Queue;

/// A person's commands ask one question at a time.
const CONNECTIONS_MAX: u32 = 2;

/// A database that has not answered by then is away.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    /// Where the configuration was read from, to name it in messages.
    pub(crate) config_path: String,
    pub(crate) sdk: SdkConfig,
}

impl World {
    pub(crate) fn queue(&self, fleet: &Fleet) -> Queue {
        Queue::new(aws::sqs(&self.sdk), fleet.queue.clone())
    }

    /// The fleets asked for: the named one, or all of them.
    pub(crate) fn fleets<'a>(
        &'a self,
        name: Option<&'a str>,
    ) -> Result<Vec<(&'a str, &'a Fleet)>, weirgate_common::config::UnknownFleet> {
        match name {
            Some(_) => Ok(vec![self.config.fleet(name)?]),
            None => Ok(self.config.fleets.iter().map(|(n, fleet)| (n.as_str(), fleet)).collect()),
        }
    }

    pub(crate) fn feeds_of<'a>(
        &'a self,
        fleet: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Feed)> {
        let feeds = self.config.feeds.iter().filter(move |(_, feed)| feed.fleet == fleet);
        feeds.map(|(name, feed)| (name.as_str(), feed))
    }

    /// The database without changing anything in it: connecting to SQLite would create the file.
    pub(crate) async fn database(&self) -> Result<Ledger> {
        if let Database::Sqlite { path } = &self.config.database
            && !path.exists()
        {
            bail!(
                "there is no database at {}; the first importer creates it, or correct `database` \
                 in {}",
                path.display(),
                self.config_path
            );
        }
        if let Database::Postgres { url } = &self.config.database {
            // A pool goes on trying and then says that it waited: one connection says why.
            let failed = || {
                format!(
                    "cannot connect to {}; check that it is running and that the URL is right",
                    self.config.database
                )
            };
            let options = PgConnectOptions::from_str(url).with_context(failed)?;
            let connection = tokio::time::timeout(ANSWER_MAX, options.connect())
                .await
                .with_context(failed)?
                .with_context(failed)?;
            connection.close().await.with_context(failed)?;
        }
        Ok(Ledger::connect(&self.config.database, CONNECTIONS_MAX).await?)
    }

    /// The database with a ledger in it that this program understands.
    pub(crate) async fn ledger(&self) -> Result<Ledger> {
        let ledger = self.database().await?;
        let (found, known) = (ledger.version().await?, Ledger::version_known());
        if found == 0 {
            bail!("{} has no ledger yet; the first importer makes it", self.config.database);
        }
        if found > known {
            bail!(
                "the ledger is at schema version {found}, this program knows {known}; use the \
                 newer release of weirgate"
            );
        }
        if found < known {
            bail!(
                "the ledger is at schema version {found}, this program needs {known}; start an \
                 importer or scaler of this release first, it brings the ledger up to date"
            );
        }
        Ok(ledger)
    }
}
