//! `dlq list` and `dlq show`.

use anyhow::{Result, bail};
use weirgate_common::clock;

use super::hold::{LETTERS_MAX, Stop};
use super::letter::{Letter, Selection, group};
use super::office::Office;
use super::render::{self, Listing, Row};
use crate::screen::Screen;
use crate::world::World;

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
