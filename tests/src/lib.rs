//! What the end-to-end tests share: one world per test binary, a fleet per test, real importer
//! processes, and checks from outside by SQL and SQS.
//!
//! ```text
//! avro     objects to upload, with rows that can be recognised
//! fake     SQS, S3 and the database in memory
//! instance what EC2 tells an instance, and what the group hears from it
//! system   a fleet: uploads, processes, database, queues
//!   └─▶ chaos    all of it while everything goes wrong
//!   └─▶ outage   all of it while the database is away
//! ```

pub mod avro;
pub mod fake;
pub mod instance;
pub mod system;

pub mod chaos;
pub mod outage;

pub use system::{DatabaseKind, Process, System, run};
