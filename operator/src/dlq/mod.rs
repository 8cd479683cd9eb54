//! `weirgate dlq`: what could not be processed, why, and back to work once it is fixed.
//!
//! ```text
//! port      the queue as these tools see it
//! letter    a dead letter as a value: groups, selections
//! hold      reading a queue without losing sight of anything
//! replay    send, record, delete
//! render    what is printed
//! ```

mod port;

mod letter;

mod hold;

mod replay;

mod render;

#[cfg(test)]
mod fake;

use std::num::NonZeroU32;

use anyhow::{Context, Result, bail};
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::ledger::Ledger;
use weirgate_common::queue::Queue;

use crate::screen::Screen;
use crate::world::World;
use hold::{Held, LETTERS_MAX, Stop};
pub(crate) use letter::Selection;
use letter::{Letter, group};
use render::{Listing, Row};
pub(crate) use replay::REPLAYS_MAX;
use replay::{Fate, replay};

/// One fleet's dead-letter queue, and the queue its letters came from.
struct Office<'w> {
    world: &'w World,
    fleet: &'w str,
    source: Queue,
    letters: Queue,
}

/// How `dlq replay` was asked to go about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplayOptions {
    pub(crate) yes: bool,
    pub(crate) force: bool,
    /// Letters per second.
    pub(crate) rate_max: Option<NonZeroU32>,
}

impl<'w> Office<'w> {
    async fn open(world: &'w World, fleet: Option<&'w str>) -> Result<Self> {
        let (fleet, settings) = world.config.fleet(fleet)?;
        let source = world.queue(settings);
        let letters = source.dead_letter_queue().await?;
        Ok(Office { world, fleet, source, letters })
    }

    fn name(&self) -> &str {
        self.letters.url().rsplit('/').next().unwrap_or_default()
    }

    /// Holds every letter that can be had.
    async fn gather(&self, screen: &Screen, stop: &Stop) -> Result<(Held<'_, Queue>, u64)> {
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

pub(crate) async fn list(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    selection: &Selection,
    each: bool,
) -> Result<bool> {
    let office = Office::open(world, fleet).await?;
    let stop = Stop::on_signals()?;
    let (mut held, held_by_others) = office.gather(screen, &stop).await?;
    held.release_all().await;
    let chosen = selection.pick(held.letters());
    let letters: Vec<&Letter> = chosen.iter().map(|&index| held.letter(index)).collect();
    let listing = Listing {
        fleet: office.fleet.to_owned(),
        queue: office.name().to_owned(),
        count: letters.len(),
        held_by_others,
        incomplete: stop.requested() || held.letters().count() >= LETTERS_MAX,
        groups: group(letters.iter().copied()),
        letters: letters.iter().map(|letter| Row::of(letter)).collect(),
    };
    if screen.json {
        screen.json(&listing)?;
    } else {
        screen.result(&render::listing(&listing, each, clock::now(), screen.paint))?;
    }
    Ok(!stop.requested())
}

pub(crate) async fn show(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    id: &str,
) -> Result<bool> {
    let office = Office::open(world, fleet).await?;
    let stop = Stop::on_signals()?;
    let (mut held, held_by_others) = office.gather(screen, &stop).await?;
    held.release_all().await;
    let selection = Selection { ids: vec![id.to_owned()], ..Selection::default() };
    let letter = match selection.pick(held.letters())[..] {
        [one] => held.letter(one),
        [] if held_by_others > 0 => bail!(
            "no letter {id} among those that can be seen; about {held_by_others} are held by \
             another reader: try again in two minutes"
        ),
        [] => bail!("no letter {id} in {}; `weirgate dlq list --each` shows them", office.name()),
        ref many => bail!("{} letters begin with {id}; give more of the id", many.len()),
    };
    if screen.json {
        #[derive(serde::Serialize)]
        struct Full<'l> {
            #[serde(flatten)]
            row: Row,
            attributes: &'l std::collections::BTreeMap<String, String>,
            body: &'l str,
        }
        let (attributes, body) = (&letter.message.attributes, letter.message.body.as_str());
        screen.json(&Full { row: Row::of(letter), attributes, body })?;
    } else {
        screen.result(&render::letter(letter, clock::now(), screen.paint))?;
    }
    Ok(true)
}

pub(crate) async fn replay_letters(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    selection: &Selection,
    options: ReplayOptions,
) -> Result<bool> {
    let office = Office::open(world, fleet).await?;
    let stop = Stop::on_signals()?;
    let (mut held, _) = office.gather(screen, &stop).await?;
    let (mut chosen, parked) = choose(&held, selection, options.force);
    let plan = {
        let letters = |indexes: &[usize]| indexes.iter().map(|&i| held.letter(i)).collect();
        let (chosen, parked): (Vec<_>, Vec<_>) = (letters(&chosen), letters(&parked));
        render::plan(&chosen, &parked, office.source.url(), clock::now(), screen.paint)
    };
    let outline =
        Outline { planned: ids(&held, &chosen), parked: ids(&held, &parked), replayed: None };
    if chosen.is_empty() || stop.requested() || !options.yes {
        // Nothing is held while a person thinks: letters would stay hidden from everybody.
        held.release_all().await;
    }
    if chosen.is_empty() {
        match screen.json {
            true => screen.json(&outline)?,
            false => {
                screen.result(&plan)?;
                screen.result("nothing to replay: no dead letter matches")?;
            }
        }
        return Ok(selection.ids.is_empty());
    }
    if stop.requested() {
        bail!("interrupted before anything was sent");
    }
    if !screen.json {
        screen.result(&plan)?;
    }
    if !options.yes {
        match screen.ask("replay them now?")? {
            Some(true) => {
                // Exactly what was shown, whatever else has arrived since.
                held = office.gather(screen, &stop).await?.0;
                let shown = Selection { ids: outline.planned.clone(), ..Selection::default() };
                chosen = choose(&held, &shown, true).0;
            }
            Some(false) => {
                screen.note("nothing was changed");
                return Ok(true);
            }
            None => {
                match screen.json {
                    true => screen.json(&outline)?,
                    false => screen.note("nothing was changed; add --yes to replay them"),
                }
                return Ok(true);
            }
        }
    }
    let ledger = match world.ledger().await {
        Ok(ledger) => ledger,
        Err(error) => {
            held.release_all().await;
            return Err(error).context("a replay is recorded in the ledger, so nothing was sent");
        }
    };
    let fates = replay(
        &mut held,
        &chosen,
        &office.source,
        options.rate_max,
        &stop,
        async |letter: &Letter| record(&ledger, letter, clock::now()).await,
        |done| screen.progress(&format!("replayed {done} of {}", chosen.len())),
    )
    .await;
    held.release_all().await;
    ledger.close().await;
    screen.clear_progress();

    let outcomes: Vec<_> =
        chosen.iter().map(|&index| held.letter(index)).zip(fates.iter()).collect();
    if screen.json {
        let replayed = outcomes
            .iter()
            .map(|(letter, fate)| Outcome { message_id: letter.id().to_owned(), fate })
            .collect();
        screen.json(&Outline { replayed: Some(replayed), ..outline })?;
    } else {
        screen.result(&render::outcome(&outcomes, screen.paint))?;
    }
    Ok(fates.iter().all(|fate| *fate == Fate::Replayed))
}

/// What `dlq replay --json` prints: a dry run has no `replayed`.
#[derive(serde::Serialize)]
struct Outline<'f> {
    planned: Vec<String>,
    parked: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replayed: Option<Vec<Outcome<'f>>>,
}

#[derive(serde::Serialize)]
struct Outcome<'f> {
    message_id: String,
    #[serde(flatten)]
    fate: &'f Fate,
}

/// The letters to replay, and those left because they keep coming back.
fn choose(held: &Held<'_, Queue>, selection: &Selection, force: bool) -> (Vec<usize>, Vec<usize>) {
    let chosen = selection.pick(held.letters());
    chosen.into_iter().partition(|&index| force || held.letter(index).replays() < REPLAYS_MAX)
}

fn ids(held: &Held<'_, Queue>, indexes: &[usize]) -> Vec<String> {
    indexes.iter().map(|&index| held.letter(index).id().to_owned()).collect()
}

/// A letter whose reason names no object has no row that could be told from others of its kind.
///
/// The letter says when it failed, by the clock that also wrote the ledger's row: a failure later
/// than that is the replay's own, and stays.
async fn record(ledger: &Ledger, letter: &Letter, at: Timestamp) -> Result<(), String> {
    let Some(reason) = &letter.reason else { return Ok(()) };
    let Some(object) = &reason.object else { return Ok(()) };
    ledger
        .mark_replayed(object, reason.first_failed_at, at)
        .await
        .map_err(|error| weirgate_common::fault::chain(&error))
}
