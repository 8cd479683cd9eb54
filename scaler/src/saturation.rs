//! Whether more workers bring more throughput. Messages that take longer than usual are either
//! long messages, where more workers help, or a slow database, where more make it slower. From
//! one fleet size nobody can tell; every growth is the experiment that does.

use std::collections::VecDeque;
use std::time::Duration;

use weirgate_common::clock::Timestamp;

/// One fleet size is judged by this long a run of readings: long enough for messages of several
/// seconds to be settled at their new pace.
const LEVEL_SPAN: Duration = Duration::from_secs(60);

/// A level is compared with the next for this long: a boot, its stragglers, and a span.
const LEVEL_AGE_MAX: Duration = Duration::from_secs(300);

/// Readings further apart than this do not speak for the time between them.
const GAP_MAX: Duration = Duration::from_secs(60);

/// Workers that hold this part of what they could are kept from settling more by nothing else
/// than how long it takes.
const FULL_PART: f64 = 0.9;

/// Fewer settled messages than this are chance, not a rate.
const SETTLED_MIN: u64 = 20;

/// Messages that take this much longer than usual are taken for slow.
const SLOW_FACTOR: f64 = 1.5;

/// Growth while they are slow: small enough to be cheap when it is in vain, large enough for its
/// effect to stand out.
const PROBE_FACTOR: f64 = 1.5;

/// Growth of a tenth shows nothing through the noise.
const STEP_MIN: f64 = 1.15;

/// Growth helped when throughput rose by this part of what the added workers should have added.
const GAIN_MIN: f64 = 0.35;

/// Throughput that has risen this much since a verdict has ended what the verdict was about.
const RECOVERY_FACTOR: f64 = 1.25;

/// A verdict is tested anew after this long, and after twice as long each time it stands.
const RETRY_AFTER: Duration = Duration::from_secs(600);

/// What usual means fades over this long.
const USUAL_MEMORY: Duration = Duration::from_secs(3_600);

/// How far the fleet may grow, as far as throughput can tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Growth {
    Free,
    /// Messages take longer than usual: one step, whose effect decides about the next.
    Probe {
        slots: u64,
        took_s: f64,
        usual_s: f64,
    },
    /// The last step added nothing.
    Saturated {
        slots: u64,
        per_s: f64,
        before: u64,
        before_per_s: f64,
    },
}

/// What full workers of one number settled.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    at: Timestamp,
    slots: u64,
    per_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    at: Timestamp,
    slots: u64,
    busy: u64,
    /// By all workers so far.
    settled: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Verdict {
    at: Timestamp,
    before: Level,
    after: Level,
    /// How often in a row it has been confirmed.
    times: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Saturation {
    /// An unbroken run of readings of one fleet size, of the last [`LEVEL_SPAN`].
    samples: VecDeque<Sample>,
    /// The latest fleet size that was full for long enough.
    level: Option<Level>,
    verdict: Option<Verdict>,
    /// Slot-seconds and messages, fading over [`USUAL_MEMORY`].
    usual_s: f64,
    usual_count: f64,
}

impl Saturation {
    /// `slots` and `busy` of all workers that take messages, `settled` by them so far.
    pub(crate) fn learn(&mut self, at: Timestamp, slots: u64, busy: u64, settled: u64) {
        let sample = Sample { at, slots, busy, settled };
        let Some(last) = self.samples.back().copied() else {
            self.samples.push_back(sample);
            return;
        };
        let passed = at.since(last.at);
        if passed > GAP_MAX {
            self.samples.clear();
        } else {
            let kept = (-passed.as_secs_f64() / USUAL_MEMORY.as_secs_f64()).exp();
            let count = settled.saturating_sub(last.settled) as f64;
            if busy > 0 || count > 0.0 {
                self.usual_s = self.usual_s * kept + busy as f64 * passed.as_secs_f64();
                self.usual_count = self.usual_count * kept + count;
            }
            if slots != last.slots {
                self.samples.clear();
            }
        }
        self.samples.push_back(sample);
        while self.samples.get(1).is_some_and(|second| at.since(second.at) >= LEVEL_SPAN) {
            self.samples.pop_front();
        }
        if let Some(level) = self.measure() {
            self.judge(level);
        }
    }

    pub(crate) fn growth(&self, now: Timestamp) -> Growth {
        let Some(level) = self.level.filter(|level| now.since(level.at) <= LEVEL_AGE_MAX) else {
            return Growth::Free;
        };
        let probe = ((level.slots as f64 * PROBE_FACTOR) as u64).max(level.slots + 1);
        let (took_s, usual_s) = (level.slots as f64 / level.per_s, self.usual_s / self.usual_count);
        match self.verdict {
            Some(verdict) if now.since(verdict.at) < RETRY_AFTER * (1 << verdict.times.min(6)) => {
                Growth::Saturated {
                    slots: level.slots,
                    per_s: verdict.after.per_s,
                    before: verdict.before.slots,
                    before_per_s: verdict.before.per_s,
                }
            }
            Some(_) => Growth::Probe { slots: probe, took_s, usual_s },
            None if took_s > usual_s * SLOW_FACTOR => {
                Growth::Probe { slots: probe, took_s, usual_s }
            }
            None => Growth::Free,
        }
    }

    /// The present level, when the fleet has been full and of one size for long enough.
    fn measure(&self) -> Option<Level> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let span = last.at.since(first.at);
        let settled = last.settled.saturating_sub(first.settled);
        if span < LEVEL_SPAN || settled < SETTLED_MIN {
            return None;
        }
        let (busy, slots) = self.samples.iter().fold((0, 0), |(busy, slots), sample| {
            (busy + sample.busy.min(sample.slots), slots + sample.slots)
        });
        let full = busy as f64 >= slots as f64 * FULL_PART;
        let per_s = settled as f64 / span.as_secs_f64();
        full.then_some(Level { at: last.at, slots: last.slots, per_s })
    }

    fn judge(&mut self, level: Level) {
        let before = self.level.replace(level);
        if let Some(verdict) = self.verdict
            && level.per_s > verdict.after.per_s * RECOVERY_FACTOR
        {
            // What the window still holds of the slow time would pass for slowness now.
            *self = Saturation {
                usual_s: self.usual_s,
                usual_count: self.usual_count,
                ..Saturation::default()
            };
            return;
        }
        let Some(before) = before.filter(|before| level.at.since(before.at) <= LEVEL_AGE_MAX)
        else {
            return;
        };
        let (slots, per_s) = (level.slots as f64 / before.slots as f64, level.per_s / before.per_s);
        if slots < STEP_MIN {
            return;
        }
        if per_s - 1.0 < (slots - 1.0) * GAIN_MIN {
            let times = self.verdict.map_or(0, |verdict| verdict.times + 1);
            self.verdict = Some(Verdict { at: level.at, before, after: level, times });
        } else {
            // The messages are long, then: this is what they usually take from now on.
            self.verdict = None;
            (self.usual_s, self.usual_count) = (level.slots as f64, level.per_s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings ten seconds apart: slots, all busy, and what they settle per second.
    fn after(runs: &[(u64, u64, f64)]) -> (Saturation, Timestamp) {
        let mut saturation = Saturation::default();
        let (mut at, mut settled) = (Timestamp::from_unix_ms(0), 0.0);
        for (seconds, slots, per_s) in runs {
            for _ in 0..seconds / 10 {
                at = at.after(Duration::from_secs(10));
                settled += per_s * 10.0;
                saturation.learn(at, *slots, *slots, settled as u64);
            }
        }
        (saturation, at)
    }

    #[test]
    fn growth_is_limited_by_what_it_was_seen_to_do() {
        let usual = (600, 8, 2.0);
        let slow = (120, 8, 1.0);
        for (story, runs, expected) in [
            ("no news", vec![], "free"),
            ("messages as usual", vec![usual], "free"),
            ("messages slow", vec![usual, slow], "probe"),
            ("the step is being measured", vec![usual, slow, (50, 12, 1.0)], "probe"),
            ("the step did nothing", vec![usual, slow, (90, 12, 1.0)], "saturated"),
            ("the step did harm", vec![usual, slow, (90, 12, 0.5)], "saturated"),
            ("the step helped", vec![usual, slow, (90, 12, 1.5)], "free"),
            ("then it recovered", vec![usual, slow, (90, 12, 1.0), (30, 12, 3.0)], "free"),
            ("a retry is due", vec![usual, slow, (700, 12, 1.0)], "probe"),
            (
                "the retry did nothing",
                vec![usual, slow, (700, 12, 1.0), (90, 18, 1.0)],
                "saturated",
            ),
            ("too few to tell", vec![(600, 8, 0.2), (120, 8, 0.1)], "free"),
        ] {
            let (saturation, at) = after(&runs);
            let growth = match saturation.growth(at) {
                Growth::Free => "free",
                Growth::Probe { .. } => "probe",
                Growth::Saturated { .. } => "saturated",
            };
            assert_eq!(growth, expected, "{story}");
        }
    }

    #[test]
    fn workers_that_are_not_full_prove_nothing_and_old_levels_are_forgotten() {
        let mut saturation = Saturation::default();
        for i in 0..100u64 {
            let (slots, busy) = if i < 50 { (8, 4) } else { (16, 4) };
            saturation.learn(Timestamp::from_unix_ms(10_000 * i as i64), slots, busy, i * 10);
        }
        assert_eq!(saturation.growth(Timestamp::from_unix_ms(1_000_000)), Growth::Free);
        let (saturation, at) = after(&[(600, 8, 2.0), (120, 8, 1.0)]);
        assert_ne!(saturation.growth(at), Growth::Free);
        assert_eq!(saturation.growth(at.after(LEVEL_AGE_MAX * 2)), Growth::Free);
    }
}
