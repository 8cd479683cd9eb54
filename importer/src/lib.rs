//! The data plane: from a queue message to committed rows, exactly once in effect.
//!
//! ```text
//! event          body → events                         untrusted input
//!   └─▶ protocol     the delivery state machine        pure: step(now, input) → effects
//!         └─▶ object     pinned, streaming reads
//!         └─▶ schemas    of records that came in messages
//!               └─▶ rows       bytes → rows in the sink's wire format, through `weirgate_avro`
//!                     └─▶ sink       rows + ledger row, one transaction
//!                           └─▶ import     one event of one feed, settled
//!   intake, sqs      messages in, acknowledgements out
//!         └─▶ worker     the one select!: runs effects, feeds results back
//!   instance         the machine is to go; the group may let it
//!               └─▶ cli      the program
//! ```

pub mod failure;

pub mod event;

pub mod protocol;

pub mod object;

pub mod schemas;

pub mod rows;

pub mod sink;

pub mod import;

mod intake;
pub mod sqs;
pub mod worker;

mod instance;

pub mod cli;
