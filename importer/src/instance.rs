//! The machine under an importer, where it is an instance of an Auto Scaling group: hears that it
//! is to go, keeps the group waiting while messages are finished, and says when they are.
//!
//! The metadata service (IMDSv2) is where an instance learns of both ends: the termination
//! lifecycle hook (`target-lifecycle-state`) and the notice, two minutes ahead, that a Spot
//! instance is taken back (`spot/instance-action`).

use std::time::Duration;

use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::types::LifecycleHook;
use weirgate_common::aws;
use weirgate_common::clock::{self, Timestamp};

/// Between two looks. AWS recommends five seconds for the Spot notice.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// Between two looks while nothing answers: elsewhere than on EC2 nothing ever will.
const SILENT_PERIOD: Duration = Duration::from_secs(60);

/// How far ahead AWS warns of taking a Spot instance back.
const SPOT_WARNING: Duration = Duration::from_secs(120);

/// What a Spot instance keeps of its last moments for reporting and exiting.
const SPOT_RESERVE: Duration = Duration::from_secs(10);

const TARGET_STATE: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";
const SPOT_ACTION: &str = "/latest/meta-data/spot/instance-action";
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";

/// Why the instance goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The group terminates it, and waits for the hook.
    Terminating,
    /// AWS takes it back at this time, waited for or not.
    Spot { at: Timestamp },
}

impl Notice {
    /// What a drain may take of `grace`.
    pub(crate) fn grace(self, grace: Duration, now: Timestamp) -> Duration {
        match self {
            Notice::Terminating => grace,
            Notice::Spot { at } => grace.min(at.since(now).saturating_sub(SPOT_RESERVE)),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Instance {
    metadata: imds::Client,
    auto_scaling: Client,
    group: String,
}

impl Instance {
    /// `None` where the environment says that there is no metadata service, as the SDKs read it.
    pub(crate) fn new(auto_scaling: Client, group: &str) -> Option<Self> {
        let disabled = std::env::var("AWS_EC2_METADATA_DISABLED").unwrap_or_default();
        (!disabled.eq_ignore_ascii_case("true")).then(|| Instance {
            metadata: imds::Client::builder().max_attempts(1).build(),
            auto_scaling,
            group: group.to_owned(),
        })
    }

    /// Resolves when the instance is to go.
    pub(crate) async fn notice(&self) -> Notice {
        loop {
            let pause = match self.look().await {
                Ok(Some(notice)) => {
                    tracing::info!(?notice, "the instance is to go");
                    return notice;
                }
                Ok(None) => LOOK_PERIOD,
                Err(error) => {
                    tracing::debug!(%error, "the metadata service does not answer");
                    SILENT_PERIOD
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&self) -> Result<Option<Notice>, ImdsError> {
        if self.read(TARGET_STATE).await?.as_deref() == Some("Terminated") {
            return Ok(Some(Notice::Terminating));
        }
        let action = self.read(SPOT_ACTION).await?;
        Ok(action.and_then(|action| spot_notice(&action)))
    }

    /// `None` where there is nothing at that path, which is how most instances answer.
    async fn read(&self, path: &str) -> Result<Option<String>, ImdsError> {
        match self.metadata.get(path).await {
            Ok(text) => Ok(Some(text.into())),
            Err(ImdsError::ErrorResponse(answer)) if answer.response().status().as_u16() == 404 => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Tells the group again and again that the instance still works, until dropped: the hook's
    /// own time-out may be shorter than the drain.
    pub(crate) async fn hold_on(&self) {
        let Some((hook, instance)) = self.hook().await else { return std::future::pending().await };
        let seconds = hook.heartbeat_timeout().unwrap_or(60).max(2);
        let pause = Duration::from_secs(u64::from(seconds.unsigned_abs())) / 2;
        loop {
            let sent = self
                .auto_scaling
                .record_lifecycle_action_heartbeat()
                .auto_scaling_group_name(&self.group)
                .set_lifecycle_hook_name(hook.lifecycle_hook_name.clone())
                .instance_id(&instance)
                .send()
                .await;
            match sent {
                Ok(_) => tracing::debug!("the group waits for the drain"),
                Err(error) => {
                    let error = aws::describe(&error);
                    tracing::warn!(error, "the group was not asked to wait on");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Lets the group go on with the termination.
    pub(crate) async fn complete(&self) {
        let Some((hook, instance)) = self.hook().await else { return };
        let sent = self
            .auto_scaling
            .complete_lifecycle_action()
            .auto_scaling_group_name(&self.group)
            .set_lifecycle_hook_name(hook.lifecycle_hook_name.clone())
            .instance_id(&instance)
            .lifecycle_action_result("CONTINUE")
            .send()
            .await;
        match sent {
            Ok(_) => tracing::info!("the group may terminate the instance"),
            // As when the instance goes for another reason than its group's.
            Err(error) => {
                let error = aws::describe(&error);
                tracing::warn!(error, "the lifecycle action was not completed; it will time out");
            }
        }
    }

    /// The hook that waits for this importer, and the instance it waits on.
    async fn hook(&self) -> Option<(LifecycleHook, String)> {
        let asked = self.auto_scaling.describe_lifecycle_hooks();
        let hooks = match asked.auto_scaling_group_name(&self.group).send().await {
            Ok(answer) => answer.lifecycle_hooks.unwrap_or_default(),
            Err(error) => {
                let error = aws::describe(&error);
                tracing::warn!(error, "the group's lifecycle hooks are unknown");
                return None;
            }
        };
        let Some(hook) = drain_hook(hooks) else {
            tracing::warn!(
                group = self.group,
                "the group has no termination hook of its own for the drain; name one `…-drain`"
            );
            return None;
        };
        match self.read(INSTANCE_ID).await {
            Ok(id) => Some((hook, id?)),
            Err(error) => {
                tracing::warn!(%error, "the instance's own id is unknown");
                None
            }
        }
    }
}

/// The only termination hook; of several, the one named like the template's: to complete another
/// would cut short whoever works behind it.
fn drain_hook(hooks: Vec<LifecycleHook>) -> Option<LifecycleHook> {
    let ends = |hook: &LifecycleHook| {
        hook.lifecycle_transition() == Some("autoscaling:EC2_INSTANCE_TERMINATING")
    };
    let mut hooks: Vec<LifecycleHook> = hooks.into_iter().filter(ends).collect();
    if hooks.len() > 1 {
        hooks
            .retain(|hook| hook.lifecycle_hook_name().is_some_and(|name| name.ends_with("-drain")));
    }
    (hooks.len() == 1).then(|| hooks.remove(0))
}

/// `{"action": "terminate", "time": "2026-03-01T08:22:00Z"}`; `stop` and `hibernate` end the work
/// just as well. A notice whose time cannot be read still is one.
fn spot_notice(text: &str) -> Option<Notice> {
    let action: serde_json::Value = serde_json::from_str(text).ok()?;
    action.get("action")?;
    let at = action.get("time").and_then(|time| Timestamp::parse(time.as_str()?));
    Some(Notice::Spot { at: at.unwrap_or_else(|| clock::now().after(SPOT_WARNING)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_notice_shortens_the_grace_to_what_is_left() {
        let notice = spot_notice(r#"{"action": "terminate", "time": "2026-03-01T08:22:00Z"}"#);
        let at = Timestamp::parse("2026-03-01T08:22:00Z").unwrap();
        assert_eq!(notice, Some(Notice::Spot { at }));
        let seconds = Duration::from_secs;
        let grace = |grace: u64, before: u64| {
            let now = at.before(seconds(before));
            Notice::Spot { at }.grace(seconds(grace), now).as_secs()
        };
        assert_eq!(grace(300, 120), 110);
        assert_eq!(grace(60, 120), 60);
        assert_eq!(grace(60, 5), 0);
        assert_eq!(Notice::Terminating.grace(seconds(300), at), seconds(300));
        assert!(spot_notice(r#"{"action": "stop", "time": "soon"}"#).is_some());
        assert_eq!(spot_notice("<html>"), None);
    }

    #[test]
    fn of_several_hooks_only_the_named_one_is_ours() {
        let hook = |name: &str, end: &str| {
            let transition = format!("autoscaling:EC2_INSTANCE_{end}");
            LifecycleHook::builder()
                .lifecycle_hook_name(name)
                .lifecycle_transition(transition)
                .build()
        };
        let chosen = |hooks: &[(&str, &str)]| {
            let hooks = hooks.iter().map(|(name, end)| hook(name, end)).collect();
            drain_hook(hooks).and_then(|hook| hook.lifecycle_hook_name)
        };
        let (only, logs) = (("only", "TERMINATING"), ("logs", "TERMINATING"));
        assert_eq!(chosen(&[only, ("warm", "LAUNCHING")]).as_deref(), Some("only"));
        assert_eq!(chosen(&[logs, ("ads-drain", "TERMINATING")]).as_deref(), Some("ads-drain"));
        assert_eq!(chosen(&[logs, only]), None);
        assert_eq!(chosen(&[]), None);
    }
}
