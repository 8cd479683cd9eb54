//! One fleet's dead-letter queue with all that a command needs to know of it.

use anyhow::Result;
use weirgate_common::clock::Timestamp;
use weirgate_common::ledger::{Ledger, Resolution};
use weirgate_common::queue::Queue;

use super::hold::{Held, Stop};
use super::letter::Letter;
use crate::screen::Screen;
use crate::world::World;

/// One fleet's dead-letter queue, and the queue its letters came from.
pub(super) struct Office<'w> {
    pub(super) world: &'w World,
    pub(super) fleet: &'w str,
    pub(super) source: Queue,
    pub(super) letters: Queue,
}

impl<'w> Office<'w> {
    pub(super) async fn open(world: &'w World, fleet: Option<&'w str>) -> Result<Self> {
        let (fleet, settings) = world.config.fleet(fleet)?;
        let source = world.queue(settings);
        let letters = source.dead_letter_queue().await?;
        Ok(Office { world, fleet, source, letters })
    }

    pub(super) fn name(&self) -> &str {
        self.letters.url().rsplit('/').next().unwrap_or_default()
    }

    /// Holds every letter that can be had.
    pub(super) async fn gather(
        &self,
        screen: &Screen,
        stop: &Stop,
    ) -> Result<(Held<'_, Queue>, u64)> {
        let depth = self.letters.depth().await?;
        let held = Held::gather(
            &self.letters,
            depth.visible,
            stop,
            |message| Letter::read(message, &self.world.config, self.fleet),
            |count| screen.progress(&format!("reading {}: {count} letters", self.name())),
        )
        .await?;
        screen.clear_progress();
        Ok((held, depth.in_flight))
    }
}

/// Tells the ledger what became of a letter. One whose reason names no object has no row there
/// that could be told from others of its kind.
///
/// The letter says when it failed, by the clock that also wrote the ledger's row: a failure later
/// than that is not this letter's.
pub(super) async fn record(
    ledger: &Ledger,
    letter: &Letter,
    from: Resolution,
    to: Resolution,
) -> Result<(), String> {
    let Some(reason) = &letter.reason else { return Ok(()) };
    let Some(object) = &reason.object else { return Ok(()) };
    let failed_until: Timestamp = reason.first_failed_at;
    ledger
        .resolve_failures(object, failed_until, from, to)
        .await
        .map_err(|error| weirgate_common::fault::chain(&error))
}
