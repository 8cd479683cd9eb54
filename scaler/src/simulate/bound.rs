//! What a clairvoyant could not beat: a lower bound on cost, and the lateness nobody avoids.
//!
//! Fluid and preemptive: work is served in any fractions by fractional instances, which know
//! all arrivals beforehand and only pay for their boots. Any real policy does worse.

use std::collections::VecDeque;

use super::workload::{POISON_RECEIVES, SLOTS, Workload};

/// Step of the fluid model.
const STEP_MS: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bound {
    pub(super) instance_ms: f64,
    /// Share of the work that is late with all instances running all the time.
    pub(super) late_share: f64,
}

/// With `freshness_ms` as the deadline of each message and boots of `boot_ms`.
pub(super) fn bound(
    workload: &Workload,
    freshness_ms: u64,
    boot_ms: f64,
    instances_max: u32,
) -> Bound {
    let steps = (workload.span_ms / STEP_MS) as usize + 1;
    // Instance-milliseconds of work that arrive in each step.
    let mut work = vec![0.0; steps];
    for message in &workload.messages {
        let tries = if message.poison { f64::from(POISON_RECEIVES) } else { 1.0 };
        let step = (u64::from(message.at_ms) / STEP_MS) as usize;
        work[step] += f64::from(message.service_ms) * tries / SLOTS as f64;
    }
    let total: f64 = work.iter().sum();
    let fleet = f64::from(instances_max);
    let capacity = |step: usize| {
        let at_ms = step as u64 * STEP_MS;
        let instances = match workload.brown_out {
            _ if (at_ms as f64) < boot_ms => 0.0,
            Some((window, slots)) if window.holds(at_ms) => fleet.min(slots / SLOTS as f64),
            _ => fleet,
        };
        instances * STEP_MS as f64
    };
    let late = unavoidably_late(&mut work, freshness_ms, capacity);
    // What is hopeless has to be done all the same, some time: it counts as work, and the fleet
    // that the rest needs has to boot.
    let steepest = taut_string(&work, freshness_ms.div_ceil(STEP_MS) as usize)
        .into_iter()
        .fold(0.0, |peak: f64, (_, slope)| peak.max(slope));
    let boots = (steepest / STEP_MS as f64 * boot_ms).max(visits(&work, freshness_ms, boot_ms));
    Bound {
        instance_ms: fluid(&work, freshness_ms, boot_ms).max(total + boots),
        late_share: if total > 0.0 { late / total } else { 0.0 },
    }
}

/// The least that a fleet of fractional instances costs which serves all of `work` in time: time
/// in service, idle or not, and a boot for everything added.
///
/// That is a linear programme, `min Σ n + b·Σ max(0, n − n')`, and by its dual every price of
/// presence `y` in 0..1 bounds it from below: work then costs at least the cheapest
/// `1 + b·(y − y')` of the steps at which it may be served. The best schedule without idling is
/// the taut string between what must and what may have been served; prices that rise to one
/// where that string steepens and fall to zero where it flattens belong to it. Where idling
/// through a short valley is cheaper than a boot, they may not rise faster than time passes.
fn fluid(work: &[f64], freshness_ms: u64, boot_ms: f64) -> f64 {
    let wait = freshness_ms.div_ceil(STEP_MS) as usize;
    let boot_steps = (boot_ms / STEP_MS as f64).max(f64::MIN_POSITIVE);
    let presence = presence(&taut_string(work, wait), work.len() + wait, boot_steps);
    let price = |step: usize| {
        let next = presence.get(step + 1).copied().unwrap_or(0.0);
        1.0 + boot_steps * (presence[step] - next)
    };
    // The cheapest step of each window: those that may still become it, in order of price.
    let mut candidates: VecDeque<usize> = VecDeque::new();
    let mut cost = 0.0;
    for step in 0..work.len() + wait {
        while candidates.back().is_some_and(|last| price(*last) >= price(step)) {
            candidates.pop_back();
        }
        candidates.push_back(step);
        let Some(arrived) = step.checked_sub(wait) else { continue };
        while candidates.front().is_some_and(|first| *first < arrived) {
            candidates.pop_front();
        }
        cost += work[arrived] * candidates.front().map_or(1.0, |first| price(*first));
    }
    cost
}

/// Steps and slopes of the shortest path of served work that serves all in time and nothing
/// before it arrives: `(first step, work per step)` of each straight piece.
fn taut_string(work: &[f64], wait: usize) -> Vec<(usize, f64)> {
    let mut arrived = vec![0.0];
    arrived.extend(work.iter().scan(0.0, |sum, work| {
        *sum += work;
        Some(*sum)
    }));
    let end = work.len() + wait;
    let total = arrived[work.len()];
    // Served by the end of `step` steps: at most what has arrived, at least what is due.
    let most = |at: usize| if at == end { total } else { arrived[at.min(work.len())] };
    let least = |at: usize| at.checked_sub(wait).map_or(0.0, |due| arrived[due.min(work.len())]);
    let (mut pieces, mut at, mut served) = (Vec::new(), 0, 0.0);
    while at < end {
        // The straight line that gets furthest; where it fails, it bends at the last place that
        // held it back.
        let (mut low, mut low_at) = (f64::NEG_INFINITY, at + 1);
        let (mut high, mut high_at) = (f64::INFINITY, at + 1);
        let mut bend = None;
        for to in at + 1..=end {
            let slope = |height: f64| (height - served) / (to - at) as f64;
            if slope(most(to)) < low {
                bend = Some((low_at, low));
                break;
            }
            if slope(least(to)) > high {
                bend = Some((high_at, high));
                break;
            }
            if slope(least(to)) >= low {
                (low, low_at) = (slope(least(to)), to);
            }
            if slope(most(to)) <= high {
                (high, high_at) = (slope(most(to)), to);
            }
        }
        let (to, slope) = bend.unwrap_or((end, (total - served) / (end - at) as f64));
        pieces.push((at, slope));
        served += slope * (to - at) as f64;
        at = to;
    }
    pieces
}

/// The price of presence at each step: one where the pieces steepen, zero, or as much as the next
/// one may have risen from, where they flatten and at the end, straight between.
fn presence(pieces: &[(usize, f64)], steps: usize, boot_steps: f64) -> Vec<f64> {
    let mut turns: Vec<(usize, f64)> = Vec::new();
    let mut before = 0.0;
    for (at, slope) in pieces {
        if (slope - before).abs() > 1e-6 * before.max(*slope) {
            turns.push((*at, if *slope > before { 1.0 } else { 0.0 }));
        }
        before = *slope;
    }
    turns.push((steps, 0.0));
    for turn in (1..turns.len()).rev() {
        let gap = (turns[turn].0 - turns[turn - 1].0) as f64;
        turns[turn - 1].1 = turns[turn - 1].1.max(turns[turn].1 - gap / boot_steps);
    }
    let mut presence = vec![turns[0].1; steps];
    for pair in turns.windows(2) {
        let ((from, low), (to, high)) = (pair[0], pair[1]);
        for (i, price) in presence[from..to].iter_mut().enumerate() {
            *price = low + (high - low) * i as f64 / (to - from) as f64;
        }
    }
    presence
}

/// What whole instances cost beyond their work: two messages that arrive two deadlines apart are
/// served at least one deadline apart, so that an instance waits that long, or boots again.
fn visits(work: &[f64], freshness_ms: u64, boot_ms: f64) -> f64 {
    let apart = (2 * freshness_ms / STEP_MS) as usize + 1;
    let (mut count, mut next) = (0u32, 0);
    for (step, arrived) in work.iter().enumerate() {
        if *arrived > 0.0 && step >= next {
            (count, next) = (count + 1, step + apart);
        }
    }
    let rest = count.saturating_sub(1);
    // The waiting instance also works: only what the work leaves of the wait is extra.
    let work: f64 = work.iter().sum();
    (f64::from(rest) * boot_ms.min(freshness_ms as f64) - work).max(0.0)
        + if count > 0 { boot_ms } else { 0.0 }
}

/// Takes out of `work` what even the full fleet cannot serve in time. Deadlines are in order of
/// arrival, so first come, first served is best, once the hopeless is left out.
fn unavoidably_late(work: &mut [f64], freshness_ms: u64, capacity: impl Fn(usize) -> f64) -> f64 {
    let steps_left = (freshness_ms / STEP_MS) as usize;
    let mut waiting = work.to_vec();
    let (mut first, mut late) = (0, 0.0);
    for now in 0..work.len() + steps_left + 1 {
        // Whatever arrived in a step may have arrived at its end: the bound errs low.
        while first + steps_left < now && first < waiting.len() {
            late += waiting[first];
            work[first] -= waiting[first];
            first += 1;
        }
        let mut room = capacity(now);
        let mut next = first;
        while room > 0.0 && next <= now && next < waiting.len() {
            let served = waiting[next].min(room);
            waiting[next] -= served;
            room -= served;
            next += 1;
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use super::super::workload::{Kind, Message};
    use super::*;

    fn workload(arrivals_s: &[u32]) -> Workload {
        let messages = arrivals_s
            .iter()
            .map(|at_s| Message { at_ms: at_s * 1000, service_ms: 40_000, poison: false })
            .collect();
        Workload { span_ms: 3_600_000, messages, brown_out: None, metrics_outage: None }
    }

    #[test]
    fn the_bound_is_the_work_and_one_boot_of_the_flattest_fleet() {
        // Each message is ten instance-seconds. Sixty at once, with 300 s to go: two instances.
        let it = bound(&workload(&[600; 60]), 300_000, 60_000.0, 10);
        assert_eq!(it.late_share, 0.0);
        let peak = 600.0 / 310.0;
        assert!((it.instance_ms - (600_000.0 + peak * 60_000.0)).abs() < 1.0, "{it:?}");
    }

    #[test]
    fn a_valley_costs_the_boots_after_it_or_the_idling_through_it() {
        // Two bursts of ten instance-minutes, each served flat within five minutes of arrival.
        let bursts = |apart: u32| -> f64 {
            let arrivals: Vec<u32> =
                [600, 600 + apart].into_iter().flat_map(|at| vec![at; 60]).collect();
            let it = bound(&workload(&arrivals), 300_000, 60_000.0, 10);
            (it.instance_ms - 1_200_000.0) / (60_000.0 * 600.0 / 310.0)
        };
        // In boots of that fleet: one when the second follows the first at once, two when it
        // comes much later, and between them as long as the fleet has nothing to do.
        assert!((bursts(310) - 1.0).abs() < 0.01, "{}", bursts(310));
        assert!((bursts(340) - 1.5).abs() < 0.01, "{}", bursts(340));
        assert!((bursts(1_200) - 2.0).abs() < 0.01, "{}", bursts(1_200));
    }

    /// By weak duality the bound is valid whatever the prices; this is how much they leave.
    #[test]
    fn the_bound_is_close_to_a_schedule_that_exists() {
        for kind in Kind::synthetic() {
            let drawn = kind.draw(10.0, 60_000.0, 1);
            let mut work = vec![0.0; (drawn.span_ms / STEP_MS) as usize + 1];
            for message in &drawn.messages {
                work[(u64::from(message.at_ms) / STEP_MS) as usize] +=
                    f64::from(message.service_ms) / SLOTS as f64;
            }
            let pieces = taut_string(&work, 30);
            let total: f64 = work.iter().sum();
            let rises = pieces.iter().fold((0.0, 0.0f64), |(sum, before), (_, slope)| {
                (sum + (slope - before).max(0.0), *slope)
            });
            let schedule = total + rises.0 / STEP_MS as f64 * 60_000.0;
            let bound = fluid(&work, 300_000, 60_000.0);
            assert!(bound <= schedule * 1.000_001, "{}: {bound} > {schedule}", kind.name());
            // The schedule never idles, which costs it most where messages are few.
            let near = if kind == Kind::Sparse { 0.95 } else { 0.98 };
            assert!(bound >= schedule * near, "{}: {bound} of {schedule}", kind.name());
        }
    }

    #[test]
    fn what_the_full_fleet_cannot_serve_in_time_is_unavoidable() {
        // One instance serves 30 to 32 of the 60 within the deadline, depending on rounding.
        let it = bound(&workload(&[600; 60]), 300_000, 60_000.0, 1);
        assert!((0.45..=0.5).contains(&it.late_share), "{it:?}");
        // Nobody is there before the first boot.
        let it = bound(&workload(&[0]), 30_000, 60_000.0, 10);
        assert_eq!(it.late_share, 1.0);
    }
}
