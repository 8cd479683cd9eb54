//! The Auto Scaling group: what it says about itself, and the two ways its size is changed.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::retry::RetryConfig;
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::types::{Activity, LifecycleState};
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

    /// Whether an instance refresh replaces instances right now: two who resize one group undo
    /// each other's work.
    fn refreshing(&self) -> impl Future<Output = Result<bool, GroupError>> + Send;

    /// What the group says of its latest activity: who changed its size, and why.
    fn latest_cause(&self) -> impl Future<Output = Result<Option<String>, GroupError>> + Send;
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
    /// Why the group's latest launch failed, while it has fewer instances than it asks for. An
    /// accepted size tells nothing of it.
    pub launch_failure: Option<String>,
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
        let mut state = GroupState {
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
            launch_failure: None,
        };
        let coming = state.count(Life::InService) + state.count(Life::Pending);
        if coming < state.desired {
            state.launch_failure = self.launch_failure().await?;
        }
        Ok(state)
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

    async fn refreshing(&self) -> Result<bool, GroupError> {
        // Asked once: no answer is no reason to wait, and emulators do not know this call.
        let once =
            aws_sdk_autoscaling::config::Builder::new().retry_config(RetryConfig::disabled());
        let answer = self
            .client
            .describe_instance_refreshes()
            .auto_scaling_group_name(&self.name)
            .max_records(1)
            .customize()
            .config_override(once)
            .send()
            .await
            .map_err(|error| failure("DescribeInstanceRefreshes", &error))?;
        // Newest first.
        let latest = answer.instance_refreshes().first().and_then(|refresh| refresh.status());
        Ok(latest.is_some_and(|status| {
            let replaces = ["Pending", "InProgress", "Cancelling", "RollbackInProgress", "Baking"];
            replaces.contains(&status.as_str())
        }))
    }

    async fn latest_cause(&self) -> Result<Option<String>, GroupError> {
        let activities = self.activities(1).await?;
        Ok(activities.into_iter().next().and_then(|activity| activity.cause))
    }
}

impl AutoScalingGroup {
    /// Newest first.
    async fn activities(&self, count: i32) -> Result<Vec<Activity>, GroupError> {
        let answer = self
            .client
            .describe_scaling_activities()
            .auto_scaling_group_name(&self.name)
            .max_records(count)
            .send()
            .await
            .map_err(|error| failure("DescribeScalingActivities", &error))?;
        Ok(answer.activities.unwrap_or_default())
    }

    async fn launch_failure(&self) -> Result<Option<String>, GroupError> {
        Ok(latest_launch_failure(&self.activities(20).await?))
    }
}

/// Of the launches among the newest activities, the latest that has ended, if it failed. Launches
/// are told by their description, which the API reference gives as `Launching a new EC2 instance`.
fn latest_launch_failure(activities: &[Activity]) -> Option<String> {
    let is_launch = |activity: &&Activity| {
        activity.description().is_some_and(|text| text.starts_with("Launching"))
    };
    let ended = |activity: &&Activity| {
        let status = activity.status_code().map(|status| status.as_str());
        matches!(status, Some("Successful" | "Failed" | "Cancelled"))
    };
    let latest = activities.iter().filter(is_launch).find(ended)?;
    let failed = latest.status_code().is_some_and(|status| status.as_str() == "Failed");
    failed.then(|| latest.status_message().unwrap_or("no reason given").to_owned())
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
    fn launches_fail_until_one_succeeds() {
        let activity = |description: &str, status: &str, message: &str| {
            Activity::builder()
                .activity_id("a")
                .auto_scaling_group_name("g")
                .cause("c")
                .start_time(aws_sdk_autoscaling::primitives::DateTime::from_secs(0))
                .description(description)
                .status_code(status.into())
                .status_message(message)
                .build()
        };
        let failed = activity("Launching a new EC2 instance", "Failed", "no capacity");
        let launched = activity("Launching a new EC2 instance: i-1", "Successful", "");
        let waiting = activity("Launching a new EC2 instance: i-2", "PreInService", "");
        let ended = activity("Terminating EC2 instance: i-1", "Successful", "");
        let told = |activities: &[&Activity]| {
            let activities: Vec<Activity> = activities.iter().map(|a| (*a).clone()).collect();
            latest_launch_failure(&activities)
        };
        assert_eq!(told(&[&ended, &waiting, &failed, &launched]).as_deref(), Some("no capacity"));
        assert_eq!(told(&[&ended, &launched, &failed]), None);
        assert_eq!(told(&[]), None);
    }

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
