//! What holds for every plan, whatever was observed.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use weirgate_common::clock::Timestamp;
use weirgate_common::ledger::{WorkerReport, WorkerState};
use weirgate_common::queue::Depth;
use weirgate_scaler::group::{GroupState, Instance, InstanceId, Life};
use weirgate_scaler::history::History;
use weirgate_scaler::observe::{Observation, Reading};
use weirgate_scaler::policy::{Objective, Plan, Step, plan};

#[derive(Clone, Debug)]
struct Case {
    objective: Objective,
    observations: Vec<Observation>,
}

impl Case {
    fn history(&self) -> History {
        let mut history = History::default();
        for (i, observation) in self.observations.iter().enumerate() {
            history.learn(observation);
            // As in the service: the latest is noted after the plan that is made from it.
            if i + 1 < self.observations.len() {
                let plan = plan(&self.objective, &history, observation, observation.at);
                history.note_wanted(observation.at, plan.report.wanted);
            }
        }
        history
    }

    fn last(&self) -> &Observation {
        self.observations.last().unwrap()
    }

    fn plan(&self) -> Plan {
        plan(&self.objective, &self.history(), self.last(), self.last().at)
    }
}

fn reading<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Reading<T>> {
    prop_oneof![
        9 => value.prop_map(Reading::Known),
        1 => Just(Reading::Unknown("away".to_owned())),
    ]
}

fn depth() -> impl Strategy<Value = Depth> {
    let count = || prop_oneof![3 => Just(0u64), 1 => 1..50u64, 1 => 0..200_000u64];
    (count(), count(), count()).prop_map(|(visible, in_flight, delayed)| Depth {
        visible,
        in_flight,
        delayed,
    })
}

fn group() -> impl Strategy<Value = GroupState> {
    let life = prop_oneof![
        6 => Just(Life::InService),
        1 => Just(Life::Pending),
        1 => Just(Life::Leaving),
        1 => Just(Life::Apart),
    ];
    let suspended = prop_oneof![
        8 => Just(None),
        1 => Just(Some("Launch")),
        1 => Just(Some("Terminate")),
    ];
    (vec((life, any::<bool>()), 0..8), 0..4u32, 0..3u32, 0..12u32, suspended).prop_map(
        |(instances, absent, min, room, suspended)| {
            let instances: Vec<Instance> = (0..)
                .zip(instances)
                .map(|(i, (life, protected)): (u32, _)| Instance {
                    id: InstanceId(format!("i-{i}")),
                    life,
                    protected,
                })
                .collect();
            let mut state = GroupState {
                desired: 0,
                min,
                max: min + room,
                instances,
                suspended: suspended.map(str::to_owned).into_iter().collect::<BTreeSet<_>>(),
            };
            state.desired = state.count(Life::InService) + state.count(Life::Pending) + absent;
            state
        },
    )
}

fn workers(at: Timestamp) -> impl Strategy<Value = Vec<WorkerReport>> {
    let busy = prop_oneof![2 => Just(0u64), 1 => 0..4u64];
    vec((0..8u32, busy, 0..5_000u64, 0..60u64, 0..400u64), 0..8).prop_map(move |reports| {
        reports
            .into_iter()
            .map(|(instance, busy, service_ms, age_s, oldest_s)| WorkerReport {
                worker: format!("i-{instance}"),
                fleet: "ads".into(),
                state: WorkerState::Running,
                slots: 4,
                busy,
                done: service_ms,
                service_ms,
                oldest_message_at: (busy > 0).then(|| at.before(Duration::from_secs(oldest_s))),
                started_at: at.before(Duration::from_secs(600)),
                reported_at: at.before(Duration::from_secs(age_s)),
            })
            .collect()
    })
}

fn case() -> impl Strategy<Value = Case> {
    let objective =
        (0..4u32, 0..40u32, 1..9u64, 1..600u64).prop_map(|(min, room, slots, l)| Objective {
            freshness: Duration::from_secs(l),
            instances_min: min,
            instances_max: min + room,
            slots,
            period: Duration::from_secs(10),
            settle: Duration::from_secs(75),
        });
    // Long runs of one reading, or emptiness would hardly ever be proven.
    let runs = vec((reading(depth()), 1..12usize), 1..4);
    (objective, runs).prop_flat_map(|(objective, runs)| {
        let depths: Vec<Reading<Depth>> =
            runs.into_iter().flat_map(|(depth, count)| vec![depth; count]).collect();
        let count = depths.len();
        let at = |i: usize| Timestamp::from_unix_ms(1_000_000 + 10_000 * i as i64);
        let groups = vec(reading(group()), count);
        let workers: Vec<_> = (0..count).map(|i| reading(workers(at(i)))).collect();
        (Just(objective), Just(depths), groups, workers).prop_map(
            move |(objective, depths, groups, workers)| {
                let observations = depths
                    .into_iter()
                    .zip(groups)
                    .zip(workers)
                    .enumerate()
                    .map(|(i, ((depth, group), workers))| Observation {
                        at: at(i),
                        depth,
                        group,
                        workers,
                    })
                    .collect();
                Case { objective, observations }
            },
        )
    })
}

/// The group once the plan is carried out and everything asked for has arrived.
fn applied(observation: &Observation, plan: &Plan) -> Observation {
    let mut next = observation.clone();
    let Reading::Known(group) = &mut next.group else { return next };
    group.desired = plan.desired;
    group.instances.retain(|instance| !plan.victims.contains(&instance.id));
    next
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_step_ends_within_the_bounds_of_configuration_and_group(case in case()) {
        let plan = case.plan();
        let Some(group) = case.last().group.known() else {
            prop_assert!(matches!(plan.step, Step::Hold(_)));
            return Ok(());
        };
        let bound = |n: u32| {
            n.clamp(case.objective.instances_min, case.objective.instances_max)
                .clamp(group.min, group.max)
        };
        match plan.step {
            Step::Hold(_) => prop_assert_eq!(plan.desired, group.desired),
            Step::Out { from, to } => prop_assert!(from < to && to <= bound(u32::MAX)),
            Step::In { from, to } | Step::Cut { from, to } => {
                prop_assert!(to < from && to >= bound(0));
            }
        }
    }

    #[test]
    fn nothing_shrinks_on_unknown_and_nothing_goes_to_zero_unproven(case in case()) {
        let (plan, last, history) = (case.plan(), case.last(), case.history());
        if let Step::In { to, .. } | Step::Cut { to, .. } = plan.step {
            prop_assert!(last.workers.known().is_some());
            prop_assert_eq!(last.group.known().map(|group| group.count(Life::Pending)), Some(0));
            let fresh = last.fresh_workers(last.at);
            let empty = last.depth.known().map(|depth| depth.total()) == Some(0)
                && history.empty_for() >= case.objective.settle
                && fresh.values().all(|report| report.busy == 0);
            prop_assert!(last.depth.known().is_some() && (to > 0 || empty));
            // While there is work, silence is not idleness.
            prop_assert!(empty || plan.victims.iter().all(|id| fresh.contains_key(id)));
        }
    }

    #[test]
    fn victims_are_idle_in_service_and_unprotected(case in case()) {
        let (plan, last) = (case.plan(), case.last());
        let Some(group) = last.group.known() else { return Ok(()) };
        let fresh = last.fresh_workers(last.at);
        for victim in &plan.victims {
            let instance = group.instances.iter().find(|i| i.id == *victim).unwrap();
            prop_assert!(instance.life == Life::InService && !instance.protected);
            prop_assert!(fresh.get(victim).is_none_or(|report| report.busy == 0));
        }
        match plan.step {
            Step::In { from, to } => prop_assert_eq!(plan.victims.len(), (from - to) as usize),
            _ => prop_assert!(plan.victims.is_empty()),
        }
    }

    #[test]
    fn more_backlog_never_means_fewer_instances(case in case(), more in 0..10_000u64) {
        let mut deeper = case.clone();
        if let Some(Observation { depth: Reading::Known(depth), .. }) =
            deeper.observations.last_mut()
        {
            depth.visible += more;
        }
        prop_assert!(deeper.plan().desired >= case.plan().desired);
    }

    #[test]
    fn a_plan_carried_out_leaves_the_next_one_nothing_but_victims(case in case()) {
        let first = case.plan();
        let next = applied(case.last(), &first);
        let second = plan(&case.objective, &case.history(), &next, next.at);
        match first.step {
            // What never came is given up before what did come is terminated.
            Step::Cut { .. } => {
                let grows = matches!(second.step, Step::Out { .. });
                prop_assert!(!grows, "{:?}", second.step);
            }
            _ => prop_assert!(matches!(second.step, Step::Hold(_)), "{:?}", second.step),
        }
    }
}
