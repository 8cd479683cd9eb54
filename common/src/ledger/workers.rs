//! The latest report of each importer process: only workers know whether they are busy.

use sqlx::Row;

use super::objects::unsigned;
use super::{Ledger, LedgerError, on_pool};
use crate::clock::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WorkerReport {
    /// The instance id, or host and process where there is none.
    pub worker: String,
    pub fleet: String,
    pub state: WorkerState,
    pub slots: u64,
    /// Messages held now: working, waiting, or being acknowledged.
    pub busy: u64,
    /// Messages settled since the start.
    pub done: u64,
    /// Mean time from start to settlement of one import, in milliseconds.
    pub service_ms: u64,
    /// Send time of the oldest message held.
    pub oldest_message_at: Option<Timestamp>,
    pub started_at: Timestamp,
    pub reported_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Running,
    /// A dependency is away: no intake, leases kept.
    Waiting,
    Draining,
    Stopped,
}

impl WorkerState {
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerState::Running => "running",
            WorkerState::Waiting => "waiting",
            WorkerState::Draining => "draining",
            WorkerState::Stopped => "stopped",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "running" => WorkerState::Running,
            "waiting" => WorkerState::Waiting,
            "draining" => WorkerState::Draining,
            _ => WorkerState::Stopped,
        }
    }
}

impl Ledger {
    pub async fn report_worker(&self, report: &WorkerReport) -> Result<(), LedgerError> {
        let statement = self.sql(
            "INSERT INTO weirgate.worker AS w (worker, fleet, state, slots, busy, done,
                service_ms, oldest_message_at, started_at, reported_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (worker) DO UPDATE SET
                fleet = excluded.fleet, state = excluded.state, slots = excluded.slots,
                busy = excluded.busy, done = excluded.done, service_ms = excluded.service_ms,
                oldest_message_at = excluded.oldest_message_at,
                started_at = excluded.started_at, reported_at = excluded.reported_at",
        );
        on_pool!(self, pool => sqlx::query(&statement)
            .bind(&report.worker)
            .bind(&report.fleet)
            .bind(report.state.as_str())
            .bind(signed(report.slots))
            .bind(signed(report.busy))
            .bind(signed(report.done))
            .bind(signed(report.service_ms))
            .bind(report.oldest_message_at)
            .bind(report.started_at)
            .bind(report.reported_at)
            .execute(pool)
            .await
            .map(drop))
        .map_err(|source| LedgerError::Statement { what: "reporting the worker", source })
    }

    /// Reports of a fleet's workers not older than `since`, by name.
    pub async fn workers(
        &self,
        fleet: &str,
        since: Timestamp,
    ) -> Result<Vec<WorkerReport>, LedgerError> {
        let failed = |source| LedgerError::Statement { what: "reading worker reports", source };
        let statement = self.sql(
            "SELECT worker, fleet, state, slots, busy, done, service_ms, oldest_message_at,
                    started_at, reported_at
             FROM weirgate.worker WHERE fleet = $1 AND reported_at >= $2 ORDER BY worker",
        );
        on_pool!(self, pool => {
            let rows = sqlx::query(&statement).bind(fleet).bind(since).fetch_all(pool).await;
            rows.map_err(failed)?
                .into_iter()
                .map(|row| {
                    Ok(WorkerReport {
                        worker: row.try_get(0)?,
                        fleet: row.try_get(1)?,
                        state: WorkerState::parse(row.try_get(2)?),
                        slots: unsigned(row.try_get(3)?),
                        busy: unsigned(row.try_get(4)?),
                        done: unsigned(row.try_get(5)?),
                        service_ms: unsigned(row.try_get(6)?),
                        oldest_message_at: row.try_get(7)?,
                        started_at: row.try_get(8)?,
                        reported_at: row.try_get(9)?,
                    })
                })
                .collect::<Result<_, sqlx::Error>>()
                .map_err(failed)
        })
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
