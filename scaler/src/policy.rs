//! The decision: a pure function from what is known to what is to be done, and why.
//!
//! Every rule proposes a size; the largest wins; bounds clamp it; safety may still suppress the
//! step. The report carries all of it, so that no size is ever a mystery.

use std::cmp::Ordering;
use std::time::Duration;

use weirgate_common::clock::Timestamp;
use weirgate_common::ledger::{WorkerReport, WorkerState};
use weirgate_common::queue::Depth;

use crate::cloudwatch::Aged;
use crate::group::{GroupState, InstanceId, Life};
use crate::history::History;
use crate::observe::Observation;
pub use crate::report::{Clamp, HoldReason, Inputs, Proposal, Report, Rule, Step, Suppressed};
use crate::saturation::Growth;

/// The flow rule leaves this many instances, times the root of the fleet, to the drain rule.
const FLOW_TOLERANCE: f64 = 0.25;

/// While what waits is younger than this part of the promise, less a boot to notice and one to
/// react, those at work are keeping up.
const CALM_PART: u64 = 4;

/// Messages in flight that SQS allows a standard queue; receives beyond it find nothing.
const IN_FLIGHT_MAX: u64 = 120_000;

/// When this part of what is settled is dead-lettered, the rest is expected to follow.
const POISON_PART: f64 = 0.9;

/// Fewer dead letters than this are no epidemic.
const POISON_MIN: u64 = 20;

/// The last instance waits at most this long for work to come back.
const KEPT_MAX: Duration = Duration::from_secs(900);

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
    report.proposals.extend(keep(history, observation, now));
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
    let bounded = clamp(objective, group, wanted, &mut report.clamps);
    let growth = history.growth(now);
    let (target, limit) =
        limit_growth(objective, &report.inputs, growth, group, bounded, &mut report.clamps);
    let step = match target.cmp(&group.desired) {
        Ordering::Greater => step_out(observation, group, target, now),
        Ordering::Equal if target < bounded => Step::Hold(limit),
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
    let held: u64 = fresh.values().map(|report| report.busy).sum();
    let parked = match (observation.depth.known(), workers_known) {
        (Some(depth), true) => depth.in_flight.saturating_sub(held),
        // Held by workers that are not heard, as far as anybody knows.
        _ => 0,
    };
    let aged = observation.oldest.known().copied().flatten();
    let waited = |aged: Aged| aged.age + now.since(aged.at);
    let total = observation.depth.known().map_or(0, |depth| depth.total());
    let waiting = total.saturating_sub(held + parked);
    let rate = history.arrival_rate();
    // Three upper bounds, none good in all cases: what workers hold tells when it was sent, but
    // also how long it has been worked on; what waits is not older than the time since the queue
    // was last seen empty, nor than the time it took to arrive. Where nobody holds anything, what
    // waits may be older than this scaler has been looking; CloudWatch has looked for longer.
    let oldest = fresh.values().filter_map(|report| report.oldest_message_at).min().map_or_else(
        || history.occupied_for().max(aged.filter(|_| total > 0).map_or(Duration::ZERO, waited)),
        |sent_at| now.since(sent_at),
    );
    let arrived_in = match rate {
        Some(rate) if rate > 0.0 => Duration::try_from_secs_f64(waiting as f64 / rate).ok(),
        _ => None,
    };
    let oldest = oldest.min(arrived_in.unwrap_or(Duration::MAX));
    let (arriving, arriving_in) = history.arriving(now);
    let unknown = [
        ("queue", observation.depth.why_unknown()),
        ("group", observation.group.why_unknown()),
        ("workers", observation.workers.why_unknown()),
        ("oldest message", observation.oldest.why_unknown()),
        ("dead letters", observation.dead_letters.why_unknown()),
    ];
    Inputs {
        depth: observation.depth.known().copied(),
        desired: group.map(|group| group.desired),
        changed_from: history.changed_from(),
        in_service: group.map(|group| group.count(Life::InService)),
        pending: group.map(|group| group.count(Life::Pending)),
        leaving: group.map(|group| group.count(Life::Leaving)),
        launch_failure: group.and_then(|group| group.launch_failure.clone()),
        queue_oldest_ms: aged.map(|aged| millis(aged.age)),
        workers: workers_known.then_some(fresh.len()),
        busy: workers_known.then_some(held),
        parked,
        at_work: workers_known.then(|| {
            let working = |report: &&&WorkerReport| report.state != WorkerState::Draining;
            fresh.values().filter(working).count() as u64
        }),
        arriving,
        arriving_in_ms: millis(arriving_in),
        settled_lately: history.settled_lately(),
        dead_letters_lately: observation.dead_letters.known().copied(),
        service_ms: millis(history.service()),
        arrivals_per_s: rate.map(|rate| (rate * 100.0).round() / 100.0),
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
    // A message in flight that no worker attests waits out the pause before a retry, or the lease
    // of a worker that is gone: nobody can work on it now, and it comes back as visible.
    let backlog = inputs.depth.map_or(0, Depth::total).saturating_sub(inputs.parked).max(held);
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

/// The last instance stays while work is likely to come back soon. Where the pauses are short,
/// a fleet that goes to sleep in each of them depends on a launch for every message, and launches
/// fail. Where they are long, waiting for their end would be a fleet that never sleeps.
fn keep(history: &History, observation: &Observation, now: Timestamp) -> Option<Proposal> {
    let present = observation.group.known()?.count(Life::InService);
    let usually = history.quiet_usually().filter(|usually| *usually <= KEPT_MAX)?;
    let quiet = history.quiet_for(now);
    (present > 0 && quiet <= usually).then(|| Proposal {
        rule: Rule::Keep,
        instances: 1,
        why: format!(
            "quiet for {} s; nine in ten of the latest pauses ended within {} s",
            quiet.as_secs(),
            usually.as_secs()
        ),
    })
}

/// Little's law: arrivals × service time is the number of slots at work. The promise leaves
/// room for a backlog, so a shortfall of a quarter instance is left to the drain rule, which
/// sees it as age; asking for it here would make every fluctuation an instance. For the same
/// reason nothing is added while nothing has waited for long: those at work keep up.
fn flow(objective: &Objective, inputs: &Inputs, rate: f64) -> Proposal {
    let slots = rate * inputs.service_ms as f64 / 1000.0;
    let exact = slots / objective.slots.max(1) as f64;
    let tolerated = FLOW_TOLERANCE * exact.sqrt().max(1.0);
    let wanted = (exact - tolerated).ceil().max(0.0) as u32;
    let present = u32::try_from(inputs.at_work.unwrap_or(0) + inputs.arriving).unwrap_or(u32::MAX);
    let calm_ms = millis(objective.freshness).saturating_sub(2 * inputs.boot_ms) / CALM_PART;
    let calm = inputs.oldest_ms < calm_ms && wanted > present;
    let kept_up = if calm { "; but nothing waits for long" } else { "" };
    Proposal {
        rule: Rule::Flow,
        instances: if calm { present } else { wanted },
        why: format!(
            "{rate:.2} messages/s of {} ms: {exact:.1} instances{kept_up}",
            inputs.service_ms
        ),
    }
}

/// Work ÷ what an instance does in the time that is left, `t`. Those at work have all of it,
/// those arriving what is left of it after they arrive, and new ones `t` less a boot: the work is
/// given to the first, then to the second, and new ones are asked for only for the rest.
fn drain(objective: &Objective, inputs: &Inputs, backlog: u64) -> Proposal {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let period = objective.period.as_secs_f64().max(0.001);
    let service = seconds(inputs.service_ms);
    // The last message is served to its end, and every reading is a period old.
    let margin = objective.freshness.as_secs_f64() * MARGIN_SHARE + 2.0 * service + period;
    let left = (objective.freshness.as_secs_f64() - seconds(inputs.oldest_ms) - margin).max(period);
    let work = backlog as f64 * service / objective.slots.max(1) as f64;
    let at_work = inputs.at_work.unwrap_or(0) as f64;
    let arriving = inputs.arriving as f64;
    let useful = |boots_in: f64| (left - boots_in).max(period);
    let soon = useful(seconds(inputs.arriving_in_ms));
    let needed = if work <= at_work * left {
        work / left
    } else if work <= at_work * left + arriving * soon {
        at_work + (work - at_work * left) / soon
    } else {
        let rest = work - at_work * left - arriving * soon;
        at_work + arriving + rest / useful(seconds(inputs.boot_ms))
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
    let (empty_for, mut contradicted) = (history.empty_for(), false);
    if depth.total() == 0 && !busy && empty_for >= objective.settle {
        let aged = observation.oldest.known().copied().flatten();
        let waits = |aged: Aged| aged.age > Duration::ZERO && aged.at >= now.before(empty_for);
        if !aged.is_some_and(waits) {
            return Ok(Proof::Empty);
        }
        contradicted = true;
    }
    // An instance let go too early costs another boot: wait for as long as that is worth, and
    // never less than the counters may lag.
    let wait = history.boot().max(objective.settle);
    match history.wanted_within(now, wait) {
        // The last goes on proof alone.
        Some(most) if most.max(1) < group.desired => Ok(Proof::Surplus { instances: most.max(1) }),
        _ if contradicted => Err(HoldReason::Contradicted),
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

/// Leaves out growth that cannot help. No limit takes away what is there. The last that bit is
/// the tightest, and the reason to hold.
fn limit_growth(
    objective: &Objective,
    inputs: &Inputs,
    growth: Growth,
    group: &GroupState,
    wanted: u32,
    clamps: &mut Vec<Clamp>,
) -> (u32, HoldReason) {
    let instances =
        |slots: u64| u32::try_from(slots.div_ceil(objective.slots.max(1))).unwrap_or(u32::MAX);
    // What nobody attests is in flight all the same, and takes of what the queue allows.
    let parked = inputs.parked;
    let by_queue = instances(IN_FLIGHT_MAX.saturating_sub(parked));
    let (by_throughput, reason, figures) = match growth {
        Growth::Free => (u32::MAX, HoldReason::Enough, String::new()),
        Growth::Probe { slots, took_s, usual_s } => (
            instances(slots),
            HoldReason::Probing,
            format!("probe: messages take {took_s:.1} s, usually {usual_s:.1} s"),
        ),
        Growth::Saturated { slots, per_s, before, before_per_s } => (
            instances(slots),
            HoldReason::Saturated,
            format!(
                "saturation: {slots} slots settle {per_s:.1}/s, {before} settled {before_per_s:.1}/s"
            ),
        ),
    };
    // One stays for the message that can be helped.
    let dead = inputs.dead_letters_lately.unwrap_or(0);
    let poisoned = dead >= POISON_MIN && dead as f64 >= inputs.settled_lately as f64 * POISON_PART;
    let at_work = u32::try_from(inputs.at_work.unwrap_or(0)).unwrap_or(u32::MAX);
    let by_poison = if poisoned { at_work.max(1) } else { u32::MAX };
    let poison = format!("poison: {dead} of {} settled were dead-lettered", inputs.settled_lately);
    let in_flight = format!("in-flight limit: {parked} of {IN_FLIGHT_MAX} in nobody's hands");
    let (mut size, mut by) = (wanted, HoldReason::Enough);
    for (limit, reason, bound) in [
        (by_throughput, reason, figures),
        (by_poison, HoldReason::MostlyPoison, poison),
        (by_queue, HoldReason::InFlightLimit, in_flight),
    ] {
        let limited = size.min(limit.max(group.desired));
        if limited < size {
            clamps.push(Clamp { bound, from: size, to: limited });
            (size, by) = (limited, reason);
        }
    }
    (size, by)
}

fn step_out(observation: &Observation, group: &GroupState, to: u32, now: Timestamp) -> Step {
    if group.is_suspended("Launch") {
        return Step::Hold(HoldReason::LaunchSuspended);
    }
    let fresh = observation.fresh_workers(now);
    let mut states = fresh.values().map(|report| report.state).peekable();
    if states.peek().is_some() && states.all(|state| state == WorkerState::Waiting) {
        return Step::Hold(HoldReason::WorkersWaiting);
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
