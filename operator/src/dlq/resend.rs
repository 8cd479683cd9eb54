//! `dlq replay`.

use std::num::NonZeroU32;

use anyhow::{Context, Result, bail};
use weirgate_common::clock;
use weirgate_common::ledger::Resolution;
use weirgate_common::queue::Queue;

use super::hold::{Held, Stop};
use super::letter::{Letter, Selection};
use super::office::{Office, record};
use super::render;
use super::replay::{Fate, REPLAYS_MAX, replay};
use crate::screen::Screen;
use crate::world::World;

/// How `dlq replay` was asked to go about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplayOptions {
    pub(crate) yes: bool,
    pub(crate) force: bool,
    /// Letters per second.
    pub(crate) rate_max: Option<NonZeroU32>,
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
        async |letter: &Letter| {
            record(&ledger, letter, Resolution::DeadLettered, Resolution::Replayed).await
        },
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
    // Parked letters must not use the limit up.
    let unlimited = Selection { limit: None, ..selection.clone() };
    let (mut chosen, parked): (Vec<usize>, Vec<usize>) = unlimited
        .pick(held.letters())
        .into_iter()
        .partition(|&index| force || held.letter(index).replays() < REPLAYS_MAX);
    chosen.truncate(selection.limit.unwrap_or(usize::MAX));
    (chosen, parked)
}

fn ids(held: &Held<'_, Queue>, indexes: &[usize]) -> Vec<String> {
    indexes.iter().map(|&index| held.letter(index).id().to_owned()).collect()
}
