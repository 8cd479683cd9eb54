//! Which imports may run together: bounded by slots and by memory, and fair between one giant
//! object and many small ones.
//!
//! Large imports leave a slot and a part of the memory to small ones, however long they take.
//! A large import that does not fit keeps what becomes free from those behind it, all but the
//! part of the small ones, so that their stream does not pass it for ever.

use super::Limits;

pub(super) struct Budget {
    limits: Limits,
    slots: usize,
    small_running: usize,
    large_running: usize,
    small_bytes: u64,
    large_bytes: u64,
    /// A large import waits for memory.
    keeping: bool,
}

/// From this cost on an import is large: so many as there are slots would need half of the memory.
pub(super) fn large_from(limits: &Limits) -> u64 {
    (limits.bytes_max / (2 * limits.slots as u64)).max(1)
}

pub(super) fn is_large(limits: &Limits, cost: u64) -> bool {
    cost >= large_from(limits)
}

impl Budget {
    /// `slots` are in use, of those that the limits allow.
    pub(super) fn new(slots: usize, limits: &Limits) -> Self {
        Budget {
            limits: limits.clone(),
            slots,
            small_running: 0,
            large_running: 0,
            small_bytes: 0,
            large_bytes: 0,
            keeping: false,
        }
    }

    /// The memory that only small imports may use.
    fn bytes_for_small(&self) -> u64 {
        self.limits.bytes_max / 4
    }

    /// What is over the budget alone counts as all that large imports may have together: it
    /// runs without another of its kind.
    fn charge(&self, cost: u64) -> u64 {
        cost.min(self.limits.bytes_max - self.bytes_for_small())
    }

    /// Beside a large import there is always room for a small one, unless a single slot is all
    /// that is configured.
    fn slots(&self) -> usize {
        match self.large_running > 0 {
            true => self.slots.max(2).min(self.limits.slots),
            false => self.slots,
        }
    }

    fn slots_for_large(&self) -> usize {
        self.slots.saturating_sub(1).max(1)
    }

    /// Counts an import that runs.
    pub(super) fn take(&mut self, cost: u64) {
        if is_large(&self.limits, cost) {
            self.large_running += 1;
            self.large_bytes = self.large_bytes.saturating_add(self.charge(cost));
        } else {
            self.small_running += 1;
            self.small_bytes = self.small_bytes.saturating_add(cost);
        }
    }

    /// Whether an import may start now. Ask for the oldest first: whoever is refused may stand in
    /// the way of those asked for later.
    pub(super) fn admit(&mut self, cost: u64) -> bool {
        let running = self.small_running + self.large_running;
        if running >= self.slots() {
            return false;
        }
        let bytes = self.small_bytes.saturating_add(self.large_bytes);
        let fits = bytes.saturating_add(self.charge(cost)) <= self.limits.bytes_max;
        let admitted = match is_large(&self.limits, cost) {
            true => {
                let slot = self.large_running < self.slots_for_large();
                self.keeping |= slot && !fits;
                slot && fits && !self.keeping
            }
            false => {
                let own_part = self.small_bytes.saturating_add(cost) <= self.bytes_for_small();
                running == 0 || fits && (own_part || !self.keeping)
            }
        };
        if admitted {
            self.take(cost);
        }
        admitted
    }

    /// Slots that imports yet to be received could use, when all that was taken wants to run:
    /// large imports that queue for their slots leave the last one to others.
    pub(super) fn free_slots(&self) -> usize {
        let large = self.large_running.min(self.slots_for_large());
        self.slots().saturating_sub(self.small_running + large)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Grouping;
    use super::*;

    /// From a cost of 10 on an import is large; 20 bytes belong to small ones.
    const LIMITS: Limits = Limits {
        slots: 4,
        bytes_max: 80,
        lease: Duration::ZERO,
        attempts_max: 0,
        receives_max: 0,
        grouping: Grouping { objects_max: 1, bytes_max: 0, linger: Duration::ZERO },
        seed: 0,
    };

    fn admitted(slots: usize, running: &[u64], waiting: &[u64]) -> Vec<u64> {
        let mut budget = Budget::new(slots, &LIMITS);
        running.iter().for_each(|cost| budget.take(*cost));
        waiting.iter().copied().filter(|cost| budget.admit(*cost)).collect()
    }

    #[test]
    fn slots_and_memory_bound_what_runs() {
        assert_eq!(admitted(4, &[], &[1, 2, 3, 4, 5]), [1, 2, 3, 4]);
        assert_eq!(admitted(2, &[], &[1, 2, 3, 4, 5]), [1, 2]);
        assert_eq!(admitted(1, &[9, 9], &[1]), [] as [u64; 0]);
        assert_eq!(admitted(4, &[30], &[40, 30]), [40]);
        assert_eq!(admitted(1, &[], &[1_000]), [1_000]);
    }

    #[test]
    fn a_giant_leaves_room_for_small_ones_and_none_for_its_like() {
        assert_eq!(admitted(4, &[1_000], &[9, 9, 10]), [9, 9]);
        assert_eq!(admitted(4, &[10, 10, 10], &[10, 10, 9]), [9]);
        assert_eq!(admitted(2, &[10], &[10, 9]), [9]);
        assert_eq!(admitted(1, &[10], &[10, 9, 9]), [9]);
    }

    #[test]
    fn others_do_not_pass_a_giant_for_ever() {
        // 24 of 80 bytes are taken, and a giant counts 60: until it fits, small ones may have
        // their 20 and no more.
        assert_eq!(admitted(4, &[8, 8, 8], &[1_000, 1]), [] as [u64; 0]);
        assert_eq!(admitted(4, &[8, 8], &[1_000, 1]), [1_000, 1]);
        assert_eq!(admitted(4, &[8, 8, 8], &[1]), [1]);
        assert_eq!(admitted(4, &[30], &[60, 30, 9]), [9]);
    }

    #[test]
    fn large_imports_that_queue_leave_a_slot_to_be_filled() {
        let free = |wanting: &[u64]| {
            let mut budget = Budget::new(4, &LIMITS);
            wanting.iter().for_each(|cost| budget.take(*cost));
            budget.free_slots()
        };
        assert_eq!(free(&[]), 4);
        assert_eq!(free(&[40, 40, 40, 40, 40]), 1);
        assert_eq!(free(&[40, 40, 40, 40, 1]), 0);
        assert_eq!(free(&[1, 1, 1, 1, 1]), 0);
    }
}
