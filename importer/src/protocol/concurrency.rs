//! How many slots to use of those configured, so that a fleet does not push a saturated database
//! over: one more while imports go well, a part of them less when they become slow or get into
//! each other's way (additive increase, multiplicative decrease).
//!
//! An import is slow when it takes [`SLOW`] times as long as a quarter of its size usually do. In
//! a system that is saturated, waiting grows with what runs at the same time and throughput does
//! not: giving up less than 1 - 1/[`SLOW`] of the slots then costs none.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Moment;

/// An import that takes so many times the usual is slow. What varies by itself stays below.
const SLOW: u32 = 3;

/// Imports after which the number of slots is decided anew: enough to tell a trend from one
/// unlucky import, few enough to answer within seconds.
const WINDOW: u32 = 8;

/// Contention is a surer sign than slowness.
const CONTENDED: u32 = 2;

/// After so many imports what is usual is known, and only one import in each period is learned
/// from: what stays slow becomes usual in a quarter of an hour, not while it lasts.
const LEARNED: u32 = 32;
const LEARN_PERIOD: Duration = Duration::from_secs(10);

/// When no import ends for so long, there is one slot more: what runs for hours must not stop the
/// others.
const SILENCE: Duration = Duration::from_secs(60);

/// From this strain on there are less slots, tenths of which remain.
const STRAIN_MAX: u32 = WINDOW / 2;
const REMAIN_TENTHS: usize = 7;

/// Up to this strain there is one slot more.
const STRAIN_MIN: u32 = WINDOW / 4;

pub(super) struct Concurrency {
    configured: usize,
    slots: usize,
    changed_at: Moment,
    /// When an import last ended, or its absence was answered.
    heard_at: Moment,
    seen: u32,
    strain: u32,
    /// What imports usually take, by the magnitude of their cost.
    usual: BTreeMap<u32, Usual>,
}

/// Follows the time that a quarter of the imports stay below.
struct Usual {
    took: Duration,
    learned: u32,
    learned_at: Moment,
}

impl Concurrency {
    /// Starts with all slots: a fleet that was just enlarged is there to work.
    pub(super) fn new(configured: usize) -> Self {
        Concurrency {
            configured,
            slots: configured,
            changed_at: Moment::ZERO,
            heard_at: Moment::ZERO,
            seen: 0,
            strain: 0,
            usual: BTreeMap::new(),
        }
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// An import that was settled.
    pub(super) fn settled(&mut self, now: Moment, started_at: Moment, cost: u64) {
        let took = now.saturating_sub(started_at);
        let usual = self.usual.entry(cost.max(1).ilog2()).or_insert(Usual {
            took,
            learned: 0,
            learned_at: now,
        });
        let slow = took > usual.took * SLOW;
        usual.learn(now, took);
        self.count(now, started_at, u32::from(slow));
    }

    /// An import that ended in a lock, a deadlock or a broken connection.
    pub(super) fn contended(&mut self, now: Moment, started_at: Moment) {
        self.count(now, started_at, CONTENDED);
    }

    pub(super) fn tick(&mut self, now: Moment) {
        if self.next_tick().is_some_and(|at| at <= now) {
            self.heard_at = now;
            self.change(now, self.slots + 1);
        }
    }

    pub(super) fn next_tick(&self) -> Option<Moment> {
        (self.slots < self.configured).then(|| self.heard_at + SILENCE)
    }

    fn count(&mut self, now: Moment, started_at: Moment, strain: u32) {
        self.heard_at = now;
        // What started before the last change says nothing about it.
        if started_at < self.changed_at {
            return;
        }
        self.seen += 1;
        self.strain += strain;
        if self.strain > STRAIN_MAX {
            self.change(now, (self.slots * REMAIN_TENTHS / 10).max(1));
        } else if self.seen >= WINDOW {
            match self.strain <= STRAIN_MIN {
                true => self.change(now, (self.slots + 1).min(self.configured)),
                false => self.change(now, self.slots),
            }
        }
    }

    fn change(&mut self, now: Moment, slots: usize) {
        if slots < self.slots {
            self.changed_at = now;
        }
        self.slots = slots;
        self.seen = 0;
        self.strain = 0;
    }
}

impl Usual {
    fn learn(&mut self, now: Moment, took: Duration) {
        if self.learned >= LEARNED && now < self.learned_at + LEARN_PERIOD {
            return;
        }
        self.learned = self.learned.saturating_add(1);
        self.learned_at = now;
        // Three steps up weigh one step down.
        self.took = match took < self.took {
            true => self.took - self.took * 3 / 100,
            false => self.took + self.took / 100 + Duration::from_micros(1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: u64 = 1_000;

    /// Imports one after the other, each as long as said; the slots after them.
    fn import(concurrency: &mut Concurrency, from_s: u64, took_ms: &[u64]) -> usize {
        let mut now = Duration::from_secs(from_s);
        for took in took_ms {
            let started_at = now;
            now += Duration::from_millis(*took);
            concurrency.settled(now, started_at, COST);
        }
        concurrency.slots()
    }

    #[test]
    fn slow_imports_take_slots_away_and_quick_ones_give_them_back() {
        let mut concurrency = Concurrency::new(10);
        assert_eq!(import(&mut concurrency, 0, &[10; 8]), 10);
        assert_eq!(import(&mut concurrency, 10, &[100; 5]), 7);
        assert_eq!(import(&mut concurrency, 20, &[100; 5]), 4);
        assert_eq!(import(&mut concurrency, 30, &[10; 7]), 4);
        assert_eq!(import(&mut concurrency, 40, &[10; 1]), 5);
        assert_eq!(import(&mut concurrency, 50, &[10; 80]), 10);
    }

    #[test]
    fn some_slow_imports_are_nothing_special() {
        let mut concurrency = Concurrency::new(4);
        for round in 0..50 {
            let slots = import(&mut concurrency, round * 10, &[10, 10, 50, 10, 10, 25, 90, 10]);
            assert_eq!(slots, 4);
        }
    }

    #[test]
    fn what_stays_slow_becomes_usual() {
        let mut concurrency = Concurrency::new(4);
        import(&mut concurrency, 0, &[10; 40]);
        assert_eq!(import(&mut concurrency, 10, &[100; 20]), 1);
        for second in (100..1_000).step_by(10) {
            assert!(import(&mut concurrency, second, &[100; 8]) < 4);
        }
        for second in (1_000..2_000).step_by(10) {
            import(&mut concurrency, second, &[100; 8]);
        }
        assert_eq!(concurrency.slots(), 4);
    }

    #[test]
    fn contention_counts_once_per_change() {
        let mut concurrency = Concurrency::new(10);
        let at = Duration::from_secs;
        for _ in 0..9 {
            concurrency.contended(at(2), at(1));
        }
        assert_eq!(concurrency.slots(), 7, "all of them had started before the change");
        for _ in 0..3 {
            concurrency.contended(at(4), at(3));
        }
        assert_eq!(concurrency.slots(), 4);
        for second in 0..100 {
            concurrency.contended(at(second + 11), at(second + 10));
        }
        assert_eq!(concurrency.slots(), 1);
    }

    #[test]
    fn silence_gives_a_slot_back() {
        let mut concurrency = Concurrency::new(3);
        let at = Duration::from_secs;
        assert_eq!(concurrency.next_tick(), None);
        for _ in 0..5 {
            concurrency.contended(at(2), at(1));
        }
        assert_eq!((concurrency.slots(), concurrency.next_tick()), (2, Some(at(62))));
        concurrency.tick(at(61));
        assert_eq!(concurrency.slots(), 2);
        concurrency.tick(at(62));
        assert_eq!((concurrency.slots(), concurrency.next_tick()), (3, None));
    }

    /// A database that serves two imports at a time as fast as it can, and more no faster.
    #[test]
    fn a_saturated_database_is_left_alone() {
        const ROUNDS: usize = 400;
        let mut concurrency = Concurrency::new(20);
        let mut now = Duration::ZERO;
        let mut used = 0;
        import(&mut concurrency, 0, &[10; 40]);
        for _ in 0..ROUNDS {
            let slots = concurrency.slots();
            let took = Duration::from_millis(10) * (slots as u32).max(2) / 2;
            let started_at = now + Duration::from_secs(1);
            now = started_at + took;
            (0..slots).for_each(|_| concurrency.settled(now, started_at, COST));
            used += slots;
        }
        assert!((2..=8).contains(&(used / ROUNDS)), "{used} in {ROUNDS} rounds");
    }
}
