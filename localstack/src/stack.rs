//! Deploys the templates of `infra/`, the very files that ship, to the emulators.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_sdk_cloudformation::Client;
use aws_sdk_cloudformation::error::DisplayErrorContext;
use aws_sdk_cloudformation::types::{Capability, Parameter, Stack, StackStatus};
use weirgate_common::clock;

pub const DATA_PLANE: &str = include_str!("../../infra/data-plane.yaml");
pub const FLEET: &str = include_str!("../../infra/fleet.yaml");

const DEPLOY_MAX: Duration = Duration::from_secs(90);

pub type Outputs = BTreeMap<String, String>;

/// Creates the stack, waits until it is complete and returns its outputs.
pub async fn deploy(
    client: &Client,
    name: &str,
    template: &str,
    parameters: &BTreeMap<String, String>,
) -> Result<Outputs> {
    let parameters = parameters
        .iter()
        .map(|(key, value)| Parameter::builder().parameter_key(key).parameter_value(value).build());
    client
        .create_stack()
        .stack_name(name)
        .template_body(template)
        .set_parameters(Some(parameters.collect()))
        .capabilities(Capability::CapabilityNamedIam)
        .send()
        .await
        .map_err(|error| anyhow::anyhow!("{}", DisplayErrorContext(error)))
        .with_context(|| format!("create stack {name}"))?;

    let deadline = clock::monotonic() + DEPLOY_MAX;
    loop {
        let stack = describe(client, name).await?;
        match stack.stack_status() {
            Some(StackStatus::CreateComplete) => return Ok(outputs(&stack)),
            Some(StackStatus::CreateInProgress) if clock::monotonic() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            status => {
                let status = status.map_or("unknown", StackStatus::as_str);
                bail!("stack {name} is {status}:\n{}", failures(client, name).await);
            }
        }
    }
}

async fn describe(client: &Client, name: &str) -> Result<Stack> {
    let answer = client
        .describe_stacks()
        .stack_name(name)
        .send()
        .await
        .map_err(|error| anyhow::anyhow!("{}", DisplayErrorContext(error)))
        .with_context(|| format!("describe stack {name}"))?;
    answer.stacks.unwrap_or_default().pop().with_context(|| format!("stack {name} is gone"))
}

fn outputs(stack: &Stack) -> Outputs {
    let pairs = stack.outputs().iter().filter_map(|output| {
        Some((output.output_key()?.to_owned(), output.output_value()?.to_owned()))
    });
    pairs.collect()
}

/// What the stack's events say went wrong.
async fn failures(client: &Client, name: &str) -> String {
    let events = match client.describe_stack_events().stack_name(name).send().await {
        Ok(answer) => answer.stack_events.unwrap_or_default(),
        Err(error) => return format!("its events cannot be read: {}", DisplayErrorContext(error)),
    };
    let lines = events.iter().filter_map(|event| {
        let reason = event.resource_status_reason()?;
        Some(format!("  {}: {reason}", event.logical_resource_id().unwrap_or("?")))
    });
    lines.collect::<Vec<_>>().join("\n")
}
