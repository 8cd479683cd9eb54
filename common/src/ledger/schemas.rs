//! The schemas that were ever imported, by fingerprint.

use super::{Ledger, LedgerError, on_pool};
use crate::clock::Timestamp;

impl Ledger {
    /// Keeps a schema under its fingerprint (CRC-64-AVRO). What is there already stays.
    pub async fn record_schema(
        &self,
        fingerprint: i64,
        json: &str,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Statement { what: "recording the schema", source };
        let insert = self.sql(
            "INSERT INTO weirgate.schema (fingerprint, json, first_seen)
             VALUES ($1, $2, $3) ON CONFLICT (fingerprint) DO NOTHING",
        );
        on_pool!(self, pool => {
            let insert = sqlx::query(&insert).bind(fingerprint).bind(json).bind(now);
            insert.execute(pool).await.map(drop).map_err(failed)
        })
    }

    /// The schema with this fingerprint as JSON, if an object with it was ever imported.
    pub async fn schema(&self, fingerprint: i64) -> Result<Option<String>, LedgerError> {
        let failed = |source| LedgerError::Statement { what: "reading a schema", source };
        let select = self.sql("SELECT json FROM weirgate.schema WHERE fingerprint = $1");
        on_pool!(self, pool => {
            let select = sqlx::query_scalar(&select).bind(fingerprint);
            select.fetch_optional(pool).await.map_err(failed)
        })
    }
}
