//! What holds for every plan, whatever was observed.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use weirgate_common::clock::Timestamp;
use weirgate_common::ledger::{WorkerReport, WorkerState};
use weirgate_common::queue::Depth;
use weirgate_scaler::cloudwatch::Aged;
use weirgate_scaler::group::{GroupState, Instance, InstanceId, Life};
use weirgate_scaler::history::History;
use weirgate_scaler::observe::{Observation, Reading};
use weirgate_scaler::policy::{Objective, Plan, Step, plan};
use weirgate_scaler::saturation::Growth;

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
                launch_failure: None,
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

/// A fleet of full workers that has just grown by half, which added nothing.
fn in_vain(objective: &Objective) -> Vec<Observation> {
    (0..31u64)
        .map(|i| {
            let at = Timestamp::from_unix_ms(10_000 * i as i64);
            let workers = if i < 15 { 2 } else { 3 };
            let report = |worker: u64| WorkerReport {
                worker: format!("i-{worker}"),
                fleet: "ads".into(),
                state: WorkerState::Running,
                slots: objective.slots,
                busy: objective.slots,
                done: i * 60 / workers,
                service_ms: 0,
                oldest_message_at: Some(at),
                started_at: Timestamp::from_unix_ms(0),
                reported_at: at,
            };
            let visible = 10 * i;
            Observation {
                at,
                depth: Reading::Known(Depth { visible, in_flight: 0, delayed: 0 }),
                group: Reading::Unknown("away".to_owned()),
                workers: Reading::Known((0..workers).map(report).collect()),
                oldest: Reading::Known(None),
                dead_letters: Reading::Known(0),
            }
        })
        .collect()
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
        let at = |i: usize| Timestamp::from_unix_ms(310_000 + 10_000 * i as i64);
        let dead_letters = vec(reading(prop_oneof![Just(0u64), 0..100_000u64]), count);
        let groups = vec(reading(group()), count);
        let workers: Vec<_> = (0..count).map(|i| reading(workers(at(i)))).collect();
        let aged = (0..600u64, 0..600u64).prop_map(move |(at, age)| Aged {
            at: Timestamp::from_unix_ms(1_000 * at as i64),
            age: Duration::from_secs(age),
        });
        let oldest = reading(proptest::option::of(aged));
        let scenes = (groups, workers, dead_letters, oldest, any::<bool>());
        (Just(objective), Just(depths), scenes).prop_map(
            move |(objective, depths, (groups, workers, dead_letters, oldest, saturated))| {
                let scenes = depths.into_iter().zip(groups).zip(workers).zip(dead_letters);
                let scenes =
                    scenes.enumerate().map(|(i, (((depth, group), workers), dead))| Observation {
                        at: at(i),
                        depth,
                        group,
                        workers,
                        oldest: oldest.clone(),
                        dead_letters: dead,
                    });
                let before = if saturated { in_vain(&objective) } else { Vec::new() };
                let observations = before.into_iter().chain(scenes).collect();
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
    fn nothing_grows_past_what_throughput_the_queue_or_poison_allow(case in case()) {
        let (plan, last) = (case.plan(), case.last());
        let Step::Out { to, .. } = plan.step else { return Ok(()) };
        let slots = u64::from(to) * case.objective.slots;
        let room = case.objective.slots - 1;
        match case.history().growth(last.at) {
            Growth::Free => {}
            Growth::Probe { slots: most, .. } | Growth::Saturated { slots: most, .. } => {
                prop_assert!(slots <= most + room);
            }
        }
        let inputs = &plan.report.inputs;
        prop_assert!(slots <= 120_000u64.saturating_sub(inputs.parked) + room);
        if inputs.dead_letters_lately.unwrap_or(0) > inputs.settled_lately.max(20) {
            prop_assert!(u64::from(to) <= inputs.at_work.unwrap_or(0).max(1));
        }
    }

    #[test]
    fn what_waits_for_its_next_try_asks_for_nothing(case in case(), more in 0..10_000u64) {
        let (last, history) = (case.last(), case.history());
        let mut retrying = last.clone();
        let (Reading::Known(depth), Reading::Known(workers)) =
            (&mut retrying.depth, &last.workers)
        else {
            return Ok(());
        };
        // From here on, in flight is more than the workers attest.
        let held: u64 = workers.iter().map(|report| report.busy).sum();
        depth.in_flight = depth.in_flight.max(held);
        let wanted = |observation: &Observation| {
            plan(&case.objective, &history, observation, last.at).report.wanted
        };
        let before = wanted(&retrying);
        if let Reading::Known(depth) = &mut retrying.depth {
            depth.in_flight += more;
        }
        prop_assert_eq!(wanted(&retrying), before);
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

#[test]
fn growth_in_vain_is_noticed() {
    let objective = crate::scenarios::objective();
    let mut history = History::default();
    let observations = in_vain(&objective);
    observations.iter().for_each(|observation| history.learn(observation));
    let growth = history.growth(observations.last().unwrap().at);
    assert!(matches!(growth, Growth::Saturated { slots: 12, before: 8, .. }), "{growth:?}");
}
