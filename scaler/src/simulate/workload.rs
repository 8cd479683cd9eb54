//! What arrives, when, and how long it takes: drawn once per seed, the same for every policy.

use super::chance::Chance;
use super::export::arrivals_per_minute;

/// Messages one simulated instance works on at a time.
pub const SLOTS: u64 = 4;

/// Mean service time of one message. With [`SLOTS`] an instance settles one per second, so a
/// load in instances is a rate in messages per second.
pub const SERVICE_MEAN_MS: f64 = 4_000.0;

const HOUR_S: usize = 3_600;
const DAY_S: usize = 24 * HOUR_S;

/// A poison message fails this often before the importers give it up.
pub(super) const POISON_RECEIVES: u8 = 3;

#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) at_ms: u32,
    pub(super) service_ms: u32,
    pub(super) poison: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
}

impl Window {
    pub(super) fn holds(self, at_ms: u64) -> bool {
        (self.from_ms..self.to_ms).contains(&at_ms)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) span_ms: u64,
    /// By time of arrival.
    pub(super) messages: Vec<Message>,
    /// While it lasts, this many slots are all the database serves at full speed.
    pub(super) brown_out: Option<(Window, f64)>,
    /// While it lasts, every reading of the queue is unknown.
    pub(super) metrics_outage: Option<Window>,
}

/// The kinds of load. Each is scaled to the same mean.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Steady,
    /// Ten times the rate from half-time on.
    Step,
    /// Five times the rate for a minute, twice an hour.
    Spike,
    Ramp,
    Sinusoid,
    /// On and off for half a boot time to two.
    OnOff,
    /// One message in three minutes, whatever the load asked for.
    Sparse,
    /// Ten thousand messages per instance of load, at once, into an idle fleet.
    Dump,
    /// Service times lognormal, σ = 1.5.
    HeavyTail,
    /// One second, or three minutes.
    Bimodal,
    /// Service takes three times as long in the middle third.
    ServiceShift,
    /// One message in twenty never succeeds.
    Poison,
    /// Fifty messages per second and instance of load, for a minute, on top of a steady load.
    Replay,
    /// The database serves half the load for twenty minutes.
    BrownOut,
    /// No readings for ten minutes while the load rises.
    MetricsOutage,
    /// Recorded arrivals per minute.
    Trace(Trace),
}

/// A recorded history of arrivals per minute.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    pub name: String,
    pub arrivals_per_minute: Vec<f64>,
}

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("line {line}: expected `minute,arrivals`, found `{found}`")]
    Line { line: usize, found: String },
    #[error(
        "neither `minute,arrivals` lines nor an answer of `aws cloudwatch get-metric-data` or \
         `get-metric-statistics --statistics Sum`: {what}"
    )]
    Export { what: String },
    #[error("the trace holds no arrivals")]
    Empty,
}

impl Trace {
    /// Reads `minute,arrivals` lines under that heading, or what CloudWatch exports of a queue.
    /// Minutes that are not named had none.
    pub fn parse(name: &str, text: &str) -> Result<Self, TraceError> {
        let arrivals_per_minute = match text.trim_start().starts_with('{') {
            true => arrivals_per_minute(text).map_err(|what| TraceError::Export { what })?,
            false => Trace::lines(text)?,
        };
        if arrivals_per_minute.iter().sum::<f64>() <= 0.0 {
            return Err(TraceError::Empty);
        }
        Ok(Trace { name: name.to_owned(), arrivals_per_minute })
    }

    fn lines(text: &str) -> Result<Vec<f64>, TraceError> {
        /// Ten years: a longer trace is a column mistaken for another.
        const MINUTES_MAX: usize = 10 * 366 * 24 * 60;
        let mut arrivals_per_minute = Vec::new();
        for (index, line) in text.lines().enumerate().skip(1).filter(|(_, l)| !l.is_empty()) {
            let bad = || TraceError::Line { line: index + 1, found: line.to_owned() };
            let (minute, arrivals) = line.split_once(',').ok_or_else(bad)?;
            let minute: usize = minute.trim().parse().map_err(|_| bad())?;
            let arrivals: f64 = arrivals.trim().parse().map_err(|_| bad())?;
            if minute > MINUTES_MAX || !arrivals.is_finite() || arrivals < 0.0 {
                return Err(bad());
            }
            if arrivals_per_minute.len() <= minute {
                arrivals_per_minute.resize(minute + 1, 0.0);
            }
            arrivals_per_minute[minute] += arrivals;
        }
        Ok(arrivals_per_minute)
    }
}

impl Kind {
    /// All the built-in ones.
    pub fn synthetic() -> Vec<Kind> {
        vec![
            Kind::Steady,
            Kind::Step,
            Kind::Spike,
            Kind::Ramp,
            Kind::Sinusoid,
            Kind::OnOff,
            Kind::Sparse,
            Kind::Dump,
            Kind::HeavyTail,
            Kind::Bimodal,
            Kind::ServiceShift,
            Kind::Poison,
            Kind::Replay,
            Kind::BrownOut,
            Kind::MetricsOutage,
        ]
    }

    pub fn name(&self) -> &str {
        match self {
            Kind::Steady => "steady",
            Kind::Step => "step",
            Kind::Spike => "spike",
            Kind::Ramp => "ramp",
            Kind::Sinusoid => "sinusoid",
            Kind::OnOff => "on-off",
            Kind::Sparse => "sparse",
            Kind::Dump => "dump",
            Kind::HeavyTail => "heavy-tail",
            Kind::Bimodal => "bimodal",
            Kind::ServiceShift => "service-shift",
            Kind::Poison => "poison",
            Kind::Replay => "replay",
            Kind::BrownOut => "brown-out",
            Kind::MetricsOutage => "metrics-outage",
            Kind::Trace(trace) => &trace.name,
        }
    }

    /// Draws the messages. `load` is the mean offered load in instances.
    pub(super) fn draw(&self, load: f64, boot_ms: f64, seed: u64) -> Workload {
        let mut chance = Chance::new(seed, 1);
        let rates = self.rates(load, boot_ms / 1000.0, &mut chance);
        let span_ms = rates.len() as u64 * 1000;
        let mut messages = Vec::new();
        let mut within = Vec::new();
        for (second, rate) in rates.iter().enumerate() {
            within.clear();
            within.extend((0..chance.poisson(*rate)).map(|_| chance.unit()));
            within.sort_unstable_by(f64::total_cmp);
            for part in &within {
                let at_ms = (second as f64 + part) * 1000.0;
                messages.push(self.message(at_ms, span_ms as f64, &mut chance));
            }
        }
        let part = |from: f64, minutes: u64| {
            let from_ms = (span_ms as f64 * from) as u64;
            Window { from_ms, to_ms: from_ms + minutes * 60_000 }
        };
        Workload {
            span_ms,
            messages,
            brown_out: (*self == Kind::BrownOut)
                .then(|| (part(0.5, 20), load * SLOTS as f64 * 0.5)),
            metrics_outage: (*self == Kind::MetricsOutage).then(|| part(0.5, 10)),
        }
    }

    fn message(&self, at_ms: f64, span_ms: f64, chance: &mut Chance) -> Message {
        // Lognormal with the given mean: median = mean · exp(−σ²/2).
        let mut drawn =
            |mean: f64, sigma: f64| chance.lognormal(mean * (-sigma * sigma / 2.0).exp(), sigma);
        let service_ms = match self {
            Kind::HeavyTail => drawn(SERVICE_MEAN_MS, 1.5),
            Kind::Bimodal => {
                let (short, long) = (1_000.0, 180_000.0);
                let long_share = (SERVICE_MEAN_MS - short) / (long - short);
                if chance.unit() < long_share { long } else { short }
            }
            // The mean over the whole span stays what it is elsewhere: thirds of 1, 3 and 1.
            Kind::ServiceShift => {
                let middle = (span_ms / 3.0..span_ms * 2.0 / 3.0).contains(&at_ms);
                let factor = if middle { 3.0 } else { 1.0 };
                drawn(SERVICE_MEAN_MS * factor * 0.6, 0.5)
            }
            _ => drawn(SERVICE_MEAN_MS, 0.5),
        };
        Message {
            at_ms: at_ms as u32,
            service_ms: service_ms.max(1.0) as u32,
            poison: *self == Kind::Poison && chance.unit() < 0.05,
        }
    }

    /// Messages per second, for every second.
    fn rates(&self, load: f64, boot_s: f64, chance: &mut Chance) -> Vec<f64> {
        let span = 4 * HOUR_S;
        let part = |t: usize| t as f64 / span as f64;
        let wave =
            |t: usize| 1.0 - 0.8 * (t as f64 / (2 * HOUR_S) as f64 * std::f64::consts::TAU).cos();
        let shape: Vec<f64> = match self {
            Kind::Sparse => return vec![1.0 / 180.0; span],
            Kind::Steady
            | Kind::HeavyTail
            | Kind::Bimodal
            | Kind::ServiceShift
            | Kind::Poison
            | Kind::BrownOut => vec![1.0; span],
            Kind::Step => (0..span).map(|t| if t < span / 2 { 1.0 } else { 10.0 }).collect(),
            Kind::Spike => {
                let spikes = |t: usize| (HOUR_S / 4..HOUR_S / 4 + 60).contains(&(t % (HOUR_S / 2)));
                (0..span).map(|t| if spikes(t) { 5.0 } else { 1.0 }).collect()
            }
            Kind::Ramp => (0..span).map(|t| 0.1 + 1.8 * part(t)).collect(),
            Kind::Sinusoid | Kind::MetricsOutage => (0..span).map(wave).collect(),
            Kind::OnOff => {
                let (mut shape, mut on) = (Vec::with_capacity(span), true);
                while shape.len() < span {
                    let run = (boot_s * chance.between(0.5, 2.0)) as usize;
                    shape.resize((shape.len() + run.max(1)).min(span), f64::from(u8::from(on)));
                    on = !on;
                }
                shape
            }
            Kind::Dump => {
                let mut shape = vec![0.0; span];
                // Half an hour in: the fleet has had time to go to sleep.
                shape[HOUR_S / 2] = 10_000.0 * load;
                return shape;
            }
            Kind::Replay => {
                let mut shape = vec![load * 0.8; span];
                for rate in &mut shape[HOUR_S..HOUR_S + 60] {
                    *rate += 50.0 * load;
                }
                return shape;
            }
            Kind::Trace(trace) => {
                // Each seed gets another day of a long trace, and all of a short one.
                let minutes = &trace.arrivals_per_minute;
                let day = DAY_S / 60;
                let first = match minutes.len().checked_sub(day) {
                    Some(room) if room > 0 => chance.below(room),
                    _ => 0,
                };
                let mean = minutes.iter().sum::<f64>() / minutes.len() as f64;
                return minutes[first..]
                    .iter()
                    .take(day)
                    .flat_map(|count| std::iter::repeat_n(count / mean * load, 60))
                    .collect();
            }
        };
        let mean = shape.iter().sum::<f64>() / shape.len() as f64;
        shape.into_iter().map(|rate| rate / mean * load).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_offers_the_load_it_is_asked_for() {
        for kind in Kind::synthetic() {
            let workload = kind.draw(10.0, 60_000.0, 3);
            let work_ms: f64 = workload.messages.iter().map(|m| f64::from(m.service_ms)).sum();
            let load = work_ms / SLOTS as f64 / workload.span_ms as f64;
            let expected = match kind {
                Kind::Sparse => 1.0 / 180.0,
                Kind::Dump => 10.0 * 10_000.0 / 14_400.0,
                // Steady at eight, and the replay.
                Kind::Replay => 8.0 + 60.0 * 500.0 / 14_400.0,
                _ => 10.0,
            };
            let off = (load / expected - 1.0).abs();
            let tolerated = if kind == Kind::Sparse { 0.3 } else { 0.1 };
            assert!(off < tolerated, "{}: {load} instead of {expected}", kind.name());
            assert!(workload.messages.is_sorted_by_key(|m| m.at_ms), "{}", kind.name());
        }
    }

    #[test]
    fn what_cloudwatch_exports_is_a_trace() {
        let statistics = r#"{"Label": "NumberOfMessagesSent", "Datapoints": [
            {"Timestamp": "2026-03-01T00:10:00+00:00", "Sum": 10.0, "Unit": "Count"},
            {"Timestamp": "2026-03-01T00:00:00+00:00", "Sum": 5.0, "Unit": "Count"}]}"#;
        let trace = Trace::parse("t", statistics).unwrap();
        assert_eq!(trace.arrivals_per_minute.len(), 20);
        assert_eq!(trace.arrivals_per_minute[..11], [[0.5; 10].as_slice(), &[1.0]].concat());
        let data = r#"{"MetricDataResults": [{"Id": "sent", "Label": "NumberOfMessagesSent",
            "Timestamps": ["2026-03-01T00:03:00Z", "2026-03-01T00:01:00Z", "2026-03-01T00:00:00Z"],
            "Values": [7.0, 2.0, 1.0], "StatusCode": "Complete"}], "Messages": []}"#;
        let trace = Trace::parse("t", data).unwrap();
        assert_eq!(trace.arrivals_per_minute, [1.0, 2.0, 0.0, 7.0]);
        for (text, says) in [
            (r#"{"Datapoints": []}"#, "no arrivals"),
            (r#"{"Datapoints": [{"Timestamp": "yesterday", "Sum": 1}]}"#, "`yesterday` is no time"),
            (r#"{"Datapoints": [{"Timestamp": "2026-03-01T00:00:00Z", "Average": 1}]}"#, "Sum"),
            ("{", "neither"),
        ] {
            let error = Trace::parse("t", text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn traces_are_read_by_minute_and_say_which_line_is_wrong() {
        let trace = Trace::parse("t", "minute,arrivals\n0,3\n2,4.5\n").unwrap();
        assert_eq!(trace.arrivals_per_minute, [3.0, 0.0, 4.5]);
        for (text, says) in [
            ("minute,arrivals\n0;3\n", "line 2: expected `minute,arrivals`, found `0;3`"),
            ("minute,arrivals\n0,3\n1,-1\n", "line 3"),
            ("minute,arrivals\n99999999999,3\n", "line 2"),
            ("minute,arrivals\n", "no arrivals"),
        ] {
            let error = Trace::parse("t", text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
