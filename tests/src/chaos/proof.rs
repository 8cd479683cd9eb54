//! What is asked of the database and the bucket, from outside, when all is quiet again.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use weirgate_common::dead_letter::Reason;

use super::producer::Expected;
use crate::system::System;

#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) rows: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    /// Of versions that were overwritten.
    pub(super) stale: u64,
}

/// Every object that lies in the bucket, with exactly its rows in the table and in the ledger.
pub(super) async fn rows(system: &System, expected: &Expected) -> Result<Found> {
    let listed: BTreeSet<String> = system.list().await?.into_iter().collect();
    let uploaded: BTreeSet<String> =
        expected.objects.keys().chain(&expected.poison).cloned().collect();
    ensure!(listed == uploaded, "the bucket does not hold what was uploaded");

    let there: BTreeMap<String, (i64, i64)> = system
        .groups(
            "SELECT substring(id from '^o[0-9]+'), count(*), count(DISTINCT id)
             FROM impressions GROUP BY 1",
        )
        .await?;
    let mut found = Found::default();
    let mut live = BTreeSet::new();
    for (name, rows) in expected.objects.values() {
        live.insert(name);
        let (count, distinct) = there.get(name).copied().unwrap_or_default();
        let (count, distinct) = (count.unsigned_abs(), distinct.unsigned_abs());
        found.rows += count;
        found.lost += rows.saturating_sub(distinct);
        found.duplicated += count - distinct;
    }
    for (name, (count, _)) in &there {
        if !live.contains(name) {
            found.stale += count.unsigned_abs();
        }
    }
    let committed =
        system.number("SELECT count(*) FROM weirgate.object WHERE state = 'committed'").await?;
    ensure!(
        committed.unsigned_abs() as usize == expected.objects.len(),
        "{committed} objects are committed in the ledger, {} are live",
        expected.objects.len()
    );
    let disagreeing = system
        .number(
            "SELECT count(*) FROM weirgate.object o
             LEFT JOIN (SELECT _object, count(*) AS rows FROM impressions GROUP BY 1) r
               ON r._object = o.id
             WHERE coalesce(r.rows, 0) <> CASE o.state WHEN 'committed' THEN o.rows ELSE 0 END",
        )
        .await?;
    ensure!(disagreeing == 0, "{disagreeing} ledger rows disagree with the table");
    Ok(found)
}

/// Takes the dead letters: poison and nonsense must be among them, each with its reason. What is
/// there for another reason is returned, to be replayed.
pub(super) async fn dead_letters(
    system: &System,
    expected: &Expected,
) -> Result<Vec<(String, String)>> {
    let (mut poison, mut nonsense, mut others) = (BTreeSet::new(), 0, Vec::new());
    for letter in system.dead_letters().await? {
        match Reason::from_attributes(&letter.attributes) {
            Some(reason) if reason.code == "corrupt_object" => {
                let object = reason.object.unwrap_or_default();
                let bucket = format!("s3://{}/", system.fleet.data_plane.bucket);
                poison.insert(object.trim_start_matches(&bucket).to_owned());
            }
            Some(reason) if reason.code == "bad_body" => nonsense += 1,
            Some(reason) => {
                others.push((letter.body, format!("{}: {}", reason.code, reason.detail)));
            }
            None => others.push((letter.body, "SQS gave no reason".to_owned())),
        }
    }
    let uploaded: BTreeSet<String> = expected.poison.iter().cloned().collect();
    ensure!(poison == uploaded, "dead letters {poison:?}, poison {uploaded:?}");
    ensure!(
        nonsense >= expected.nonsense,
        "{nonsense} messages without sense were dead-lettered, {} were sent",
        expected.nonsense
    );
    Ok(others)
}
