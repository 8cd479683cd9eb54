//! The Auto Scaling group as people ask about it. Who works and who is asked to, not who should:
//! that is the scaler's.

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::types::{AutoScalingGroup, LifecycleState};
use weirgate_common::aws;

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Group {
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) desired: u32,
    pub(crate) in_service: u32,
    /// On their way to service.
    pub(crate) pending: u32,
    /// Still finishing what they hold.
    pub(crate) terminating: u32,
}

/// The group as AWS describes it; the error says what to do.
pub(crate) async fn fetch(client: &Client, name: &str) -> Result<AutoScalingGroup, String> {
    let answer =
        client.describe_auto_scaling_groups().auto_scaling_group_names(name).send().await.map_err(
            |error| format!("DescribeAutoScalingGroups failed: {}", aws::describe(&error)),
        )?;
    answer
        .auto_scaling_groups
        .unwrap_or_default()
        .into_iter()
        .next()
        .ok_or_else(|| format!("there is no Auto Scaling group {name} in this account and region"))
}

pub(crate) async fn describe(client: &Client, name: &str) -> Result<Group, String> {
    fetch(client, name).await.map(|group| summary(&group))
}

pub(crate) fn summary(raw: &AutoScalingGroup) -> Group {
    let whole = |number: Option<i32>| u32::try_from(number.unwrap_or(0)).unwrap_or(0);
    let mut group = Group {
        min: whole(raw.min_size),
        max: whole(raw.max_size),
        desired: whole(raw.desired_capacity),
        ..Group::default()
    };
    for instance in raw.instances() {
        match instance.lifecycle_state() {
            Some(LifecycleState::InService) => group.in_service += 1,
            Some(
                LifecycleState::Pending
                | LifecycleState::PendingWait
                | LifecycleState::PendingProceed,
            ) => group.pending += 1,
            Some(
                LifecycleState::Terminating
                | LifecycleState::TerminatingWait
                | LifecycleState::TerminatingProceed,
            ) => group.terminating += 1,
            // Standby, detached, warm: neither working nor coming.
            _ => {}
        }
    }
    group
}
