//! The Auto Scaling group: able to do what the scaler asks, and to let importers drain.

use std::time::Duration;

use aws_sdk_autoscaling::types::{AutoScalingGroup, LifecycleHook};
use weirgate_common::aws;
use weirgate_common::config::{Fleet, Importer};

use super::finding::{Finding, Section};
use crate::group;
use crate::text::span;
use crate::world::World;

const TERMINATING: &str = "autoscaling:EC2_INSTANCE_TERMINATING";

pub(super) async fn check(world: &World, name: &str, fleet: &Fleet) -> Option<Section> {
    let group_name = fleet.auto_scaling_group.as_deref()?;
    let subject = format!("fleet {name}: group {group_name}");
    let client = aws::auto_scaling(&world.sdk);
    let raw = match group::fetch(&client, group_name).await {
        Ok(raw) => raw,
        Err(why) => {
            let finding = Finding::fail(
                "group_exists",
                why,
                "create it (infra/fleet.yaml), correct `auto_scaling_group`, or allow autoscaling:DescribeAutoScalingGroups",
            );
            return Some(Section::new(subject, vec![finding]));
        }
    };
    let mut findings = judge_group(&raw, fleet);
    let hooks = client.describe_lifecycle_hooks().auto_scaling_group_name(group_name).send().await;
    findings.push(match hooks {
        Ok(answer) => judge_hooks(answer.lifecycle_hooks(), &world.config.importer),
        Err(error) => Finding::warn(
            "termination_hook",
            format!("lifecycle hooks are unknown: {}", aws::describe(&error)),
            "allow autoscaling:DescribeLifecycleHooks to have them checked",
        ),
    });
    Some(Section::new(subject, findings))
}

fn judge_group(raw: &AutoScalingGroup, fleet: &Fleet) -> Vec<Finding> {
    let group = group::summary(raw);
    let mut findings = vec![Finding::ok(
        "group_exists",
        format!("exists; {} in service of {} desired", group.in_service, group.desired),
    )];
    let (min, max) = (fleet.instances_min, fleet.instances_max);
    findings.push(match group.min <= min && max <= group.max {
        true => Finding::ok(
            "group_bounds",
            format!(
                "allows {} to {} instances, the fleet asks for {min} to {max}",
                group.min, group.max
            ),
        ),
        false => Finding::fail(
            "group_bounds",
            format!(
                "allows {} to {} instances, but the fleet asks for {min} to {max}",
                group.min, group.max
            ),
            "give the group and `instances` of the fleet the same bounds",
        ),
    });
    let suspended: Vec<&str> =
        raw.suspended_processes().iter().filter_map(|process| process.process_name()).collect();
    let halted: Vec<&str> =
        suspended.iter().copied().filter(|name| matches!(*name, "Launch" | "Terminate")).collect();
    if !halted.is_empty() {
        findings.push(Finding::fail(
            "group_processes",
            format!("{} suspended: the group cannot change its size", halted.join(" and ")),
            "find out why (`aws autoscaling describe-scaling-activities`), then resume-processes",
        ));
    }
    if !suspended.contains(&"AZRebalance") {
        findings.push(Finding::warn(
            "group_rebalance",
            "AZRebalance is active: it terminates importers in the middle of their work",
            format!(
                "aws autoscaling suspend-processes --auto-scaling-group-name {} --scaling-processes AZRebalance",
                raw.auto_scaling_group_name().unwrap_or("…")
            ),
        ));
    }
    findings
}

fn judge_hooks(hooks: &[LifecycleHook], importer: &Importer) -> Finding {
    let check = "termination_hook";
    let Some(hook) = hooks.iter().find(|hook| hook.lifecycle_transition() == Some(TERMINATING))
    else {
        return Finding::warn(
            check,
            "no termination lifecycle hook: instances are cut off in the middle of their work, which is then done again elsewhere",
            "add one for autoscaling:EC2_INSTANCE_TERMINATING (infra/fleet.yaml does)",
        );
    };
    let name = hook.lifecycle_hook_name().unwrap_or_default();
    let seconds = hook.heartbeat_timeout().and_then(|seconds| u64::try_from(seconds).ok());
    let Some(wait) = seconds.map(Duration::from_secs) else {
        return Finding::ok(check, format!("termination lifecycle hook {name} present"));
    };
    match wait >= importer.drain_grace {
        true => Finding::ok(
            check,
            format!(
                "hook {name} waits {}, importers drain within {}",
                span(wait),
                span(importer.drain_grace)
            ),
        ),
        false => Finding::warn(
            check,
            format!(
                "hook {name} waits {}, importers may drain for {}: they are cut off",
                span(wait),
                span(importer.drain_grace)
            ),
            "raise the hook's heartbeat time-out, or lower importer.drain_grace",
        ),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_autoscaling::types::SuspendedProcess;

    use super::super::finding::Level;
    use super::*;

    fn fleet() -> Fleet {
        Fleet {
            queue: "https://sqs.eu-west-1.amazonaws.com/1/ads".into(),
            auto_scaling_group: Some("g".into()),
            freshness: Duration::from_secs(300),
            instances_min: 0,
            instances_max: 10,
        }
    }

    fn raw(min: i32, max: i32, suspended: &[&str]) -> AutoScalingGroup {
        let processes =
            suspended.iter().map(|name| SuspendedProcess::builder().process_name(*name).build());
        AutoScalingGroup::builder()
            .auto_scaling_group_name("g")
            .min_size(min)
            .max_size(max)
            .set_suspended_processes(Some(processes.collect()))
            .build()
    }

    #[test]
    fn bounds_and_processes() {
        for (group, expected) in [
            (raw(0, 10, &["AZRebalance"]), vec![]),
            (raw(0, 40, &["AZRebalance"]), vec![]),
            (raw(0, 5, &["AZRebalance"]), vec![(Level::Fail, "group_bounds")]),
            (raw(1, 10, &["AZRebalance"]), vec![(Level::Fail, "group_bounds")]),
            (raw(0, 10, &[]), vec![(Level::Warn, "group_rebalance")]),
            (raw(0, 10, &["AZRebalance", "Launch"]), vec![(Level::Fail, "group_processes")]),
        ] {
            let found: Vec<_> = judge_group(&group, &fleet())
                .into_iter()
                .filter(|finding| finding.level != Level::Ok)
                .map(|finding| (finding.level, finding.check))
                .collect();
            assert_eq!(found, expected, "{group:?}");
        }
    }

    #[test]
    fn importers_need_time_to_drain() {
        let importer = Importer {
            slots: 4,
            lease: Duration::from_secs(60),
            drain_grace: Duration::from_secs(60),
            bytes_in_flight_max: 1,
            object_bytes_max: 1,
            attempts_max: 5,
            schemas: None,
        };
        let hook = |transition: &str, seconds: i32| {
            LifecycleHook::builder()
                .lifecycle_hook_name("drain")
                .lifecycle_transition(transition)
                .heartbeat_timeout(seconds)
                .build()
        };
        for (hooks, level) in [
            (vec![], Level::Warn),
            (vec![hook("autoscaling:EC2_INSTANCE_LAUNCHING", 300)], Level::Warn),
            (vec![hook(TERMINATING, 30)], Level::Warn),
            (vec![hook(TERMINATING, 300)], Level::Ok),
        ] {
            assert_eq!(judge_hooks(&hooks, &importer).level, level, "{hooks:?}");
        }
    }
}
