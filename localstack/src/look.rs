//! A look at a fleet's queue and group, for whatever shows them.

use aws_sdk_sqs::types::QueueAttributeName;
use serde::Serialize;

use crate::fleet::Clients;

/// Approximate, as SQS counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Depth {
    pub visible: u64,
    pub in_flight: u64,
    pub delayed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    pub desired: u64,
    pub instances: Vec<String>,
}

/// `None`: not known.
pub async fn depth(clients: &Clients, queue_url: &str) -> Option<Depth> {
    let answer = clients
        .sqs
        .get_queue_attributes()
        .queue_url(queue_url)
        .attribute_names(QueueAttributeName::All)
        .send()
        .await;
    let attributes = answer.ok()?.attributes?;
    let count = |name: QueueAttributeName| attributes.get(&name)?.parse().ok();
    Some(Depth {
        visible: count(QueueAttributeName::ApproximateNumberOfMessages)?,
        in_flight: count(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)?,
        delayed: count(QueueAttributeName::ApproximateNumberOfMessagesDelayed)?,
    })
}

/// `None`: not known.
pub async fn group(clients: &Clients, name: &str) -> Option<Group> {
    let answer = clients
        .auto_scaling
        .describe_auto_scaling_groups()
        .auto_scaling_group_names(name)
        .send()
        .await;
    let group = answer.ok()?.auto_scaling_groups?.pop()?;
    let instances = group.instances().iter();
    Some(Group {
        desired: u64::try_from(group.desired_capacity()?).ok()?,
        instances: instances.filter_map(|i| i.instance_id().map(str::to_owned)).collect(),
    })
}
