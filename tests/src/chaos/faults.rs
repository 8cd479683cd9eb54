//! What goes wrong, one thing after the other.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::Rng as _;
use rand::rngs::SmallRng;
use rustix::process::Signal;

use super::proxy::Proxy;
use crate::system::{Process, System};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Killed,
    Terminated,
    /// For longer than its leases last, at times.
    Suspended,
    DatabaseCrashed,
    DatabaseRestarted,
    DatabaseReadOnly,
    SessionsEnded,
    TableLocked,
    DatabaseStalled,
    DatabaseCut,
    DatabaseUnreachable,
    AwsStalled,
    AwsCut,
    AwsUnreachable,
}

const FAULTS: [Fault; 14] = [
    Fault::Killed,
    Fault::Terminated,
    Fault::Suspended,
    Fault::DatabaseCrashed,
    Fault::DatabaseRestarted,
    Fault::DatabaseReadOnly,
    Fault::SessionsEnded,
    Fault::TableLocked,
    Fault::DatabaseStalled,
    Fault::DatabaseCut,
    Fault::DatabaseUnreachable,
    Fault::AwsStalled,
    Fault::AwsCut,
    Fault::AwsUnreachable,
];

impl Fault {
    pub(super) fn any(random: &mut SmallRng) -> Self {
        FAULTS[random.random_range(0..FAULTS.len())]
    }
}

/// The importers, and the network between them and their dependencies.
pub(super) struct Fleet {
    pub(super) database: Proxy,
    pub(super) aws: Proxy,
    environment: Vec<(String, String)>,
    importers: Vec<Process>,
    started: usize,
}

impl Fleet {
    pub(super) async fn start(system: &System, importers: usize) -> Result<Self> {
        let database = url_port(&system.fleet.database)?;
        let aws = url_port(&system.endpoints.localstack)?;
        let local = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let proxies = (Proxy::start(local(database)).await?, Proxy::start(local(aws)).await?);
        let through =
            |url: &str, from: u16, to: u16| url.replace(&format!(":{from}"), &format!(":{to}"));
        let endpoint = through(&system.endpoints.localstack, aws, proxies.1.port);
        let mut environment: Vec<(String, String)> = ["S3", "SQS"]
            .map(|service| (format!("AWS_ENDPOINT_URL_{service}"), endpoint.clone()))
            .into();
        let url = through(&system.fleet.database, database, proxies.0.port);
        environment.push(("WEIRGATE_DATABASE".to_owned(), url));
        let mut fleet = Fleet {
            database: proxies.0,
            aws: proxies.1,
            environment,
            importers: Vec::new(),
            started: 0,
        };
        for _ in 0..importers {
            let importer = fleet.importer(system)?;
            fleet.importers.push(importer);
        }
        Ok(fleet)
    }

    fn importer(&mut self, system: &System) -> Result<Process> {
        self.started += 1;
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        system.importer_with(&format!("i-{}", self.started), &environment)
    }

    /// Lets one thing go wrong, and ends it.
    pub(super) async fn suffer(
        &mut self,
        fault: Fault,
        system: &System,
        random: &mut SmallRng,
    ) -> Result<()> {
        let span = Duration::from_millis(random.random_range(200..6_000));
        let victim = random.random_range(0..self.importers.len());
        match fault {
            Fault::Killed => {
                self.importers[victim].child.kill();
                self.importers[victim].child.finished().await;
            }
            Fault::Terminated => {
                self.importers[victim].child.stop(Signal::TERM, Duration::from_secs(30)).await;
            }
            Fault::Suspended => {
                self.importers[victim].child.signal(Signal::STOP);
                tokio::time::sleep(span * 3).await;
                self.importers[victim].child.signal(Signal::CONT);
            }
            Fault::DatabaseCrashed => system.crash_postgres(span).await?,
            Fault::DatabaseRestarted => system.restart_postgres(span).await?,
            Fault::DatabaseReadOnly => {
                let name = &system.fleet.name;
                let set =
                    format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = on");
                system.execute(&set).await?;
                system.end_sessions().await?;
                tokio::time::sleep(span).await;
                // The session that undoes it is read-only itself at its start.
                system
                    .execute(&format!(
                        "BEGIN READ WRITE;
                     ALTER DATABASE \"{name}\" RESET default_transaction_read_only; COMMIT"
                    ))
                    .await?;
                system.end_sessions().await?;
            }
            Fault::SessionsEnded => system.end_sessions().await?,
            Fault::TableLocked => {
                let seconds = span.as_secs_f64();
                system
                    .execute(&format!(
                        "BEGIN; LOCK TABLE impressions IN ACCESS EXCLUSIVE MODE;
                     SELECT pg_sleep({seconds}); COMMIT"
                    ))
                    .await?;
            }
            Fault::DatabaseStalled => self.database.stall(span).await,
            Fault::DatabaseCut => self.database.cut(),
            Fault::DatabaseUnreachable => self.database.close(span).await,
            Fault::AwsStalled => self.aws.stall(span).await,
            Fault::AwsCut => self.aws.cut(),
            Fault::AwsUnreachable => self.aws.close(span).await,
        }
        for index in 0..self.importers.len() {
            let ended = self.importers[index].child.exited();
            if let Some(status) = ended {
                let unexpected = !matches!(fault, Fault::Killed | Fault::Terminated);
                anyhow::ensure!(
                    !unexpected,
                    "an importer ended by itself ({status}):\n{}",
                    self.importers[index].log()
                );
                self.importers[index] = self.importer(system)?;
            }
        }
        Ok(())
    }

    pub(super) async fn stop(self) {
        for importer in self.importers {
            importer.stop().await;
        }
    }
}

fn url_port(url: &str) -> Result<u16> {
    let port = url.rsplit(':').next().and_then(|rest| rest.split('/').next());
    port.and_then(|port| port.parse().ok()).with_context(|| format!("no port in {url}"))
}
