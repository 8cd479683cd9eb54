//! The decision: a pure function from what is known to what is to be done, and why.
//!
//! Every rule proposes a size; the largest wins; bounds clamp it; safety may still suppress the
//! step. The report carries all of it, so that no size is ever a mystery.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use weirgate_common::clock::Timestamp;
use weirgate_common::queue::Depth;

use crate::group::{GroupState, InstanceId, Life};
use crate::history::History;
use crate::observe::Observation;

/// The flow rule leaves this many instances, times the root of the fleet, to the drain rule.
const FLOW_TOLERANCE: f64 = 0.25;

/// Share of the promise kept in hand for what no estimate covers.
const MARGIN_SHARE: f64 = 0.1;

/// What the user asked of one fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objective {
    /// From an object's creation to its commit.
    pub freshness: Duration,
    pub instances_min: u32,
    pub instances_max: u32,
    /// Messages one instance works on at a time.
    pub slots: u64,
    /// Between two observations.
    pub period: Duration,
    /// How long the queue must read empty before the group shrinks. SQS counters lag by up to
    /// a minute, so anything shorter is only for emulators, which do not.
    pub settle: Duration,
}

/// A decision that leaves no choice to whoever carries it out.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The size the group should ask for once the step is done.
    pub desired: u32,
    pub step: Step,
    /// The instances that a step inwards terminates, each idle as far as anybody knows.
    pub victims: Vec<InstanceId>,
    pub report: Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Hold(HoldReason),
    /// Ask for more instances.
    Out {
        from: u32,
        to: u32,
    },
    /// Terminate the victims.
    In {
        from: u32,
        to: u32,
    },
    /// Stop asking for instances that never came; nobody is terminated.
    Cut {
        from: u32,
        to: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    /// The size is what the rules ask for.
    Enough,
    /// The rules ask for more than the bounds allow, and the group is there already.
    AtMax,
    /// The observation is too old to act on.
    Stale,
    GroupUnknown,
    DepthUnknown,
    WorkersUnknown,
    /// There is some to spare, but not yet for long enough to be believed, or to be worth the
    /// boot of its return.
    Settling,
    /// Instances are on their way: the size is not settled.
    InstancePending,
    /// Somebody suspended the process of the group that the step needs.
    LaunchSuspended,
    TerminateSuspended,
    /// All that could go are busy or protected.
    NoIdleVictim,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub at: Timestamp,
    pub step: Step,
    pub inputs: Inputs,
    /// In order of rule; the winner is the largest, the first of equals.
    pub proposals: Vec<Proposal>,
    pub winner: Rule,
    /// What the winner asks for, before bounds; absent when the queue or the workers are
    /// unknown, and the rules speak from what is left.
    pub wanted: Option<u32>,
    pub clamps: Vec<Clamp>,
    /// Steps that the rules wanted and safety forbade.
    pub suppressed: Vec<Suppressed>,
    pub victims: Vec<InstanceId>,
}

/// What the decision was made from. Absent is unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Inputs {
    pub depth: Option<Depth>,
    pub desired: Option<u32>,
    pub in_service: Option<u32>,
    pub pending: Option<u32>,
    pub leaving: Option<u32>,
    /// Workers with a fresh report, and the messages they hold.
    pub workers: Option<usize>,
    pub busy: Option<u64>,
    pub service_ms: u64,
    pub arrivals_per_s: Option<f64>,
    pub boot_ms: u64,
    /// An upper bound on what the oldest message has waited.
    pub oldest_ms: u64,
    pub empty_for_ms: u64,
    /// Why a source is unknown.
    pub unknown: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proposal {
    pub rule: Rule,
    pub instances: u32,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Never fewer than the configured minimum.
    Min,
    /// Enough instances to drain the backlog while it is still fresh.
    Drain,
    /// Enough instances for what keeps arriving.
    Flow,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Clamp {
    /// `instances.max` or `group max`, and so on.
    pub bound: String,
    pub from: u32,
    pub to: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suppressed {
    pub from: u32,
    pub to: u32,
    pub by: HoldReason,
}

/// Decides. Pure and deterministic: the service, the tests and the simulator get the same answer
/// from the same arguments.
pub fn plan(
    objective: &Objective,
    history: &History,
    observation: &Observation,
    now: Timestamp,
) -> Plan {
    let inputs = inputs(history, observation, now);
    let mut report = Report {
        at: now,
        step: Step::Hold(HoldReason::Enough),
        proposals: propose(objective, &inputs),
        inputs,
        winner: Rule::Min,
        wanted: None,
        clamps: Vec::new(),
        suppressed: Vec::new(),
        victims: Vec::new(),
    };
    let winner = report.proposals.iter().fold(&report.proposals[0], |best, proposal| {
        if proposal.instances > best.instances { proposal } else { best }
    });
    let wanted = winner.instances;
    report.winner = winner.rule;
    let known = observation.depth.known().is_some() && observation.workers.known().is_some();
    report.wanted = known.then_some(wanted);

    let Some(group) = observation.group.known() else {
        let desired = history.desired().unwrap_or(objective.instances_min);
        return finish(report, desired, Step::Hold(HoldReason::GroupUnknown));
    };
    if now.since(observation.at) > age_max(objective) {
        return finish(report, group.desired, Step::Hold(HoldReason::Stale));
    }
    let target = clamp(objective, group, wanted, &mut report.clamps);
    let step = match target.cmp(&group.desired) {
        Ordering::Greater => step_out(group, target),
        Ordering::Equal if target < wanted => Step::Hold(HoldReason::AtMax),
        Ordering::Equal => Step::Hold(HoldReason::Enough),
        Ordering::Less => match may_shrink(objective, history, observation, group, now) {
            Ok(proof) => step_in(observation, group, target, proof, now, &mut report.victims),
            Err(reason) => Step::Hold(reason),
        },
    };
    if let Step::Hold(by) = step
        && target != group.desired
    {
        report.suppressed.push(Suppressed { from: group.desired, to: target, by });
    }
    finish(report, group.desired, step)
}

/// Two periods, and the longest that the sources may take to answer.
fn age_max(objective: &Objective) -> Duration {
    objective.period * 2 + crate::observe::ANSWER_MAX
}

fn finish(mut report: Report, now_desired: u32, step: Step) -> Plan {
    report.step = step;
    let desired = match step {
        Step::Hold(_) => now_desired,
        Step::Out { to, .. } | Step::In { to, .. } | Step::Cut { to, .. } => to,
    };
    Plan { desired, step, victims: report.victims.clone(), report }
}

fn inputs(history: &History, observation: &Observation, now: Timestamp) -> Inputs {
    let fresh = observation.fresh_workers(now);
    let workers_known = observation.workers.known().is_some();
    let group = observation.group.known();
    // What workers hold was sent when SQS says it was; what waits cannot be older than the
    // time since the queue was last seen empty.
    let oldest_held = fresh.values().filter_map(|report| report.oldest_message_at).min();
    let oldest = match oldest_held {
        Some(sent_at) => now.since(sent_at),
        None => history.occupied_for(),
    };
    let unknown = [
        ("queue", observation.depth.why_unknown()),
        ("group", observation.group.why_unknown()),
        ("workers", observation.workers.why_unknown()),
    ];
    Inputs {
        depth: observation.depth.known().copied(),
        desired: group.map(|group| group.desired),
        in_service: group.map(|group| group.count(Life::InService)),
        pending: group.map(|group| group.count(Life::Pending)),
        leaving: group.map(|group| group.count(Life::Leaving)),
        workers: workers_known.then_some(fresh.len()),
        busy: workers_known.then(|| fresh.values().map(|report| report.busy).sum()),
        service_ms: millis(history.service()),
        arrivals_per_s: history.arrival_rate().map(|rate| (rate * 100.0).round() / 100.0),
        boot_ms: millis(history.boot()),
        oldest_ms: millis(oldest),
        empty_for_ms: millis(history.empty_for()),
        unknown: unknown
            .into_iter()
            .filter_map(|(source, why)| Some(format!("{source}: {}", why?)))
            .collect(),
    }
}

fn propose(objective: &Objective, inputs: &Inputs) -> Vec<Proposal> {
    let mut proposals = vec![Proposal {
        rule: Rule::Min,
        instances: objective.instances_min,
        why: "instances.min".to_owned(),
    }];
    let held = inputs.busy.unwrap_or(0);
    let backlog = inputs.depth.map_or(0, Depth::total).max(held);
    if backlog > 0 {
        proposals.push(drain(objective, inputs, backlog));
    }
    // Arrivals are averaged over minutes; a queue proven empty is better news than that.
    if let Some(rate) = inputs.arrivals_per_s
        && inputs.empty_for_ms < millis(objective.settle)
    {
        proposals.push(flow(objective, inputs, rate));
    }
    proposals
}

/// Little's law: arrivals × service time is the number of slots at work. The promise leaves
/// room for a backlog, so a shortfall of a quarter instance is left to the drain rule, which
/// sees it as age; asking for it here would make every fluctuation an instance.
fn flow(objective: &Objective, inputs: &Inputs, rate: f64) -> Proposal {
    let slots = rate * inputs.service_ms as f64 / 1000.0;
    let exact = slots / objective.slots.max(1) as f64;
    let tolerated = FLOW_TOLERANCE * exact.sqrt().max(1.0);
    Proposal {
        rule: Rule::Flow,
        instances: (exact - tolerated).ceil().max(0.0) as u32,
        why: format!("{rate:.2} messages/s of {} ms: {exact:.1} instances", inputs.service_ms),
    }
}

/// Work ÷ what one instance does in the time that is left. What the instances at work do while
/// new ones boot is not asked of the new ones: with `W` the work in instance-seconds, `t` the
/// time left, `b` a boot and `r` instances at work, `r` suffice when `W ≤ r·t`, else
/// `(W − r·b) / (t − b)` are needed.
fn drain(objective: &Objective, inputs: &Inputs, backlog: u64) -> Proposal {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let period = objective.period.as_secs_f64().max(0.001);
    let service = seconds(inputs.service_ms);
    // The last message is served to its end, and every reading is a period old.
    let margin = objective.freshness.as_secs_f64() * MARGIN_SHARE + 2.0 * service + period;
    let left = (objective.freshness.as_secs_f64() - seconds(inputs.oldest_ms) - margin).max(period);
    let work = backlog as f64 * service / objective.slots.max(1) as f64;
    let at_work = f64::from(inputs.in_service.unwrap_or(0));
    let boot = seconds(inputs.boot_ms);
    let needed = if work <= at_work * left {
        work / left
    } else {
        ((work - at_work * boot.min(left)) / (left - boot).max(period)).max(at_work)
    };
    Proposal {
        rule: Rule::Drain,
        instances: (needed.ceil() as u32).max(1),
        why: format!(
            "{backlog} messages of {} ms, {} at a time, in {left:.0} s",
            inputs.service_ms, objective.slots
        ),
    }
}

/// Why something may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// Nothing is left to do, on readings that outlast their lag.
    Empty,
    /// For longer than a boot the rules have wanted no more than this.
    Surplus { instances: u32 },
}

fn may_shrink(
    objective: &Objective,
    history: &History,
    observation: &Observation,
    group: &GroupState,
    now: Timestamp,
) -> Result<Proof, HoldReason> {
    let Some(depth) = observation.depth.known() else { return Err(HoldReason::DepthUnknown) };
    if observation.workers.known().is_none() {
        return Err(HoldReason::WorkersUnknown);
    }
    if group.count(Life::Pending) > 0 {
        return Err(HoldReason::InstancePending);
    }
    let busy = observation.fresh_workers(now).values().any(|report| report.busy > 0);
    if depth.total() == 0 && !busy && history.empty_for() >= objective.settle {
        return Ok(Proof::Empty);
    }
    // An instance let go too early costs another boot: wait for as long as that is worth, and
    // never less than the counters may lag.
    let wait = history.boot().max(objective.settle);
    match history.wanted_within(now, wait) {
        Some(most) if most < group.desired => Ok(Proof::Surplus { instances: most.max(1) }),
        _ => Err(HoldReason::Settling),
    }
}

/// The configured bounds first, then the group's own, which the service enforces anyway.
fn clamp(objective: &Objective, group: &GroupState, wanted: u32, clamps: &mut Vec<Clamp>) -> u32 {
    let mut size = wanted;
    for (bound, clamped) in [
        ("instances.max", size.min(objective.instances_max)),
        ("group min", size.min(objective.instances_max).max(group.min)),
        ("group max", size.min(objective.instances_max).max(group.min).min(group.max)),
    ] {
        if clamped != size {
            clamps.push(Clamp { bound: bound.to_owned(), from: size, to: clamped });
            size = clamped;
        }
    }
    size
}

fn step_out(group: &GroupState, to: u32) -> Step {
    if group.is_suspended("Launch") {
        return Step::Hold(HoldReason::LaunchSuspended);
    }
    Step::Out { from: group.desired, to }
}

fn step_in(
    observation: &Observation,
    group: &GroupState,
    target: u32,
    proof: Proof,
    now: Timestamp,
    victims: &mut Vec<InstanceId>,
) -> Step {
    let from = group.desired;
    let target = match proof {
        Proof::Empty => target,
        Proof::Surplus { instances } => target.max(instances),
    };
    if target >= from {
        return Step::Hold(HoldReason::Settling);
    }
    let present = group.count(Life::InService) + group.count(Life::Pending);
    if present < from {
        return Step::Cut { from, to: target.max(present) };
    }
    if group.is_suspended("Terminate") {
        return Step::Hold(HoldReason::TerminateSuspended);
    }
    let fresh = observation.fresh_workers(now);
    let surplus = usize::try_from(from - target).unwrap_or(usize::MAX);
    let idle = group
        .instances
        .iter()
        .filter(|instance| instance.life == Life::InService && !instance.protected)
        .filter(|instance| match (fresh.get(&instance.id), proof) {
            (Some(report), _) => report.busy == 0,
            // Silent: perhaps just arrived, perhaps broken. With nothing left to do it may go.
            (None, Proof::Empty) => true,
            (None, Proof::Surplus { .. }) => false,
        });
    victims.extend(idle.take(surplus).map(|instance| instance.id.clone()));
    let count = u32::try_from(victims.len()).unwrap_or(u32::MAX);
    if count == 0 {
        return Step::Hold(HoldReason::NoIdleVictim);
    }
    Step::In { from, to: from.saturating_sub(count) }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Step {
    /// The word used in logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Hold(_) => "hold",
            Step::Out { .. } => "out",
            Step::In { .. } => "in",
            Step::Cut { .. } => "cut",
        }
    }
}

impl fmt::Display for HoldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HoldReason::Enough => "the size fits the work",
            HoldReason::AtMax => "already at the maximum",
            HoldReason::Stale => "the observation is too old",
            HoldReason::GroupUnknown => "the group is unknown",
            HoldReason::DepthUnknown => "the queue's depth is unknown",
            HoldReason::WorkersUnknown => "what the workers do is unknown",
            HoldReason::Settling => "some to spare, but not for long enough",
            HoldReason::InstancePending => "instances are still arriving",
            HoldReason::LaunchSuspended => "the group's Launch process is suspended",
            HoldReason::TerminateSuspended => "the group's Terminate process is suspended",
            HoldReason::NoIdleVictim => "no instance is idle and unprotected",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Min => "min",
            Rule::Drain => "drain",
            Rule::Flow => "flow",
        })
    }
}

/// The whole decision as text, one line per fact.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline())?;
        let inputs = &self.inputs;
        match inputs.depth {
            Some(Depth { visible, in_flight, delayed }) => {
                write!(
                    f,
                    "  queue    visible {visible}, in flight {in_flight}, delayed {delayed}"
                )?;
                match inputs.empty_for_ms {
                    0 => writeln!(f)?,
                    ms => writeln!(f, "; empty for {} s", ms / 1000)?,
                }
            }
            None => writeln!(f, "  queue    unknown")?,
        }
        match (inputs.desired, inputs.in_service, inputs.pending, inputs.leaving) {
            (Some(desired), Some(in_service), Some(pending), Some(leaving)) => writeln!(
                f,
                "  group    desired {desired}: in service {in_service}, pending {pending}, leaving {leaving}"
            )?,
            _ => writeln!(f, "  group    unknown")?,
        }
        match (inputs.workers, inputs.busy) {
            (Some(workers), Some(busy)) => {
                writeln!(f, "  workers  {workers} reporting, {busy} messages held")?;
            }
            _ => writeln!(f, "  workers  unknown")?,
        }
        for why in &inputs.unknown {
            writeln!(f, "  unknown  {why}")?;
        }
        for proposal in &self.proposals {
            let mark = if proposal.rule == self.winner { "*" } else { " " };
            let (rule, why) = (proposal.rule.to_string(), &proposal.why);
            writeln!(f, "  {mark} {rule:<6} {:>4}  {why}", proposal.instances)?;
        }
        for clamp in &self.clamps {
            writeln!(f, "  clamped  {} → {} by {}", clamp.from, clamp.to, clamp.bound)?;
        }
        for suppressed in &self.suppressed {
            let Suppressed { from, to, by } = suppressed;
            writeln!(f, "  suppressed  {from} → {to}: {by}")?;
        }
        if !self.victims.is_empty() {
            let victims: Vec<&str> = self.victims.iter().map(|id| id.0.as_str()).collect();
            writeln!(f, "  victims  {}", victims.join(", "))?;
        }
        Ok(())
    }
}

impl Report {
    /// The decision in one line.
    pub fn headline(&self) -> String {
        let why = self
            .proposals
            .iter()
            .find(|proposal| proposal.rule == self.winner)
            .map_or("", |proposal| proposal.why.as_str());
        let why = if self.wanted == Some(0) { "nothing left to do" } else { why };
        match self.step {
            Step::Hold(reason) => match self.inputs.desired {
                Some(desired) => format!("hold at {desired}: {reason}"),
                None => format!("hold: {reason}"),
            },
            Step::Out { from, to } => format!("out {from} → {to}: {why}"),
            Step::In { from, to } => format!("in {from} → {to}: {why}"),
            Step::Cut { from, to } => format!("cut {from} → {to}: these instances never came"),
        }
    }
}
