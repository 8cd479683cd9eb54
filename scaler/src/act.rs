//! Carries a plan out, or finds that it no longer applies. Reads before it writes: the plan may
//! have been made from a world that somebody has changed since, and Auto Scaling has no
//! compare-and-set.

use std::fmt;

use serde::Serialize;
use tracing::debug;

use crate::group::{Group, GroupError, GroupState, InstanceId, Life};
use crate::policy::{Plan, Step};

/// What came of a plan. The next observation starts afresh, so nothing here needs undoing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The plan was to do nothing.
    Held,
    Done,
    /// Somebody else has already made it so.
    AlreadyThere,
    /// The group changed under the plan; nothing was written.
    Overtaken {
        desired: u32,
    },
    /// An instance refresh replaces instances: until it is through, the size is its business.
    Refreshing,
    /// The group is busy or away: the next period tries again, from a new observation. The
    /// steps already taken stand.
    Later {
        terminated: Vec<InstanceId>,
        why: String,
    },
    /// The group will not do it until a person changes something.
    Refused {
        terminated: Vec<InstanceId>,
        why: String,
    },
    /// Decided, and by order not carried out.
    DryRun,
    /// Another scaler holds the lease, or who holds it is unknown.
    StoodBy,
}

pub async fn act(group: &impl Group, plan: &Plan) -> Outcome {
    if !matches!(plan.step, Step::Hold(_)) {
        match group.refreshing().await {
            Ok(true) => return Outcome::Refreshing,
            Ok(false) => {}
            // Rare as refreshes are, not knowing of one must not stop the fleet from growing.
            Err(error) => debug!(%error, "whether an instance refresh is under way is unknown"),
        }
    }
    match plan.step {
        Step::Hold(_) => Outcome::Held,
        Step::Out { from, to } | Step::Cut { from, to } => resize(group, from, to).await,
        Step::In { from, .. } => terminate(group, from, &plan.victims).await,
    }
}

async fn resize(group: &impl Group, from: u32, to: u32) -> Outcome {
    let state = match group.describe().await {
        Ok(state) => state,
        Err(error) => return failed(Vec::new(), &error),
    };
    if state.desired == to {
        return Outcome::AlreadyThere;
    }
    let present = state.count(Life::InService) + state.count(Life::Pending);
    // Cutting below what is there by now would let the group choose a victim.
    let would_kill = to < from && present > to;
    if state.desired != from || !(state.min..=state.max).contains(&to) || would_kill {
        return Outcome::Overtaken { desired: state.desired };
    }
    match group.set_desired(to).await {
        Ok(()) => Outcome::Done,
        Err(error) => failed(Vec::new(), &error),
    }
}

async fn terminate(group: &impl Group, from: u32, victims: &[InstanceId]) -> Outcome {
    let state = match group.describe().await {
        Ok(state) => state,
        Err(error) => return failed(Vec::new(), &error),
    };
    if state.desired != from || !headroom(&state, victims) {
        return Outcome::Overtaken { desired: state.desired };
    }
    let mut terminated = Vec::new();
    for victim in victims {
        if let Err(error) = group.terminate(victim).await {
            return failed(terminated, &error);
        }
        terminated.push(victim.clone());
    }
    Outcome::Done
}

/// Every victim is still there, and the minimum leaves room for all of them: an importer that
/// drains for a termination that is then refused has stopped working for nothing.
fn headroom(state: &GroupState, victims: &[InstanceId]) -> bool {
    let room = usize::try_from(state.desired.saturating_sub(state.min)).unwrap_or(usize::MAX);
    let in_service = |id: &InstanceId| {
        state.instances.iter().any(|i| i.id == *id && i.life == Life::InService && !i.protected)
    };
    victims.len() <= room && victims.iter().all(in_service)
}

fn failed(terminated: Vec<InstanceId>, error: &GroupError) -> Outcome {
    let why = error.to_string();
    match error {
        GroupError::Busy { .. } | GroupError::Away { .. } => Outcome::Later { terminated, why },
        GroupError::Missing { .. } | GroupError::Refused { .. } => {
            Outcome::Refused { terminated, why }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Held => f.write_str("held"),
            Outcome::Done => f.write_str("done"),
            Outcome::AlreadyThere => f.write_str("already there"),
            Outcome::Overtaken { desired } => {
                write!(f, "the group changed meanwhile (desired {desired}); nothing done")
            }
            Outcome::Refreshing => f.write_str("an instance refresh is under way; nothing done"),
            Outcome::Later { terminated, why } => {
                write!(f, "put off after {} terminations: {why}", terminated.len())
            }
            Outcome::Refused { terminated, why } => {
                write!(f, "refused after {} terminations: {why}", terminated.len())
            }
            Outcome::DryRun => f.write_str("dry run: nothing done"),
            Outcome::StoodBy => f.write_str("standing by: another scaler acts"),
        }
    }
}
