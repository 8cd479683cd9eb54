//! Plans against a group that changes, refuses, or is busy.

use weirgate_common::clock::Timestamp;
use weirgate_common::queue::Depth;
use weirgate_scaler::act::{Outcome, act};
use weirgate_scaler::group::{Group, InstanceId};
use weirgate_scaler::history::History;
use weirgate_scaler::observe::{Observation, Reading};
use weirgate_scaler::policy::{Plan, Step, plan};

use crate::fake::World;
use crate::scenarios::objective;

/// The plan for a world whose queue holds `visible` messages, or has long been empty.
async fn planned(world: &World, visible: u64) -> Plan {
    let objective = objective();
    let depth = Depth { visible, in_flight: 0, delayed: 0 };
    let mut history = History::default();
    let mut at = Timestamp::from_unix_ms(0);
    loop {
        let observation = Observation {
            at,
            depth: Reading::Known(depth),
            group: Reading::Known(world.describe().await.unwrap()),
            workers: Reading::Known(Vec::new()),
            oldest: Reading::Known(None),
            dead_letters: Reading::Known(0),
        };
        history.learn(&observation);
        if visible > 0 || history.empty_for() >= objective.settle {
            return plan(&objective, &history, &observation, at);
        }
        at = at.after(objective.period);
    }
}

#[tokio::test]
async fn growing_asks_once_and_a_repeated_plan_changes_nothing() {
    let world = World::new(0, 0, 10);
    let out = planned(&world, 1_000).await;
    assert_eq!(out.step, Step::Out { from: 0, to: 3 });
    assert_eq!(act(&world, &out).await, Outcome::Done);
    assert_eq!(act(&world, &out).await, Outcome::AlreadyThere);
    assert_eq!(world.lock().writes, ["set 3"]);
}

#[tokio::test]
async fn a_plan_overtaken_by_somebody_else_is_dropped() {
    let world = World::new(0, 0, 10);
    let out = planned(&world, 1_000).await;
    world.set_desired(5).await.unwrap();
    assert_eq!(act(&world, &out).await, Outcome::Overtaken { desired: 5 });

    let world = World::new(0, 0, 10);
    let out = planned(&world, 1_000).await;
    world.lock().group.max = 2;
    assert_eq!(act(&world, &out).await, Outcome::Overtaken { desired: 0 });
    assert!(world.lock().writes.is_empty());
}

#[tokio::test]
async fn shrinking_names_its_victims_and_keeps_the_minimum() {
    let world = World::new(3, 1, 10);
    let inwards = planned(&world, 0).await;
    assert_eq!(inwards.step, Step::In { from: 3, to: 1 });
    // The minimum is raised under the plan: nobody drains for a termination that is refused.
    world.lock().group.min = 2;
    assert_eq!(act(&world, &inwards).await, Outcome::Overtaken { desired: 3 });
    world.lock().group.min = 1;
    assert_eq!(act(&world, &inwards).await, Outcome::Done);
    assert_eq!(world.lock().writes, ["terminate i-1", "terminate i-2"]);
    assert!(matches!(planned(&world, 0).await.step, Step::Hold(_)));
}

#[tokio::test]
async fn a_busy_group_is_asked_again_later_from_what_is_left() {
    let world = World::new(2, 0, 10);
    let inwards = planned(&world, 0).await;
    world.lock().busy_once = true;
    let outcome = act(&world, &inwards).await;
    assert!(matches!(&outcome, Outcome::Later { terminated, .. } if terminated.is_empty()));
    assert_eq!(world.desired(), 2);
    assert_eq!(act(&world, &planned(&world, 0).await).await, Outcome::Done);
    assert_eq!(world.desired(), 0);
}

#[tokio::test]
async fn instances_that_never_came_are_cut_without_a_victim() {
    let world = World::new(2, 0, 10);
    world.lock().group.desired = 6;
    let cut = planned(&world, 0).await;
    assert_eq!(cut.step, Step::Cut { from: 6, to: 2 });
    assert_eq!(act(&world, &cut).await, Outcome::Done);
    assert_eq!(planned(&world, 0).await.victims.len(), 2);

    // They came after all, between the plan and the cut: now a cut would pick a victim.
    let world = World::new(2, 0, 10);
    world.lock().group.desired = 3;
    let cut = planned(&world, 0).await;
    let mut late = world.lock().group.instances[0].clone();
    late.id = InstanceId("i-late".into());
    world.lock().group.instances.push(late);
    assert_eq!(act(&world, &cut).await, Outcome::Overtaken { desired: 3 });
}

#[tokio::test]
async fn nothing_is_done_while_an_instance_refresh_replaces_instances() {
    let world = World::new(0, 0, 10);
    let out = planned(&world, 1_000).await;
    world.lock().refreshing = true;
    assert_eq!(act(&world, &out).await, Outcome::Refreshing);
    assert!(world.lock().writes.is_empty());
    world.lock().refreshing = false;
    assert_eq!(act(&world, &out).await, Outcome::Done);
}
