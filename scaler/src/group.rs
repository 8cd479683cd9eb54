//! The Auto Scaling group: what it says about itself, and the two ways its size is changed.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::types::LifecycleState;
use weirgate_common::fault::chain;

/// The port to one group. A call that returns an error may still have taken effect: callers
/// describe again before they write again.
pub trait Group: Send + Sync {
    fn describe(&self) -> impl Future<Output = Result<GroupState, GroupError>> + Send;

    /// Asks for a size. Success is not capacity: launches happen later, or fail.
    fn set_desired(&self, desired: u32) -> impl Future<Output = Result<(), GroupError>> + Send;

    /// Terminates this very instance and lowers the desired size by one, through the group's
    /// termination lifecycle hook. Refused when the size is at the group's minimum.
    fn terminate(
        &self,
        instance: &InstanceId,
    ) -> impl Future<Output = Result<(), GroupError>> + Send;
}

/// What the group is set to and what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    pub desired: u32,
    pub min: u32,
    pub max: u32,
    /// By id.
    pub instances: Vec<Instance>,
    /// Processes of the group that somebody has suspended (`Launch`, `Terminate`, …).
    pub suspended: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: InstanceId,
    pub life: Life,
    /// Protected from scale-in by somebody else's wish, which is respected.
    pub protected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct InstanceId(pub String);

/// The lifecycle states of Auto Scaling, by what they mean for capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// `Pending*`: capacity soon.
    Pending,
    InService,
    /// `Terminating*`: still consuming, irrevocably leaving, and no longer counted in the
    /// desired size.
    Leaving,
    /// Standby, detached, in the warm pool, or a state this program does not know: no capacity,
    /// and not ours to terminate.
    Apart,
}

#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error(
        "there is no Auto Scaling group `{name}` in this region; check auto_scaling_group and AWS_REGION"
    )]
    Missing { name: String },
    /// `ScalingActivityInProgress`, `ResourceContention` or throttling: try again later.
    #[error("the group is busy: {call}: {detail}")]
    Busy { call: &'static str, detail: String },
    /// A bound of the group or the instance's own state forbids it.
    #[error("the group refused {call}: {detail}")]
    Refused { call: &'static str, detail: String },
    #[error("{call} failed: {detail}")]
    Away { call: &'static str, detail: String },
}

impl GroupState {
    pub fn count(&self, life: Life) -> u32 {
        let count = self.instances.iter().filter(|instance| instance.life == life).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub fn is_suspended(&self, process: &str) -> bool {
        self.suspended.contains(process)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The real thing.
#[derive(Clone, Debug)]
pub struct AutoScalingGroup {
    client: Client,
    name: String,
}

impl AutoScalingGroup {
    pub fn new(client: Client, name: impl Into<String>) -> Self {
        AutoScalingGroup { client, name: name.into() }
    }
}

impl Group for AutoScalingGroup {
    async fn describe(&self) -> Result<GroupState, GroupError> {
        let call = "DescribeAutoScalingGroups";
        let answer = self
            .client
            .describe_auto_scaling_groups()
            .auto_scaling_group_names(&self.name)
            .send()
            .await
            .map_err(|error| failure(call, &error))?;
        let group = answer
            .auto_scaling_groups
            .unwrap_or_default()
            .into_iter()
            .find(|group| group.auto_scaling_group_name.as_deref() == Some(&self.name))
            .ok_or_else(|| GroupError::Missing { name: self.name.clone() })?;
        // A size that is not told is unknown; taking it for zero would be a decision.
        let size = |value: Option<i32>, field: &str| {
            value.and_then(|size| u32::try_from(size).ok()).ok_or_else(|| GroupError::Away {
                call,
                detail: format!("the answer holds no {field}"),
            })
        };
        let mut instances: Vec<Instance> = group
            .instances
            .unwrap_or_default()
            .into_iter()
            .filter_map(|instance| {
                Some(Instance {
                    id: InstanceId(instance.instance_id?),
                    life: instance.lifecycle_state.as_ref().map_or(Life::Apart, life),
                    protected: instance.protected_from_scale_in.unwrap_or(false),
                })
            })
            .collect();
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(GroupState {
            desired: size(group.desired_capacity, "DesiredCapacity")?,
            min: size(group.min_size, "MinSize")?,
            max: size(group.max_size, "MaxSize")?,
            instances,
            suspended: group
                .suspended_processes
                .unwrap_or_default()
                .into_iter()
                .filter_map(|process| process.process_name)
                .collect(),
        })
    }

    async fn set_desired(&self, desired: u32) -> Result<(), GroupError> {
        self.client
            .set_desired_capacity()
            .auto_scaling_group_name(&self.name)
            .desired_capacity(i32::try_from(desired).unwrap_or(i32::MAX))
            // The group's cooldown is for policies that cannot see what is already on its way.
            .honor_cooldown(false)
            .send()
            .await
            .map(drop)
            .map_err(|error| failure("SetDesiredCapacity", &error))
    }

    async fn terminate(&self, instance: &InstanceId) -> Result<(), GroupError> {
        self.client
            .terminate_instance_in_auto_scaling_group()
            .instance_id(&instance.0)
            .should_decrement_desired_capacity(true)
            .send()
            .await
            .map(drop)
            .map_err(|error| failure("TerminateInstanceInAutoScalingGroup", &error))
    }
}

fn life(state: &LifecycleState) -> Life {
    match state.as_str() {
        "InService" => Life::InService,
        "Pending" | "Pending:Wait" | "Pending:Proceed" => Life::Pending,
        text if text.starts_with("Terminating") || text == "Terminated" => Life::Leaving,
        _ => Life::Apart,
    }
}

/// Codes: Auto Scaling API reference, common errors and the errors of each action.
fn failure<E>(call: &'static str, error: &SdkError<E>) -> GroupError
where
    SdkError<E>: ProvideErrorMetadata,
    E: std::error::Error + 'static,
{
    let Some(code) = error.code() else {
        return GroupError::Away { call, detail: chain(error) };
    };
    let detail = match error.message() {
        Some(message) => format!("{code}: {message}"),
        None => code.to_owned(),
    };
    match code {
        "ScalingActivityInProgress"
        | "ScalingActivityInProgressFault"
        | "ResourceContention"
        | "ResourceContentionFault"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded" => GroupError::Busy { call, detail },
        "ValidationError" => GroupError::Refused { call, detail },
        _ => GroupError::Away { call, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifecycle_states_are_read_by_what_they_mean_for_capacity() {
        for (state, meaning) in [
            ("InService", Life::InService),
            ("Pending", Life::Pending),
            ("Pending:Wait", Life::Pending),
            ("Terminating:Wait", Life::Leaving),
            ("Terminated", Life::Leaving),
            ("Standby", Life::Apart),
            ("EnteringStandby", Life::Apart),
            ("Warmed:Stopped", Life::Apart),
            ("SomethingNew", Life::Apart),
        ] {
            assert_eq!(life(&LifecycleState::from(state)), meaning, "{state}");
        }
    }
}
