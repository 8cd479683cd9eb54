//! The parts that stand in for AWS, and the database.

mod postgres;
mod web;

pub use postgres::Postgres;
pub use web::{Emulator, Kind};

/// Region of everything that is emulated.
pub const REGION: &str = "us-east-1";

/// LocalStack derives this account from the access key `test`; moto is told.
pub const ACCOUNT: &str = "000000000000";

/// Any pair would do: the emulators check no signature.
pub const ACCESS_KEY: &str = "test";
pub const SECRET_KEY: &str = "test";
