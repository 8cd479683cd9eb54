//! The whole system on one machine: emulators, stacks, database, configuration.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::emulators::{Emulator, Kind, Postgres};
use crate::fleet::{Clients, DataPlane, Endpoints, Fleet, Tuning};
use crate::layout::{FileLock, Layout, create_folder, remove_folder, write_atomically};
use crate::process::{Identity, PidFiles};
use crate::progress::Progress;
use crate::python::Python;

/// Which database the default fleet writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseKind {
    Sqlite,
    Postgres,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Names the folder below `.weirgate/`: one world per name and checkout.
    pub world: String,
    /// Prefix of queue, bucket and group of the first fleet.
    pub fleet: String,
    pub database: DatabaseKind,
    pub tuning: Tuning,
    /// Whether what an earlier world of this name left is removed first.
    pub fresh: bool,
    pub progress: Progress,
}

impl Options {
    pub fn new(world: &str) -> Self {
        Self {
            world: world.to_owned(),
            fleet: "ads".to_owned(),
            database: DatabaseKind::Sqlite,
            tuning: Tuning::default(),
            fresh: true,
            progress: Progress::Quiet,
        }
    }
}

/// A running world. Dropped, all its processes are killed; [`World::stop`] is the gentle way.
#[derive(Debug)]
pub struct World {
    pub folder: PathBuf,
    pub endpoints: Endpoints,
    pub clients: Clients,
    /// The fleet deployed at the start, with the world's own `weirgate.toml`.
    pub fleet: Fleet,
    pub localstack: Emulator,
    pub moto: Emulator,
    pub postgres: Option<Postgres>,
    /// Fleets added later, which have to be deployed again too when an emulator dies.
    others: Vec<Fleet>,
    database: DatabaseKind,
    progress: Progress,
    _lock: FileLock,
}

/// Something died and was started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revived {
    /// Objects, messages and subscriptions are gone; the stacks have been deployed again.
    LocalStack,
    /// The groups have been deployed again, with no instances.
    Moto,
    /// Nothing that was committed is lost.
    Postgres,
}

impl World {
    /// Installs what is missing, starts everything, deploys the stacks. Safe to drop half way.
    pub async fn start(options: Options) -> Result<Self> {
        let layout = Layout::discover()?;
        let folder = layout.world(&options.world)?;
        let lock = hold(&layout, &options.world)?;
        let pids = PidFiles::new(&folder);
        for name in pids.sweep().await {
            options.progress.line(&format!("ended {name}, left over from an earlier run"));
        }
        if options.fresh {
            remove_folder(&folder)?;
        }
        create_folder(&folder)?;
        // State and configuration hold the database's password.
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
        drop(std::fs::remove_file(folder.join(State::FILE)));

        let progress = options.progress.clone();
        let cache = &layout.cache;
        let python = Python::ready(cache, &progress).await?;
        let step = progress.quietly("starting the emulators");
        let postgres = async {
            match options.database {
                DatabaseKind::Sqlite => Ok(None),
                DatabaseKind::Postgres => Postgres::start(&python, cache, &folder).await.map(Some),
            }
        };
        let (localstack, moto, postgres) = tokio::try_join!(
            Emulator::start(Kind::LocalStack, &python, cache, &folder),
            Emulator::start(Kind::Moto, &python, cache, &folder),
            postgres,
        )?;
        step.done();

        let step = progress.quietly("deploying the stacks");
        let endpoints = Endpoints { localstack: localstack.url(), moto: moto.url() };
        let clients = endpoints.clients().await;
        let database = database_url(postgres.as_ref(), &folder, "weirgate");
        let fleet =
            Fleet::deploy(&clients, &options.fleet, options.tuning, database, &folder).await?;
        step.done();

        let world = Self {
            folder,
            endpoints,
            clients,
            fleet,
            localstack,
            moto,
            postgres,
            others: Vec::new(),
            database: options.database,
            progress,
            _lock: lock,
        };
        world.write_state()?;
        Ok(world)
    }

    /// Another fleet on the same emulators, with its own bucket, queues, group, database and
    /// `weirgate.toml`: cheaper than another world, and as separate.
    pub async fn add_fleet(
        &mut self,
        name: &str,
        database: DatabaseKind,
        tuning: Tuning,
    ) -> Result<Fleet> {
        let folder = self.folder.join("fleets").join(name);
        let database = match (database, &self.postgres) {
            (DatabaseKind::Sqlite, _) => {
                create_folder(&folder)?;
                database_url(None, &folder, name)
            }
            (DatabaseKind::Postgres, Some(postgres)) => {
                postgres.create_database(name).await?;
                postgres.url(name)
            }
            (DatabaseKind::Postgres, None) => bail!("this world has no PostgreSQL"),
        };
        let fleet = Fleet::deploy(&self.clients, name, tuning, database, &folder).await?;
        self.others.push(fleet.clone());
        Ok(fleet)
    }

    /// For programs of the first fleet.
    pub fn environment(&self) -> BTreeMap<String, String> {
        self.environment_of(&self.fleet)
    }

    /// What a program needs to work for a fleet of this world.
    pub fn environment_of(&self, fleet: &Fleet) -> BTreeMap<String, String> {
        let mut environment = self.endpoints.environment();
        let config = fleet.config.to_string_lossy().into_owned();
        environment.insert(weirgate_common::config::PATH_VARIABLE.to_owned(), config);
        environment.insert("WEIRGATE_DATABASE".to_owned(), fleet.database.clone());
        environment
    }

    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    pub fn pid_files(&self) -> PidFiles {
        PidFiles::new(&self.folder)
    }

    /// Starts again what has died, and deploys again what was lost with it. Call it every second
    /// or so; it returns at once when all is well.
    pub async fn tend(&mut self) -> Result<Vec<Revived>> {
        let mut revived = Vec::new();
        if let Some(status) = self.localstack.exited() {
            self.progress.line(&format!("localstack died ({status}); starting it again …"));
            self.localstack.restart().await?;
            for fleet in self.fleets() {
                fleet.redeploy_data_plane(&self.clients).await?;
            }
            revived.push(Revived::LocalStack);
        }
        if let Some(status) = self.moto.exited() {
            self.progress.line(&format!("moto died ({status}); starting it again …"));
            self.moto.restart().await?;
            for fleet in self.fleets() {
                fleet.redeploy_group(&self.clients).await?;
            }
            revived.push(Revived::Moto);
        }
        if let Some(postgres) = &mut self.postgres
            && let Some(status) = postgres.exited()
        {
            self.progress.line(&format!("postgres died ({status}); starting it again …"));
            postgres.restart().await?;
            revived.push(Revived::Postgres);
        }
        Ok(revived)
    }

    /// Where later progress goes, such as what [`World::tend`] does.
    pub fn set_progress(&mut self, progress: Progress) {
        self.progress = progress;
    }

    fn fleets(&self) -> impl Iterator<Item = &Fleet> {
        std::iter::once(&self.fleet).chain(&self.others)
    }

    /// Ends the emulators and the database; the folder stays.
    pub async fn stop(self) {
        let Self { folder, localstack, moto, postgres, .. } = self;
        let postgres = async {
            if let Some(postgres) = postgres {
                postgres.stop().await;
            }
        };
        tokio::join!(localstack.stop(), moto.stop(), postgres);
        drop(std::fs::remove_file(folder.join(State::FILE)));
    }

    fn write_state(&self) -> Result<()> {
        let state = State {
            owner: Identity::of_self().context("read this process's own start time")?,
            endpoints: self.endpoints.clone(),
            database: self.database,
            data_plane: self.fleet.data_plane.clone(),
            group: self.fleet.group.clone(),
            config: self.fleet.config.clone(),
            environment: self.environment(),
        };
        state.write(&self.folder)
    }
}

fn database_url(postgres: Option<&Postgres>, folder: &Path, name: &str) -> String {
    match postgres {
        Some(postgres) => postgres.url(name),
        None => format!("sqlite://{}", folder.join(format!("{name}.db")).display()),
    }
}

/// One owner per world. The kernel lets go of the lock when the owner dies; its content tells
/// others whom to ask to end the world.
pub fn hold(layout: &Layout, world: &str) -> Result<FileLock> {
    let path = lock_file(layout, world);
    let lock = FileLock::try_take(&path)?.with_context(|| {
        format!(
            "the world {world:?} of this checkout is running; \
             `cargo local down --world {world}` ends it"
        )
    })?;
    let owner = Identity::of_self().context("read this process's own start time")?;
    std::fs::write(&path, serde_json::to_vec(&owner)?)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(lock)
}

/// Whoever runs the world, or is about to.
pub fn owner(layout: &Layout, world: &str) -> Option<Identity> {
    let content = std::fs::read(lock_file(layout, world)).ok()?;
    let owner: Identity = serde_json::from_slice(&content).ok()?;
    owner.is_running().then_some(owner)
}

/// Beside the world's folder, so that the folder can be removed under the lock.
fn lock_file(layout: &Layout, world: &str) -> PathBuf {
    layout.worlds().join(format!("{world}.lock"))
}

/// What others may know of a running world, in a file of its folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub owner: Identity,
    pub endpoints: Endpoints,
    pub database: DatabaseKind,
    pub data_plane: DataPlane,
    pub group: String,
    pub config: PathBuf,
    pub environment: BTreeMap<String, String>,
}

impl State {
    const FILE: &str = "state.json";

    fn write(&self, folder: &Path) -> Result<()> {
        write_atomically(&folder.join(Self::FILE), &serde_json::to_vec_pretty(self)?)
    }

    /// `None`: no world runs in that folder.
    pub fn read(folder: &Path) -> Option<Self> {
        let content = std::fs::read(folder.join(Self::FILE)).ok()?;
        let state: Self = serde_json::from_slice(&content).ok()?;
        state.owner.is_running().then_some(state)
    }
}
