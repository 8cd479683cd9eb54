//! The control plane's part of the ledger: who decides, and what was decided.

use std::time::Duration;

use sqlx::Row;

use super::{Ledger, LedgerError, on_pool};
use crate::clock::Timestamp;

/// One scaling decision as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PlanRecord {
    pub fleet: String,
    pub at: Timestamp,
    pub desired: u32,
    /// The policy's report as JSON: inputs, proposals, what won and why.
    pub report: String,
}

impl Ledger {
    /// Takes or renews the lease `name` for `holder`. False when somebody else holds it.
    pub async fn hold_lease(
        &self,
        name: &str,
        holder: &str,
        now: Timestamp,
        span: Duration,
    ) -> Result<bool, LedgerError> {
        let statement = self.sql(
            "INSERT INTO weirgate.lease AS l (name, holder, expires_at) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET
                holder = excluded.holder, expires_at = excluded.expires_at
             WHERE l.holder = excluded.holder OR l.expires_at <= $4",
        );
        on_pool!(self, pool => sqlx::query(&statement)
            .bind(name)
            .bind(holder)
            .bind(now.after(span))
            .bind(now)
            .execute(pool)
            .await
            .map(|done| done.rows_affected() == 1))
        .map_err(|source| LedgerError::Statement { what: "taking the lease", source })
    }

    /// Gives the lease up at once, so that a standby need not wait for it to expire.
    pub async fn release_lease(&self, name: &str, holder: &str) -> Result<(), LedgerError> {
        let statement = self.sql("DELETE FROM weirgate.lease WHERE name = $1 AND holder = $2");
        on_pool!(self, pool => {
            sqlx::query(&statement).bind(name).bind(holder).execute(pool).await.map(drop)
        })
        .map_err(|source| LedgerError::Statement { what: "releasing the lease", source })
    }

    pub async fn record_plan(&self, plan: &PlanRecord) -> Result<(), LedgerError> {
        let statement = self
            .sql("INSERT INTO weirgate.plan (fleet, at, desired, report) VALUES ($1, $2, $3, $4)");
        on_pool!(self, pool => sqlx::query(&statement)
            .bind(&plan.fleet)
            .bind(plan.at)
            .bind(i64::from(plan.desired))
            .bind(&plan.report)
            .execute(pool)
            .await
            .map(drop))
        .map_err(|source| LedgerError::Statement { what: "recording the plan", source })
    }

    /// The newest plan of a fleet.
    pub async fn latest_plan(&self, fleet: &str) -> Result<Option<PlanRecord>, LedgerError> {
        let failed = |source| LedgerError::Statement { what: "reading the plan", source };
        let statement = self.sql(
            "SELECT fleet, at, desired, report FROM weirgate.plan
             WHERE fleet = $1 ORDER BY at DESC, id DESC LIMIT 1",
        );
        on_pool!(self, pool => {
            let row = sqlx::query(&statement).bind(fleet).fetch_optional(pool).await;
            row.map_err(failed)?
                .map(|row| {
                    Ok(PlanRecord {
                        fleet: row.try_get(0)?,
                        at: row.try_get(1)?,
                        desired: u32::try_from(row.try_get::<i64, _>(2)?).unwrap_or(0),
                        report: row.try_get(3)?,
                    })
                })
                .transpose()
                .map_err(failed)
        })
    }
}
