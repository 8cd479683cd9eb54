//! The account of one decision: what went in, what each rule proposed, what won, what bounds and
//! safety made of it. Logs, the ledger and people get this and never recompute it.

use std::fmt;

use serde::Serialize;
use weirgate_common::clock::Timestamp;
use weirgate_common::queue::Depth;

use crate::group::InstanceId;

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
    /// Every importer waits for a dependency to come back: more of them would wait with them.
    WorkersWaiting,
    /// The last instances added settled nothing more: what they wait for is at its limit.
    Saturated,
    /// Messages take longer than usual: what the last step did is not known yet.
    Probing,
    /// The queue hands out no more messages than are in flight already.
    InFlightLimit,
    /// Nearly all that is settled goes to the dead-letter queue, and so would the rest.
    MostlyPoison,
    /// The queue's counters say that it is empty, CloudWatch that something waits in it.
    Contradicted,
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
    /// The size we left the group at, when somebody else has just changed it.
    pub changed_from: Option<u32>,
    pub in_service: Option<u32>,
    pub pending: Option<u32>,
    pub leaving: Option<u32>,
    /// Why the group's latest launch failed, while instances are missing.
    pub launch_failure: Option<String>,
    /// What CloudWatch last said that the oldest message has waited, where it says anything.
    pub queue_oldest_ms: Option<u64>,
    /// Workers with a fresh report, and the messages they hold.
    pub workers: Option<usize>,
    pub busy: Option<u64>,
    /// In flight, but held by no worker that reports: between two tries, or lost with its worker
    /// until its lease ends.
    pub parked: u64,
    /// Workers that take new messages.
    pub at_work: Option<u64>,
    /// Instances whose first report is awaited, and the mean time until it should come.
    pub arriving: u64,
    pub arriving_in_ms: u64,
    /// Messages settled over the last minutes, and those of them that were dead-lettered.
    pub settled_lately: u64,
    pub dead_letters_lately: Option<u64>,
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
    /// The last instance, while work is likely to come back soon.
    Keep,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Clamp {
    /// `instances.max`, `saturation`, and so on, with the figures behind it.
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
            HoldReason::WorkersWaiting => {
                "the importers wait for a dependency; more would not help"
            }
            HoldReason::Saturated => "the last instances added did not settle more",
            HoldReason::Probing => {
                "messages take longer than usual; whether the last step helped is not known yet"
            }
            HoldReason::InFlightLimit => "the queue has no more messages to hand out in flight",
            HoldReason::MostlyPoison => "nearly every message is dead-lettered",
            HoldReason::Contradicted => "the counters say empty, CloudWatch that a message waits",
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
            Rule::Keep => "keep",
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
        if let Some(ms) = inputs.queue_oldest_ms {
            writeln!(f, "  oldest   {} s, says CloudWatch", ms / 1000)?;
        }
        match (inputs.desired, inputs.in_service, inputs.pending, inputs.leaving) {
            (Some(desired), Some(in_service), Some(pending), Some(leaving)) => writeln!(
                f,
                "  group    desired {desired}: in service {in_service}, pending {pending}, leaving {leaving}"
            )?,
            _ => writeln!(f, "  group    unknown")?,
        }
        if let Some(why) = &inputs.launch_failure {
            writeln!(f, "  launches  fail: {why}")?;
        }
        if let Some(from) = inputs.changed_from {
            writeln!(f, "  foreign  somebody else changed the size we left at {from}")?;
        }
        match (inputs.workers, inputs.busy) {
            (Some(workers), Some(busy)) => {
                write!(f, "  workers  {workers} reporting, {busy} messages held")?;
                match inputs.parked {
                    0 => writeln!(f)?,
                    parked => writeln!(f, "; {parked} in flight that none of them holds")?,
                }
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
