//! What a clairvoyant could not beat: a lower bound on cost, and the lateness nobody avoids.
//!
//! Fluid and preemptive: work is served in any fractions by fractional instances, which know
//! all arrivals beforehand and only pay for their boots. Any real policy does worse.

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
    let peak = peak(&work, freshness_ms).min(fleet);
    Bound {
        // Every instance that ever runs has booted once at least; and where a little arrives now
        // and then, a whole one has to be there each time.
        instance_ms: total + (peak * boot_ms).max(visits(&work, freshness_ms, boot_ms)),
        late_share: if total > 0.0 { late / total } else { 0.0 },
    }
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

/// The least constant fleet that serves `work` in time: the steepest demand of any window,
/// where what arrives within it must be served within it plus the deadline.
fn peak(work: &[f64], freshness_ms: u64) -> f64 {
    let slack = freshness_ms / STEP_MS + 1;
    let mut peak = 0.0f64;
    for from in 0..work.len() {
        let mut sum = 0.0;
        for (to, arrived) in work.iter().enumerate().skip(from) {
            sum += arrived;
            let span_ms = ((to - from) as u64 + 1 + slack) * STEP_MS;
            peak = peak.max(sum / span_ms as f64);
        }
    }
    peak
}

#[cfg(test)]
mod tests {
    use super::super::workload::Message;
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
        let peak = 600.0 / 320.0;
        assert!((it.instance_ms - (600_000.0 + peak * 60_000.0)).abs() < 1.0, "{it:?}");
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
