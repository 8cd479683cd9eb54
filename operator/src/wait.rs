//! `weirgate wait`: until everything under a prefix is in the tables. For schedulers and shells.

use std::time::Duration;

use anyhow::{Result, bail};
use weirgate_common::clock::{self, monotonic};
use weirgate_common::fault::chain;
use weirgate_common::{aws, ledger::Ledger};

use crate::address::Address;
use crate::inventory;
use crate::screen::Screen;
use crate::standing::{Standing, standing};
use crate::text::{plural, span};
use crate::world::World;

/// Objects named when the wait ends badly; the rest is counted.
const NAMED_MAX: usize = 20;

/// Each look lists the whole prefix: more often than this serves nobody.
const POLL_MIN: Duration = Duration::from_millis(100);

#[derive(Debug, serde::Serialize)]
struct Outcome {
    prefix: String,
    objects: usize,
    settled: usize,
    dead_lettered: Vec<String>,
    /// Given up by an operator: nothing to wait for.
    discarded: Vec<String>,
    waiting: Vec<String>,
    timed_out: bool,
}

/// True when every object under the prefix is in the tables.
pub(crate) async fn wait(
    world: &World,
    screen: &Screen,
    prefix: &Address,
    timeout: Duration,
    poll: Duration,
) -> Result<bool> {
    let client = aws::s3(&world.sdk);
    let started = monotonic();
    let mut ledger: Option<Ledger> = None;
    loop {
        // Trouble with the database is waited out like everything else, and told in the end.
        let mut trouble = None;
        if ledger.is_none() {
            match world.ledger().await {
                Ok(opened) => ledger = Some(opened),
                Err(error) => trouble = Some(chain(error.as_ref())),
            }
        }
        let looked = match &ledger {
            Some(ledger) => look(world, &client, ledger, prefix).await.map(Some),
            None => Ok(None),
        };
        let looked = match looked {
            Ok(looked) => looked,
            Err(error) if error.is::<Nothing>() => return Err(error),
            Err(error) => {
                trouble = Some(chain(error.as_ref()));
                None
            }
        };
        let timed_out = monotonic() - started >= timeout;
        match (looked, trouble) {
            (Some(mut outcome), _) => {
                screen.progress(&format!("{} of {} settled", outcome.settled, outcome.objects));
                if outcome.waiting.is_empty() || timed_out {
                    outcome.timed_out = !outcome.waiting.is_empty();
                    return conclude(screen, &outcome, monotonic() - started);
                }
            }
            (None, Some(trouble)) if timed_out => {
                screen.clear_progress();
                bail!("gave up after {}: {trouble}", span(timeout));
            }
            (None, trouble) => screen.progress(&trouble.unwrap_or_default()),
        }
        let left = timeout.saturating_sub(monotonic() - started);
        tokio::time::sleep(poll.max(POLL_MIN).min(left)).await;
    }
}

async fn look(
    world: &World,
    client: &aws_sdk_s3::Client,
    ledger: &Ledger,
    prefix: &Address,
) -> Result<Outcome> {
    let listed = inventory::list(client, prefix).await?;
    let now = clock::now();
    let mut outcome = Outcome {
        prefix: prefix.to_string(),
        objects: 0,
        settled: 0,
        dead_lettered: Vec::new(),
        discarded: Vec::new(),
        waiting: Vec::new(),
        timed_out: false,
    };
    for (name, feed) in &world.config.feeds {
        let ours = |key: &str| feed.objects.matches(&prefix.bucket, key);
        if !listed.iter().any(|object| ours(&object.key)) {
            continue;
        }
        let books = inventory::books(ledger, name, &prefix.bucket, &prefix.key).await?;
        for object in listed.iter().filter(|object| ours(&object.key)) {
            let address = || format!("s3://{}/{}", prefix.bucket, object.key);
            outcome.objects += 1;
            match standing(object, &prefix.bucket, &books, now, Duration::ZERO) {
                Standing::Settled => outcome.settled += 1,
                Standing::DeadLettered => outcome.dead_lettered.push(address()),
                Standing::Discarded => outcome.discarded.push(address()),
                Standing::Pending | Standing::Stale | Standing::Missing => {
                    outcome.waiting.push(address());
                }
            }
        }
    }
    if outcome.objects == 0 {
        return Err(Nothing { prefix: prefix.to_string() }.into());
    }
    Ok(outcome)
}

#[derive(Debug, thiserror::Error)]
#[error("nothing that a feed takes lies under {prefix}; `weirgate check` shows the feeds")]
struct Nothing {
    prefix: String,
}

fn conclude(screen: &Screen, outcome: &Outcome, elapsed: Duration) -> Result<bool> {
    screen.clear_progress();
    let well = outcome.dead_lettered.is_empty() && !outcome.timed_out;
    if screen.json {
        screen.json(outcome)?;
        return Ok(well);
    }
    for (objects, what) in [
        (&outcome.dead_lettered, "dead-lettered, see `weirgate dlq list`"),
        (&outcome.discarded, "given up by an operator"),
        (&outcome.waiting, "not loaded"),
    ] {
        for object in objects.iter().take(NAMED_MAX) {
            screen.note(&format!("{object}  {what}"));
        }
        if objects.len() > NAMED_MAX {
            screen.note(&format!("… and {} more {what}", objects.len() - NAMED_MAX));
        }
    }
    let verdict = match outcome.timed_out {
        true => "gave up waiting:",
        false => "settled:",
    };
    let given_up = match outcome.discarded.len() {
        0 => String::new(),
        number => format!(", {number} given up"),
    };
    screen.result(&format!(
        "{verdict} {} of {} loaded, {} dead-lettered{given_up}, after {}",
        outcome.settled,
        plural(outcome.objects, "object"),
        outcome.dead_lettered.len(),
        span(elapsed)
    ))?;
    Ok(well)
}
