//! The configuration and the clients made from it: what every command starts with.

use anyhow::{Result, bail};
use aws_config::SdkConfig;
use weirgate_common::aws;
use weirgate_common::config::{Config, Database, Feed, Fleet};
use weirgate_common::ledger::Ledger;
use weirgate_common::queue::Queue;

/// A person's commands ask one question at a time.
const CONNECTIONS_MAX: u32 = 2;

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
