//! The whole system while everything goes wrong: importers killed, drained and suspended, the
//! database crashed, restarted, locked and read-only, the network stalled, cut and closed, objects
//! overwritten, notifications repeated, late and in another order, poison among them. In the end
//! every row must be there once.
//!
//! ```text
//! proxy      the network, which can be broken
//!   └─▶ faults     what goes wrong
//! producer   what is uploaded meanwhile
//!   └─▶ proof      what must be there in the end
//! ```
//!
//! The seed decides what happens in which order; what it meets depends on the machine.

mod faults;
mod producer;
mod proof;
mod proxy;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use weirgate_common::clock;
use weirgate_local::fleet::Tuning;

use crate::system::{DatabaseKind, System};
use faults::{Fault, Fleet};
use producer::{Echo, Expected};
use proof::Found;

const IMPORTERS: usize = 3;

/// Between two uploads, on average: more than LocalStack takes on two cores would only queue.
const UPLOAD_EVERY: Duration = Duration::from_millis(120);

/// What may be left to do after the last fault: leases that run out, growing delays of retries.
const RECOVERY_MAX: Duration = Duration::from_secs(300);

/// What happened.
pub struct Counts {
    seed: u64,
    faults: BTreeMap<Fault, u64>,
    expected: Expected,
    /// Notifications sent again.
    repeated: u64,
    /// Why others were dead-lettered. They were replayed.
    replayed: Vec<String>,
    found: Found,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { seed, faults, expected, repeated, replayed, found } = self;
        writeln!(f, "seed                 {seed}")?;
        writeln!(f, "faults injected      {}", faults.values().sum::<u64>())?;
        for (fault, count) in faults {
            writeln!(f, "  {:18} {count}", format!("{fault:?}"))?;
        }
        writeln!(f, "objects              {}", expected.objects.len())?;
        writeln!(f, "  overwritten        {}", expected.overwritten)?;
        writeln!(f, "  notified again     {repeated}")?;
        writeln!(f, "poison               {}, dead-lettered", expected.poison.len())?;
        writeln!(f, "messages of no sense {}, dead-lettered", expected.nonsense)?;
        writeln!(f, "other dead letters   {}, replayed", replayed.len())?;
        for reason in replayed {
            writeln!(f, "  {reason}")?;
        }
        writeln!(f, "rows                 {}", found.rows)?;
        writeln!(f, "  lost               {}", found.lost)?;
        writeln!(f, "  duplicated         {}", found.duplicated)?;
        write!(f, "  of old versions    {}", found.stale)
    }
}

/// Runs for `span`, then lets everything recover and proves it.
pub async fn run(programs: &str, world: &str, span: Duration, seed: u64) -> Result<Counts> {
    let tuning = Tuning {
        visibility: Duration::from_secs(10),
        lease: Duration::from_secs(10),
        // Every kill costs what was held a receive, which is no fault of the objects.
        max_receive_count: 50,
        ..Tuning::default()
    };
    let system = System::start(programs, world, "chaos", DatabaseKind::Postgres, tuning).await?;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut uploads = SmallRng::seed_from_u64(random.random());
    let mut repeats = SmallRng::seed_from_u64(random.random());
    let (mut expected, mut faults, mut repeated) = (Expected::default(), BTreeMap::new(), 0);
    let echo = Echo::subscribe(&system).await?;
    let mut fleet = Fleet::start(&system, IMPORTERS).await?;
    // One of the faults is about the table.
    while expected.objects.is_empty() {
        expected.produce(&system, &mut uploads).await?;
    }
    let committed = "SELECT count(*) FROM weirgate.object";
    let table = async || Ok(system.number(committed).await.is_ok_and(|count| count > 0));
    system.until("the table is there", table).await?;

    let end = clock::monotonic() + span;
    let upload = async {
        while clock::monotonic() < end {
            expected.produce(&system, &mut uploads).await?;
            tokio::time::sleep(UPLOAD_EVERY.mul_f64(uploads.random_range(0.0..2.0))).await;
        }
        anyhow::Ok(())
    };
    let repeat = async {
        while clock::monotonic() < end {
            repeated += echo.repeat(&system, &mut repeats).await?;
        }
        anyhow::Ok(())
    };
    let suffer = async {
        while clock::monotonic() < end {
            tokio::time::sleep(Duration::from_millis(random.random_range(100..2_000))).await;
            let fault = Fault::any(&mut random);
            fleet.suffer(fault, &system, &mut random).await?;
            *faults.entry(fault).or_default() += 1;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(upload, repeat, suffer)?;

    system.drained_within(RECOVERY_MAX).await?;
    let mut replayed = Vec::new();
    for (body, reason) in proof::dead_letters(&system, &expected).await? {
        system.send(&body).await?;
        replayed.push(reason);
    }
    system.drained_within(RECOVERY_MAX).await?;
    let found = proof::rows(&system, &expected).await?;
    fleet.stop().await;
    echo.close(&system).await?;
    let counts = Counts { seed, faults, expected, repeated, replayed, found };
    let Found { lost, duplicated, stale, .. } = counts.found;
    ensure!(lost + duplicated + stale == 0, "rows are not there once each\n{counts}");
    Ok(counts)
}
