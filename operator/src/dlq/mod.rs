//! `weirgate dlq`: what could not be processed, why, and back to work once it is fixed.
//!
//! ```text
//! port      the queue as these tools see it
//! letter    a dead letter as a value: groups, selections
//! hold      reading a queue without losing sight of anything
//! replay    send, record, delete
//! render    what is printed
//! office    one fleet's dead-letter queue
//!   └─▶ look  resend  archive     the commands: list, show; replay; export, import, discard
//! ```

mod port;

mod letter;

mod hold;

mod replay;

mod render;

mod office;

mod look;

mod resend;

mod archive;

#[cfg(test)]
mod fake;

pub(crate) use archive::{DiscardOptions, discard, export, import};
pub(crate) use letter::Selection;
pub(crate) use look::{list, show};
pub(crate) use resend::{ReplayOptions, replay_letters};
