//! What database errors mean for a message.

use crate::fault::{Dependency, Fault};

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot connect to {database}; check that it is running and that the URL is right")]
    Connect { database: String, source: sqlx::Error },
    #[error("ledger: {what} failed")]
    Statement { what: &'static str, source: sqlx::Error },
    #[error(
        "the ledger is at schema version {found}, this program knows {known}; deploy the newer release"
    )]
    TooNew { found: i64, known: i64 },
}

impl LedgerError {
    pub fn fault(&self) -> Fault {
        match self {
            LedgerError::Connect { .. } => Fault::Outage(Dependency::Database),
            LedgerError::TooNew { .. } => Fault::Permanent,
            LedgerError::Statement { source, .. } => database_fault(source),
        }
    }
}

/// The class of a database error.
///
/// SQLSTATE classes: PostgreSQL manual, appendix A.
pub fn database_fault(error: &sqlx::Error) -> Fault {
    let away = Fault::Outage(Dependency::Database);
    let sqlx::Error::Database(answer) = error else {
        return match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => away,
            sqlx::Error::RowNotFound => Fault::Transient,
            _ => Fault::Permanent,
        };
    };
    if let Some(postgres) = answer.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        return postgres_fault(postgres.code());
    }
    let code = answer.code().unwrap_or_default();
    code.parse().map_or(Fault::Permanent, sqlite_fault)
}

/// The class of an SQLite result code, primary or extended (sqlite.org/rescode.html).
pub fn sqlite_fault(code: u32) -> Fault {
    match code & 0xff {
        // BUSY, LOCKED: another process holds the one writer's lock.
        5 | 6 => Fault::Busy,
        // INTERRUPT, SCHEMA (changed under us)
        9 | 17 => Fault::Transient,
        // NOMEM, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, NOTADB
        7 | 8 | 10 | 11 | 13 | 14 | 15 | 26 => Fault::Outage(Dependency::Database),
        _ => Fault::Permanent,
    }
}

fn postgres_fault(sqlstate: &str) -> Fault {
    match (sqlstate, &sqlstate[..sqlstate.len().min(2)]) {
        // Serialization failure, deadlock, lock not available, statement time-out or cancel.
        ("40001" | "40P01" | "55P03" | "57014", _) => Fault::Transient,
        // The table changed between planning and copying (dropped, altered): plan again. A wider
        // column finds too little in a row's field (protocol violation), a narrower one too much
        // (invalid binary representation).
        ("42P01" | "42703" | "0A000" | "08P01" | "22P03", _) => Fault::Transient,
        // Read-only after a fail-over.
        ("25006", _) => Fault::Outage(Dependency::Database),
        // Connection, authorization, resources (disk, memory, connections), operator
        // intervention (shutdown, recovery), system and internal errors.
        (_, "08" | "28" | "53" | "57" | "58" | "XX") => Fault::Outage(Dependency::Database),
        (_, "25" | "40") => Fault::Transient,
        // Data exceptions, constraints, permissions: the same every time.
        _ => Fault::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_map_to_what_the_message_needs() {
        let away = Fault::Outage(Dependency::Database);
        for (state, fault) in [
            ("40P01", Fault::Transient),
            ("57014", Fault::Transient),
            ("57P01", away),
            ("53300", away),
            ("53100", away),
            ("25006", away),
            ("08006", away),
            ("22003", Fault::Permanent),
            ("23505", Fault::Permanent),
            ("42501", Fault::Permanent),
            ("42P01", Fault::Transient),
            ("08P01", Fault::Transient),
            ("22P03", Fault::Transient),
        ] {
            assert_eq!(postgres_fault(state), fault, "{state}");
        }
        assert_eq!(database_fault(&sqlx::Error::PoolTimedOut), away);
    }
}
