//! Rows as a table for people.

use std::fmt::Write as _;

use super::suite::Row;
use super::tuning::better_than_ours;

/// Per workload, the rows that `is_shown` picks, then those of `tuned`; and which of all beat
/// ours.
pub fn render(rows: &[Row], is_shown: impl Fn(&Row) -> bool, tuned: &[Row]) -> String {
    let mut text = String::new();
    for of_workload in rows.chunk_by(|a, b| a.workload == b.workload) {
        let first = &of_workload[0];
        let _ = writeln!(
            text,
            "\n{} at a load of {} instances, {} seeds; unavoidably late {:.2} %, bound {:.1} instance-hours\n\
             {:<28} {:>8} {:>8} {:>6} {:>15} {:>7} {:>7} {:>7} {:>8} {:>8} {:>7} {:>7}",
            first.workload,
            first.load,
            first.seeds,
            first.median.forced_percent,
            first.median.bound_hours,
            "policy",
            "late %",
            "worst %",
            "cost ×",
            "(95 %)",
            "p50 s",
            "p99 s",
            "max s",
            "launches",
            "turns/h",
            "broken",
            "dead"
        );
        let tuned = tuned.iter().filter(|row| row.workload == first.workload);
        for row in of_workload.iter().filter(|row| is_shown(row)).chain(tuned) {
            line(&mut text, row);
        }
        let better: Vec<&str> =
            better_than_ours(of_workload).map(|row| row.policy.as_str()).collect();
        if !better.is_empty() {
            let _ = writeln!(text, "cheaper than ours and no later: {}", better.join(", "));
        }
    }
    text
}

fn line(text: &mut String, row: &Row) {
    let m = &row.median;
    let _ = writeln!(
        text,
        "{:<28} {:>8.3} {:>8.3} {:>6.2} {:>15} {:>7.1} {:>7.1} {:>7.0} {:>8.0} {:>8.2} {:>7} {:>7}",
        row.policy,
        m.late_percent,
        row.late_percent_max,
        m.cost_ratio,
        format!("{:.2}–{:.2}", row.cost_ratio_low, row.cost_ratio_high),
        m.p50_s,
        m.p99_s,
        m.max_s,
        m.launches,
        m.reversals_per_hour,
        row.interrupted,
        row.dead_lettered
    );
}
