//! Other policies at their best: each rule's knob chosen on all workloads but the one that it is
//! judged on, as a person would choose it who does not know tomorrow; and which of them would be
//! the better choice than ours.

use std::collections::BTreeMap;

use super::suite::Row;

/// Late messages beyond the unavoidable, in percent, that still count as a kept promise.
const KEPT_PERCENT: f64 = 0.2;

/// A percent of late messages weighs as much as this part of the bound, among knobs that keep the
/// promise equally often.
const LATE_WEIGHT: f64 = 0.1;

/// One row per workload and rule: the one whose knob keeps the promise on most of the other
/// workloads, and among equals costs least there.
pub fn tuned(rows: &[Row]) -> Vec<Row> {
    let mut of_rule: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.is_ours()) {
        of_rule.entry(row.rule).or_default().push(row);
    }
    let mut chosen = Vec::new();
    for workload in workloads(rows) {
        for of_rule in of_rule.values() {
            let here = of_rule.iter().filter(|row| row.workload == workload);
            let elsewhere = |policy: &str| {
                let rows =
                    || of_rule.iter().filter(|r| r.workload != workload && r.policy == policy);
                let broken = rows().filter(|row| excess(row) > KEPT_PERCENT).count();
                let cost = |row: &&Row| row.median.cost_ratio + LATE_WEIGHT * excess(row).max(0.0);
                (broken, rows().map(cost).sum::<f64>())
            };
            let best = here.min_by(|a, b| {
                let (a, b) = (elsewhere(&a.policy), elsewhere(&b.policy));
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
            chosen.extend(
                best.map(|row| Row { policy: format!("{} tuned", row.policy), ..(*row).clone() }),
            );
        }
    }
    chosen
}

/// Policies that are cheaper than ours and no later, neither in the median nor in the worst seed,
/// among rows of one workload.
pub(super) fn better_than_ours(rows: &[Row]) -> impl Iterator<Item = &Row> {
    let ours = rows.iter().find(|row| row.is_ours());
    rows.iter().filter(move |row| {
        ours.is_some_and(|ours| {
            row.median.cost_ratio < ours.median.cost_ratio
                && row.median.late_percent <= ours.median.late_percent
                && row.late_percent_max <= ours.late_percent_max
        })
    })
}

fn excess(row: &Row) -> f64 {
    row.median.late_percent - row.median.forced_percent
}

/// In order of their first row.
fn workloads(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = rows.iter().map(|row| row.workload.as_str()).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::super::judge::Score;
    use super::*;

    fn row(workload: &str, policy: &str, late_percent: f64, cost_ratio: f64) -> Row {
        Row {
            workload: workload.to_owned(),
            load: 1.0,
            rule: if policy == "weirgate" { "weirgate" } else { "rule" },
            policy: policy.to_owned(),
            seeds: 1,
            median: Score { late_percent, cost_ratio, ..Score::default() },
            cost_ratio_low: cost_ratio,
            cost_ratio_high: cost_ratio,
            late_percent_max: late_percent,
            interrupted: 0.0,
            dead_lettered: 0.0,
        }
    }

    #[test]
    fn a_knob_is_chosen_without_the_workload_it_is_judged_on() {
        let rows = [
            row("a", "rule@1", 0.0, 3.0),
            row("a", "rule@2", 0.0, 1.0),
            row("b", "rule@1", 0.0, 2.0),
            row("b", "rule@2", 9.0, 1.0),
            row("c", "rule@1", 0.0, 2.0),
            row("c", "rule@2", 0.1, 1.0),
        ];
        let chosen: Vec<(String, String)> =
            tuned(&rows).into_iter().map(|row| (row.workload, row.policy)).collect();
        // Only for b does the search not see that 2 is late there.
        let expected = [("a", "rule@1 tuned"), ("b", "rule@2 tuned"), ("c", "rule@1 tuned")];
        assert_eq!(chosen, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn better_is_cheaper_and_no_later() {
        let rows = [
            row("a", "weirgate", 0.1, 1.2),
            row("a", "cheap", 0.1, 1.1),
            row("a", "late", 0.2, 1.1),
            row("a", "dear", 0.0, 1.3),
        ];
        let better: Vec<&str> = better_than_ours(&rows).map(|row| row.policy.as_str()).collect();
        assert_eq!(better, ["cheap"]);
    }
}
