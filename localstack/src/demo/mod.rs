//! The demo: the whole line under load, watched while it works and proved when it is done.
//!
//! ```text
//! impression ─▶ producer ─▶ S3 ─▶ … ─▶ database ─▶ proof
//!                  └── its own record ─────────────▲
//! ```
//!
//! Any process may die on the way. Importers and scaler are started again by the launcher and the
//! service keeper; the database recovers by itself; and since the emulators keep their state in
//! memory, the stacks are then deployed again and the producer uploads again what S3 lost. The
//! ledger makes that harmless.

mod database;
mod impression;
mod producer;
mod proof;
mod view;

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use weirgate_common::clock;

use self::producer::{Producer, SharedRecord, Size};
use self::proof::Check;
use self::view::{Snapshot, View};
use crate::fleet::{Clients, Fleet};
use crate::launcher::{Instances, Phase};
use crate::look::{depth, group};
use crate::process::PidFiles;
use crate::progress::{Progress, print};
use crate::service::Programs;
use crate::world::{Options, Revived, World};

/// Between two looks at everything.
const PERIOD: Duration = Duration::from_millis(500);

/// Without any change for so long, the line is stuck and the proof is made with what there is.
const STALL_MAX: Duration = Duration::from_secs(150);

/// A proof that cannot be asked for is asked for again once what died is back.
const PROOF_ATTEMPTS: u32 = 5;

#[derive(Clone, Debug)]
pub struct DemoOptions {
    pub world: Options,
    /// At least 10, so that every accident finds an object of its own.
    pub objects: u64,
    pub rows: u64,
    pub seed: u64,
    pub boot_delay: Duration,
    /// Kills a random process of the world now and then, until everything is uploaded.
    pub chaos: bool,
}

/// A demo that has come to its end, with the world still running.
#[derive(Debug)]
pub struct Finished {
    pub world: World,
    pub programs: Programs,
    /// Whether the proof held in every point.
    pub held: bool,
}

/// Runs the demo on standard output. Safe to drop at any point: nothing is left running.
pub async fn run(options: DemoOptions) -> Result<Finished> {
    let mut world = World::start(options.world.clone()).await?;
    let (lines, events) = mpsc::channel();
    let progress = Progress::Lines(lines);
    world.set_progress(progress.clone());
    let programs = Programs::start(&world, options.boot_delay, &progress)?;
    let size = Size { objects: options.objects, rows: options.rows, seed: options.seed };
    let (clients, fleet) = (world.clients.clone(), world.fleet.clone());
    let producer = Producer::start(clients.clone(), fleet.data_plane.clone(), size)?;
    let mut watcher = Watcher {
        started: clock::monotonic(),
        view: View::new(),
        peak: 0,
        planned: options.objects,
        instances: programs.watch(),
        record: producer.shared_record(),
        chaos: options.chaos.then(|| Chaos::new(options.seed, world.pid_files())),
        clients,
        fleet,
        events,
    };
    let mut tender = Tender { world, programs, producer, progress };
    let held = Box::pin(drive(&mut tender, &mut watcher)).await?;
    let Tender { world, programs, .. } = tender;
    Ok(Finished { world, programs, held })
}

async fn drive(tender: &mut Tender, watcher: &mut Watcher) -> Result<bool> {
    let mut attempt = 1;
    loop {
        let settled = tokio::select! {
            error = tender.tend() => return Err(error),
            settled = watcher.until_settled() => settled,
        };
        let record = watcher.record.get();
        match proof::prove(&watcher.clients, &watcher.fleet, &record).await {
            Ok(checks) => return Ok(watcher.conclude(settled, checks)),
            Err(error) if attempt < PROOF_ATTEMPTS => {
                attempt += 1;
                tender.progress.line(&format!("no proof yet: {error:#}"));
            }
            Err(error) => return Err(error).context("the proof cannot be made"),
        }
    }
}

/// Keeps everything running.
struct Tender {
    world: World,
    programs: Programs,
    producer: Producer,
    progress: Progress,
}

impl Tender {
    /// Ends only with an error that no restart mends.
    async fn tend(&mut self) -> anyhow::Error {
        loop {
            if let Err(error) = self.tend_once().await {
                return error;
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn tend_once(&mut self) -> Result<()> {
        self.programs.tend(&mut self.world)?;
        self.producer.check().await?;
        // Before the new one can be reached: the producer must hold still until it is filled.
        if self.world.localstack.exited().is_some() {
            self.producer.hold();
        }
        if self.world.tend().await?.contains(&Revived::LocalStack) {
            let count = self.producer.restore();
            self.progress.line(&format!(
                "objects and messages were lost with localstack; uploading {count} objects again"
            ));
        }
        Ok(())
    }
}

/// Looks and shows; changes nothing.
struct Watcher {
    started: Duration,
    view: View,
    /// Most instances that ran at once.
    peak: usize,
    planned: u64,
    clients: Clients,
    fleet: Fleet,
    instances: Instances,
    record: SharedRecord,
    events: mpsc::Receiver<(Duration, String)>,
    chaos: Option<Chaos>,
}

impl Watcher {
    /// Watches until everything is uploaded and worked off and the group is empty again. Returns
    /// false when nothing has moved for [`STALL_MAX`].
    async fn until_settled(&mut self) -> bool {
        let mut last_change = (String::new(), clock::monotonic());
        loop {
            let snapshot = self.look().await;
            self.peak = self.peak.max(snapshot.running);
            for (at, event) in self.events.try_iter() {
                self.view.event(at.saturating_sub(self.started), &event);
            }
            self.view.show(&snapshot);
            if self.is_settled(&snapshot) {
                self.view.finish();
                return true;
            }
            let state = format!("{:?}", Snapshot { at: Duration::ZERO, ..snapshot.clone() });
            if state != last_change.0 {
                last_change = (state, clock::monotonic());
            } else if clock::monotonic().saturating_sub(last_change.1) > STALL_MAX {
                self.view.finish();
                let text = format!("nothing has moved for {} s", STALL_MAX.as_secs());
                self.view.event(snapshot.at, &text);
                return false;
            }
            if let Some(chaos) = &mut self.chaos
                && !self.record.get().finished
                && let Some(victim) = chaos.strike(clock::monotonic())
            {
                self.view.event(snapshot.at, &format!("chaos: kill -9 {victim}"));
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn look(&self) -> Snapshot {
        let Self { clients, fleet, .. } = self;
        let (queue, dead, group, database) = tokio::join!(
            depth(clients, &fleet.data_plane.queue_url),
            depth(clients, &fleet.data_plane.dead_letter_queue_url),
            group(clients, &fleet.group),
            database::progress(&fleet.database),
        );
        let instances = self.instances.get();
        let count = |wanted: fn(Phase) -> bool| {
            instances.values().filter(|instance| wanted(instance.phase)).count()
        };
        let record = self.record.get();
        Snapshot {
            at: self.elapsed(),
            uploaded: record.uploads.len(),
            planned: self.planned,
            queue,
            dead_letters: dead.map(|dead| dead.visible + dead.in_flight),
            group,
            running: count(|phase| matches!(phase, Phase::Running { .. })),
            booting: count(|phase| {
                matches!(phase, Phase::Booting { .. } | Phase::Restarting { .. })
            }),
            draining: count(|phase| matches!(phase, Phase::Draining { .. } | Phase::Killed)),
            database,
            rows_expected: record.rows(),
        }
    }

    /// Nothing waits, nothing runs, and everything has arrived somewhere. A queue that merely
    /// reads empty proves nothing: messages may be on their way to it.
    fn is_settled(&self, snapshot: &Snapshot) -> bool {
        let record = self.record.get();
        let empty = snapshot.queue.is_some_and(|q| q.visible + q.in_flight + q.delayed == 0);
        let refused = record.dead_letters().count() as u64;
        let arrived = snapshot.database.is_some_and(|database| database.rows >= record.rows())
            && snapshot.dead_letters.is_some_and(|dead| dead >= refused);
        let at_rest = snapshot.group.as_ref().is_some_and(|group| group.instances.is_empty())
            && snapshot.running + snapshot.booting + snapshot.draining == 0;
        record.finished && !record.restoring && empty && arrived && at_rest
    }

    fn conclude(&mut self, settled: bool, mut checks: Vec<Check>) -> bool {
        let instances = self.instances.get().len();
        checks.push(Check {
            what: "instances: from zero, and back to zero",
            expected: "0, some, 0".to_owned(),
            found: format!("0, {}, {instances}", self.peak),
            holds: self.peak > 0 && instances == 0,
        });
        let held = settled && checks.iter().all(|check| check.holds);
        let took = self.elapsed().as_secs_f64();
        let summary = view::planned(&self.record.get());
        let outcome = if held { "everything holds" } else { "NOT everything holds" };
        print(&format!(
            "\n  produced: {summary}\n{}\n  {outcome}, after {took:.0} s\n",
            view::verdict(&checks)
        ));
        held
    }

    fn elapsed(&self) -> Duration {
        clock::monotonic().saturating_sub(self.started)
    }
}

/// Strikes of [`Chaos`]: about two for each kind of process. Without an end, a slow machine would
/// do nothing but restart.
const STRIKES_MAX: u32 = 10;

/// Kills a random process of the world every few seconds.
struct Chaos {
    random: SmallRng,
    pids: PidFiles,
    next: Duration,
    strikes: u32,
    /// Each kind of process dies before any dies again.
    struck: BTreeSet<String>,
}

impl Chaos {
    fn new(seed: u64, pids: PidFiles) -> Self {
        let next = clock::monotonic() + Duration::from_secs(4);
        Self {
            random: SmallRng::seed_from_u64(seed),
            pids,
            next,
            strikes: 0,
            struck: BTreeSet::new(),
        }
    }

    /// Names who was killed, if anybody was.
    fn strike(&mut self, now: Duration) -> Option<String> {
        if now < self.next || self.strikes == STRIKES_MAX {
            return None;
        }
        self.next = now + Duration::from_millis(self.random.random_range(1_500..4_000));
        let kind = |name: &str| name.split('-').next().unwrap_or(name).to_owned();
        let mut targets = self.pids.running();
        if targets.iter().all(|(name, _)| self.struck.contains(&kind(name))) {
            self.struck.clear();
        }
        targets.retain(|(name, _)| !self.struck.contains(&kind(name)));
        let (name, identity) = targets.choose(&mut self.random)?;
        self.struck.insert(kind(name));
        self.strikes += 1;
        identity.signal(Signal::KILL);
        Some(name.clone())
    }
}
