//! Stand-ins for SQS, S3 and the database, in memory and on tokio's clock: what the real worker is
//! simulated and measured with. `tests/contract.rs` asks the same of them as of the real things.
//!
//! ```text
//! faults   what goes wrong, drawn from a seed
//!   └─▶ queue, store, sink
//! ```

mod faults;

mod queue;
mod sink;
mod store;

pub use faults::Faults;
pub use queue::FakeQueue;
pub use sink::{Defect, FakeJournal, FakeSink};
pub use store::FakeStore;

use weirgate_importer::worker::World;

/// What a worker works on when nothing of it is real.
pub struct Fake;

impl World for Fake {
    type Queue = FakeQueue;
    type Objects = FakeStore;
    type Sink = FakeSink;
    type Ledger = FakeJournal;
}
