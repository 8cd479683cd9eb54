//! A fleet's own history as CloudWatch exports it, made a trace.
//!
//! Both answers of the AWS command line are read: `get-metric-statistics` with `--statistics Sum`,
//! and `get-metric-data`, each for `NumberOfMessagesSent` of the queue.

use serde::Deserialize;
use weirgate_common::clock::Timestamp;

const MINUTE_MS: i64 = 60_000;

/// CloudWatch keeps sums per hour for fifteen months; longer gaps hold no sums to spread.
const PERIOD_MAX_MS: i64 = 60 * MINUTE_MS;

/// Ten years: a longer export is a mistaken time.
const MINUTES_MAX: usize = 10 * 366 * 24 * 60;

#[derive(Deserialize)]
struct Export {
    #[serde(rename = "Datapoints", default)]
    points: Vec<Point>,
    #[serde(rename = "MetricDataResults", default)]
    results: Vec<Results>,
}

#[derive(Deserialize)]
struct Point {
    #[serde(rename = "Timestamp")]
    at: String,
    #[serde(rename = "Sum")]
    sum: f64,
}

#[derive(Deserialize)]
struct Results {
    #[serde(rename = "Timestamps")]
    at: Vec<String>,
    #[serde(rename = "Values")]
    sums: Vec<f64>,
}

/// Arrivals per minute, from the first point to the last. Sums over longer periods are spread
/// evenly over their minutes; minutes without a point had no arrivals, as CloudWatch leaves them
/// out.
pub(super) fn arrivals_per_minute(text: &str) -> Result<Vec<f64>, String> {
    let export: Export = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut points = Vec::new();
    let singles = export.points.into_iter().map(|point| (point.at, point.sum));
    let pairs =
        export.results.into_iter().flat_map(|results| results.at.into_iter().zip(results.sums));
    for (at, sum) in singles.chain(pairs) {
        let time = Timestamp::parse(&at).ok_or_else(|| format!("`{at}` is no time"))?;
        if !sum.is_finite() || sum < 0.0 {
            return Err(format!("{sum} messages at {at}"));
        }
        points.push((time.unix_ms(), sum));
    }
    points.sort_unstable_by_key(|(at_ms, _)| *at_ms);
    let (Some((first, _)), Some((last, _))) = (points.first(), points.last()) else {
        return Ok(Vec::new());
    };
    let (first, last) = (*first, *last);
    let gaps = points.windows(2).map(|pair| pair[1].0 - pair[0].0).filter(|gap| *gap > 0);
    let period_ms = gaps.min().unwrap_or(MINUTE_MS).clamp(MINUTE_MS, PERIOD_MAX_MS);
    let spread = usize::try_from(period_ms / MINUTE_MS).unwrap_or(1);
    let minute = |at_ms: i64| usize::try_from((at_ms - first) / MINUTE_MS).unwrap_or(0);
    if minute(last) > MINUTES_MAX {
        return Err("the points are more than ten years apart".to_owned());
    }
    let mut arrivals = vec![0.0; minute(last) + spread];
    for (at_ms, sum) in points {
        for arrived in &mut arrivals[minute(at_ms)..minute(at_ms) + spread] {
            *arrived += sum / spread as f64;
        }
    }
    Ok(arrivals)
}
