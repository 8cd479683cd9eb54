//! The service: one loop per fleet, each with its own lease, history and heartbeat.
//!
//! A fleet's loop wakes twice per period to renew its lease, and at every second waking
//! observes, plans and acts. Standbys observe and plan too, so that the one that takes over
//! knows what its predecessor knew; they just do not act.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{Instrument, debug, error, info, warn};
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::config::{Config, Database, Fleet};
use weirgate_common::ledger::{Ledger, LedgerError, PlanRecord};
use weirgate_common::telemetry::Health;

use crate::act::{Outcome, act};
use crate::cloudwatch::{self, Monitor, Series};
use crate::group::Group;
use crate::history::History;
use crate::observe::{ANSWER_MAX, Gauge, Observation, observe};
use crate::policy::{HoldReason, Objective, Plan, Report, Step, plan};

/// An unchanged plan is recorded this often, to show that somebody is watching.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// Shorter periods would only ask the same questions of counters that move once a second.
const PERIOD_MIN: Duration = Duration::from_millis(100);

/// Between attempts to reach the database at the start.
const CONNECT_PAUSE: Duration = Duration::from_secs(2);

/// One ledger query at a time per fleet, and one for the lease.
const CONNECTIONS_MAX: u32 = 4;

/// One fleet to keep at its size.
#[derive(Debug)]
pub struct Keeper<G, Q, M> {
    pub fleet: String,
    /// What its importers import.
    pub feeds: Vec<String>,
    pub objective: Objective,
    pub gauge: Q,
    pub group: G,
    pub monitor: M,
    pub ledger: Ledger,
    /// Names this process in the lease, unlike any other.
    pub holder: String,
    pub dry_run: bool,
}

/// What a fleet's loop may be told.
enum Input {
    Renew,
    Decide,
    Stop,
}

/// Whether this process may write to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Acting,
    Standby,
    /// The ledger does not answer: whoever acts now might not be alone.
    Unknown,
}

/// One decision with what came of it: what the ledger keeps.
#[derive(Serialize)]
struct Entry<'a> {
    headline: String,
    outcome: &'a Outcome,
    scaler: &'a str,
    report: &'a Report,
}

/// The objective of a configured fleet.
pub fn objective(config: &Config, fleet: &Fleet) -> Objective {
    Objective {
        freshness: fleet.freshness,
        instances_min: fleet.instances_min,
        instances_max: fleet.instances_max,
        slots: u64::try_from(config.importer.slots).unwrap_or(u64::MAX),
        period: config.scaler.period.max(PERIOD_MIN),
        settle: config.scaler.settle,
    }
}

/// Opens the ledger, for as long as it takes. `None` when told to stop first.
///
/// # Errors
/// Only what waiting does not cure: a ledger newer than this program.
pub async fn open_ledger(
    database: &Database,
    stop: &mut watch::Receiver<bool>,
) -> Result<Option<Ledger>, LedgerError> {
    loop {
        match Ledger::open(database, CONNECTIONS_MAX).await {
            Ok(ledger) => return Ok(Some(ledger)),
            Err(error @ LedgerError::TooNew { .. }) => return Err(error),
            Err(error) => {
                let cause = weirgate_common::fault::chain(&error);
                warn!(cause, "the ledger is away; no fleet is resized until it is back");
            }
        }
        if tokio::time::timeout(CONNECT_PAUSE, stop.wait_for(|stop| *stop)).await.is_ok() {
            return Ok(None);
        }
    }
}

/// Becomes true at the first SIGTERM or SIGINT.
pub fn stop_signal() -> std::io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            signals.recv().await;
            info!("stopping");
            sender.send_replace(true);
        });
    }
    Ok(receiver)
}

/// Ready when every fleet's last decision was made with queue, group and ledger answering.
#[derive(Clone, Debug)]
pub struct Readiness {
    fleets: Arc<Mutex<BTreeMap<String, bool>>>,
    health: Health,
}

impl Readiness {
    /// Not ready until each of `fleets` is.
    pub fn new(fleets: &[String], health: Health) -> Self {
        let fleets = fleets.iter().map(|fleet| (fleet.clone(), false)).collect();
        Readiness { fleets: Arc::new(Mutex::new(fleets)), health }
    }

    fn set(&self, fleet: &str, ready: bool) {
        let mut fleets = self.fleets.lock().unwrap_or_else(PoisonError::into_inner);
        fleets.insert(fleet.to_owned(), ready);
        self.health.set_ready(fleets.values().all(|ready| *ready));
    }
}

/// What one fleet's loop remembers from one decision to the next.
#[derive(Default)]
struct Memory {
    history: History,
    role: Option<Role>,
    told: Option<(Step, Outcome)>,
    recorded_at: Option<Timestamp>,
    published_at: Option<Timestamp>,
    /// Whether the last attempt to publish went well; told when it changes.
    publishes: Option<bool>,
    launch_failure: Option<String>,
}

impl<G: Group, Q: Gauge, M: Monitor> Keeper<G, Q, M> {
    /// Keeps the fleet at its size until told to stop, then gives the lease up.
    pub async fn run(self, mut stop: watch::Receiver<bool>, readiness: Readiness) {
        let span = tracing::info_span!("fleet", name = %self.fleet);
        async {
            let mut memory = Memory::default();
            let mut ticks = tokio::time::interval(self.objective.period / 2);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut decides = true;
            loop {
                let input = tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => Input::Stop,
                    _ = ticks.tick() => if decides { Input::Decide } else { Input::Renew },
                };
                match input {
                    Input::Stop => break,
                    Input::Renew => {
                        self.renew(&mut memory.role).await;
                    }
                    Input::Decide => {
                        let observation = self.decide(&mut memory).await;
                        let ready = observation.depth.known().is_some()
                            && observation.group.known().is_some()
                            && memory.role != Some(Role::Unknown);
                        readiness.set(&self.fleet, ready);
                    }
                }
                decides = !decides;
            }
            self.leave(&memory).await;
        }
        .instrument(span)
        .await;
    }

    /// One observation and what the policy makes of it; nothing is written anywhere.
    pub async fn look(&self, history: &mut History) -> (Observation, Plan) {
        let observation = observe(
            &self.fleet,
            &self.feeds,
            &self.gauge,
            &self.group,
            &self.monitor,
            &self.ledger,
        )
        .await;
        history.learn(&observation);
        let plan = plan(&self.objective, history, &observation, clock::now());
        history.note_wanted(observation.at, plan.report.wanted);
        (observation, plan)
    }

    async fn decide(&self, memory: &mut Memory) -> Observation {
        let looking = Box::pin(self.look(&mut memory.history));
        let (observation, plan) = self.keeping_lease(&mut memory.role, looking).await;
        // Asked after the observation, which may have taken its time, and before the writing.
        let role = self.renew(&mut memory.role).await;
        let outcome = match (role, plan.step) {
            (Role::Standby | Role::Unknown, _) => Outcome::StoodBy,
            (Role::Acting, Step::Hold(_)) => Outcome::Held,
            (Role::Acting, _) if self.dry_run => Outcome::DryRun,
            (Role::Acting, _) => self.keeping_lease(&mut memory.role, self.act(&plan)).await,
        };
        match &outcome {
            Outcome::Done | Outcome::AlreadyThere => {
                memory.history.note_left_at(Some(plan.desired));
            }
            // Another scaler's steps are not foreign, and a step cut short may be half done.
            Outcome::Later { .. } | Outcome::Refused { .. } | Outcome::StoodBy => {
                memory.history.note_left_at(None);
            }
            Outcome::Held | Outcome::Overtaken { .. } | Outcome::Refreshing | Outcome::DryRun => {}
        }
        let changed_from = plan.report.inputs.changed_from;
        if let (Some(from), Some(to)) = (changed_from, plan.report.inputs.desired) {
            let cause = self.keeping_lease(&mut memory.role, self.foreign_cause()).await;
            warn!(from, to, cause, "somebody else changed the group's size; planning from there");
        }
        let failure = &plan.report.inputs.launch_failure;
        if failure.is_some() && memory.launch_failure != *failure {
            warn!(why = failure, "the group cannot launch what it asks for; it keeps trying");
            counter!("weirgate_launch_failures_total", "fleet" => self.fleet.clone()).increment(1);
        }
        memory.launch_failure.clone_from(failure);
        self.measure(&plan, role, &outcome);
        let now = clock::now();
        let decision = (plan.step, outcome);
        let changed = memory.told.as_ref() != Some(&decision) || changed_from.is_some();
        if changed {
            tell(&plan, &decision.1);
        }
        // The ledger holds the decisions that counted: a standby's do not.
        let due = memory.recorded_at.is_none_or(|at| now.since(at) >= HEARTBEAT);
        if role == Role::Acting && (changed || due) && self.record(&plan, &decision.1, now).await {
            memory.recorded_at = Some(now);
        }
        let is_due = memory.published_at.is_none_or(|at| now.since(at) >= cloudwatch::PERIOD);
        if role == Role::Acting && is_due {
            memory.published_at = Some(now);
            let publishing = self.publish(&mut memory.publishes, &plan, now);
            self.keeping_lease(&mut memory.role, publishing).await;
        }
        memory.told = Some(decision);
        observation
    }

    /// Bounded, so that a group that does not answer costs neither the lease nor the stop. A
    /// call given up may still take effect; the next observation shows.
    async fn act(&self, plan: &Plan) -> Outcome {
        let why = || format!("no answer within {} s", ANSWER_MAX.as_secs());
        tokio::time::timeout(ANSWER_MAX, act(&self.group, plan))
            .await
            .unwrap_or_else(|_| Outcome::Later { terminated: Vec::new(), why: why() })
    }

    /// What the group's own log says of a change that was not ours.
    async fn foreign_cause(&self) -> String {
        match tokio::time::timeout(ANSWER_MAX, self.group.latest_cause()).await {
            Ok(Ok(cause)) => cause.unwrap_or_default(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => String::new(),
        }
    }

    /// One scaler publishes, or the series would count everything twice.
    async fn publish(&self, well: &mut Option<bool>, plan: &Plan, at: Timestamp) {
        let inputs = &plan.report.inputs;
        let backlog = inputs.depth.map(|depth| depth.total());
        let oldest = backlog.map(|count| if count == 0 { 0 } else { inputs.oldest_ms });
        let series: Vec<Series> = [
            backlog.map(Series::Backlog),
            oldest.map(|ms| Series::Freshness(Duration::from_millis(ms))),
            inputs.desired.map(|_| Series::Desired(plan.desired)),
            inputs.in_service.map(Series::InService),
        ]
        .into_iter()
        .flatten()
        .collect();
        let sent = tokio::time::timeout(ANSWER_MAX, self.monitor.publish(at, &series)).await;
        let failed = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", ANSWER_MAX.as_secs())),
        };
        if well.replace(failed.is_none()) != Some(failed.is_none())
            && let Some(cause) = failed
        {
            warn!(cause, "the series did not reach CloudWatch");
        }
    }

    /// Sources that are away are waited for longer than a lease may last: without renewals
    /// meanwhile, an outage would hand the lease from one scaler to the other and back.
    async fn keeping_lease<T>(&self, role: &mut Option<Role>, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(self.objective.period / 2) => {
                    self.renew(role).await;
                }
            }
        }
    }

    async fn renew(&self, before: &mut Option<Role>) -> Role {
        // Renewed twice per period and kept for one and a half: two renewals may fail before it
        // is lost, and a standby, which asks as often, has it within two periods of a crash.
        let span = self.objective.period * 3 / 2;
        let held =
            self.ledger.hold_lease(&self.lease_name(), &self.holder, clock::now(), span).await;
        let role = match held {
            Ok(true) => Role::Acting,
            Ok(false) => Role::Standby,
            Err(error) => {
                if *before != Some(Role::Unknown) {
                    let cause = weirgate_common::fault::chain(&error);
                    warn!(cause, "the ledger is away; holding");
                }
                Role::Unknown
            }
        };
        if *before != Some(role) {
            match role {
                Role::Acting => info!(holder = %self.holder, "acting"),
                Role::Standby => info!(holder = %self.holder, "standing by"),
                Role::Unknown => {}
            }
            *before = Some(role);
        }
        role
    }

    fn lease_name(&self) -> String {
        format!("scaler/{}", self.fleet)
    }

    async fn record(&self, plan: &Plan, outcome: &Outcome, at: Timestamp) -> bool {
        let entry = Entry {
            headline: plan.report.headline(),
            outcome,
            scaler: &self.holder,
            report: &plan.report,
        };
        let report = match serde_json::to_string(&entry) {
            Ok(report) => report,
            Err(error) => {
                error!(%error, "a plan cannot be written as JSON");
                return false;
            }
        };
        let record = PlanRecord { fleet: self.fleet.clone(), at, desired: plan.desired, report };
        match self.ledger.record_plan(&record).await {
            Ok(()) => true,
            Err(error) => {
                let cause = weirgate_common::fault::chain(&error);
                warn!(cause, "the plan was not recorded");
                false
            }
        }
    }

    async fn leave(&self, memory: &Memory) {
        if memory.role != Some(Role::Acting) {
            return;
        }
        match self.ledger.release_lease(&self.lease_name(), &self.holder).await {
            Ok(()) => info!("lease released"),
            Err(error) => {
                let cause = weirgate_common::fault::chain(&error);
                warn!(cause, "the lease was not released; a standby waits until it expires");
            }
        }
    }

    fn measure(&self, plan: &Plan, role: Role, outcome: &Outcome) {
        let fleet = || self.fleet.clone();
        let inputs = &plan.report.inputs;
        gauge!("weirgate_desired_instances", "fleet" => fleet()).set(f64::from(plan.desired));
        let acting = if role == Role::Acting { 1.0 } else { 0.0 };
        gauge!("weirgate_scaler_acting", "fleet" => fleet()).set(acting);
        if let Some(depth) = inputs.depth {
            for (state, count) in [
                ("visible", depth.visible),
                ("in_flight", depth.in_flight),
                ("delayed", depth.delayed),
            ] {
                gauge!("weirgate_backlog_messages", "fleet" => fleet(), "state" => state)
                    .set(count as f64);
            }
        }
        for (state, count) in [
            ("in_service", inputs.in_service),
            ("pending", inputs.pending),
            ("leaving", inputs.leaving),
        ] {
            if let Some(count) = count {
                gauge!("weirgate_instances", "fleet" => fleet(), "state" => state)
                    .set(f64::from(count));
            }
        }
        counter!("weirgate_plans_total", "fleet" => fleet(), "step" => plan.step.as_str())
            .increment(1);
        if !inputs.unknown.is_empty() {
            counter!("weirgate_unknown_readings_total", "fleet" => fleet())
                .increment(inputs.unknown.len() as u64);
        }
        if inputs.changed_from.is_some() {
            counter!("weirgate_foreign_changes_total", "fleet" => fleet()).increment(1);
        }
        if matches!(outcome, Outcome::Later { .. } | Outcome::Refused { .. }) {
            counter!("weirgate_failed_steps_total", "fleet" => fleet()).increment(1);
        }
    }
}

/// Logs a decision that differs from the last, at the level of what it asks of a person.
fn tell(plan: &Plan, outcome: &Outcome) {
    let headline = plan.report.headline();
    match (outcome, plan.step) {
        (Outcome::StoodBy, _) => debug!(%outcome, "{headline}"),
        (Outcome::Refused { .. }, _) => error!(%outcome, "{headline}"),
        (Outcome::Later { .. } | Outcome::Refreshing, _) => warn!(%outcome, "{headline}"),
        (
            _,
            Step::Hold(
                HoldReason::GroupUnknown
                | HoldReason::DepthUnknown
                | HoldReason::WorkersUnknown
                | HoldReason::Stale
                | HoldReason::WorkersWaiting
                | HoldReason::Saturated
                | HoldReason::InFlightLimit
                | HoldReason::MostlyPoison
                | HoldReason::LaunchSuspended
                | HoldReason::TerminateSuspended,
            ),
        ) => {
            let unknown = plan.report.inputs.unknown.join("; ");
            warn!(unknown, "{headline}");
        }
        _ => info!(%outcome, "{headline}"),
    }
}
