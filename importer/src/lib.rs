//! The data plane: from a queue message to committed rows, exactly once in effect.
//!
//! ```text
//! event     body → events                          untrusted input
//!   └─▶ protocol   the delivery state machine      pure: step(now, input) → effects
//! ```

pub mod event;
pub mod failure;
pub mod protocol;
