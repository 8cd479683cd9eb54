//! Which of the waiting objects are imported together.
//!
//! Small objects of one feed gather until a group is full or the first of them has waited long
//! enough. When a group fails, its members may only gather in groups of half that size, apart
//! from all others, until the guilty one stands alone.

use std::collections::BTreeMap;

use super::delivery::{Delivery, Stage, Task, TaskState};
use super::{DeliveryId, FeedId, Limits, Moment, TaskId, budget};

pub(super) struct Group {
    pub(super) tasks: Vec<TaskId>,
    pub(super) cost: u64,
    /// Made of what may gather.
    pub(super) small: bool,
    /// Nobody else may join it.
    pub(super) full: bool,
    /// When it starts in any case.
    pub(super) ready_at: Moment,
}

/// The memory that a group may need; it never counts as large.
fn bytes_max(limits: &Limits) -> u64 {
    limits.grouping.bytes_max.min(budget::large_from(limits) - 1)
}

/// Whether it may be imported with others.
pub(super) fn is_sociable(limits: &Limits, task: &Task) -> bool {
    task.company > 1 && task.load.cost <= bytes_max(limits) / 4
}

/// Those that were in a group that failed are all there already.
fn is_suspect(limits: &Limits, task: &Task) -> bool {
    task.company < limits.grouping.objects_max
}

/// When a waiting task starts, however few gather with it.
pub(super) fn ready_at(limits: &Limits, task: &Task, not_before: Moment) -> Moment {
    match is_sociable(limits, task) && !is_suspect(limits, task) {
        true => not_before + limits.grouping.linger,
        false => not_before,
    }
}

/// What could start now, in the order in which it came.
pub(super) fn form(
    limits: &Limits,
    now: Moment,
    deliveries: &BTreeMap<DeliveryId, Delivery>,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut open: BTreeMap<(FeedId, usize), usize> = BTreeMap::new();
    for (id, delivery) in deliveries {
        if delivery.stage != Stage::Working || delivery.lost {
            continue;
        }
        for (index, task) in delivery.tasks.iter().enumerate() {
            let TaskState::Waiting { not_before } = task.state else { continue };
            if not_before > now {
                continue;
            }
            let ready_at = ready_at(limits, task, not_before);
            let cost = task.load.cost;
            let member = TaskId { delivery: *id, index };
            if !is_sociable(limits, task) {
                let tasks = vec![member];
                groups.push(Group { tasks, cost, small: false, full: true, ready_at });
                continue;
            }
            let kind = (task.load.feed, task.company);
            let at = match open.get(&kind) {
                Some(at) if groups[*at].cost.saturating_add(cost) <= bytes_max(limits) => *at,
                crowded => {
                    if let Some(at) = crowded {
                        groups[*at].full = true;
                    }
                    let (tasks, cost) = (Vec::new(), 0);
                    groups.push(Group { tasks, cost, small: true, full: false, ready_at });
                    open.insert(kind, groups.len() - 1);
                    groups.len() - 1
                }
            };
            let group = &mut groups[at];
            group.tasks.push(member);
            group.cost += cost;
            group.ready_at = group.ready_at.min(ready_at);
            if group.tasks.len() >= task.company {
                group.full = true;
                open.remove(&kind);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Grouping, Load};
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limits() -> Limits {
        Limits {
            slots: 4,
            bytes_max: 800,
            lease: Duration::ZERO,
            attempts_max: 0,
            receives_max: 0,
            grouping: Grouping { objects_max: 4, bytes_max: 40, linger: 50 * MS },
            seed: 0,
        }
    }

    /// Numbers of the tasks that are together, and whether they start after `now_ms`. A task is
    /// its feed, cost, company, and the moment it came.
    fn formed(now_ms: u32, tasks: &[(usize, u64, usize, u32)]) -> Vec<(Vec<u64>, bool)> {
        let (limits, now) = (limits(), MS * now_ms);
        let deliveries = tasks.iter().enumerate().map(|(id, (feed, cost, company, at))| {
            let mut delivery = Delivery::of(
                &limits,
                MS * *at,
                1,
                vec![Load { feed: FeedId(*feed), cost: *cost }],
                None,
            );
            delivery.tasks[0].company = *company;
            (DeliveryId(id as u64), delivery)
        });
        form(&limits, now, &deliveries.collect())
            .into_iter()
            .map(|group| {
                let ready = group.full || group.ready_at <= now;
                (group.tasks.iter().map(|task| task.delivery.0).collect(), ready)
            })
            .collect()
    }

    #[test]
    fn small_objects_of_a_feed_gather_until_a_group_is_full_or_time_is_up() {
        let fresh = |feed, at| (feed, 1, 4, at);
        assert_eq!(formed(9, &[fresh(0, 0), fresh(0, 9)]), [(vec![0, 1], false)]);
        assert_eq!(formed(50, &[fresh(0, 0), fresh(0, 49)]), [(vec![0, 1], true)]);
        assert_eq!(
            formed(0, &[fresh(0, 0), fresh(1, 0), fresh(0, 0), fresh(0, 0), fresh(0, 0)]),
            [(vec![0, 2, 3, 4], true), (vec![1], false)]
        );
        assert_eq!(formed(1, &[fresh(0, 0), fresh(0, 2)]), [(vec![0], false)]);
    }

    #[test]
    fn what_is_not_small_goes_alone_and_at_once() {
        assert_eq!(formed(0, &[(0, 11, 4, 0), (0, 1, 4, 0)]), [(vec![0], true), (vec![1], false)]);
        let tens = [(0, 10, 4, 0), (0, 10, 4, 0), (0, 10, 4, 0), (0, 9, 4, 0), (0, 1, 4, 0)];
        assert_eq!(formed(0, &tens), [(vec![0, 1, 2, 3], true), (vec![4], false)]);
    }

    #[test]
    fn suspects_keep_to_themselves_and_wait_for_nobody() {
        let tasks = [(0, 1, 2, 0), (0, 1, 4, 0), (0, 1, 2, 0), (0, 1, 2, 0), (0, 1, 1, 0)];
        assert_eq!(
            formed(0, &tasks),
            [(vec![0, 2], true), (vec![1], false), (vec![3], true), (vec![4], true)]
        );
    }
}
