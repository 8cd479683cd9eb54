//! `dlq export`, `dlq import`, `dlq discard`: letters as JSON lines, and giving letters up without
//! losing them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use weirgate_common::clock::{self, Timestamp};
use weirgate_common::ledger::Resolution;
use weirgate_common::queue::Message;

use super::hold::{LETTERS_MAX, Stop};
use super::letter::{Letter, Selection};
use super::office::{Office, record};
use super::render;
use super::replay::{delete, fitting};
use crate::screen::Screen;
use crate::text::plural;
use crate::world::World;

/// One line of an export. What an import needs is the body and the attributes; the rest tells a
/// reader where they came from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    #[serde(default)]
    message_id: String,
    #[serde(default)]
    sent_at: Option<Timestamp>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    body: String,
}

impl Line {
    fn of(letter: &Letter) -> Self {
        let message = &letter.message;
        Line {
            message_id: message.message_id.clone(),
            sent_at: Some(message.sent_at),
            attributes: message.attributes.clone(),
            body: message.body.clone(),
        }
    }

    fn into_message(self) -> Message {
        Message {
            message_id: self.message_id,
            receipt: String::new(),
            body: self.body,
            receive_count: 0,
            sent_at: self.sent_at.unwrap_or(Timestamp::from_unix_ms(0)),
            attributes: self.attributes,
        }
    }
}

/// How `dlq discard` was asked to go about it.
#[derive(Clone, Debug)]
pub(crate) struct DiscardOptions {
    pub(crate) yes: bool,
    /// Where the letters are kept.
    pub(crate) save: PathBuf,
}

/// Prints the letters as JSON lines, and leaves them where they are.
pub(crate) async fn export(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    selection: &Selection,
) -> Result<bool> {
    let office = Office::open(world, fleet).await?;
    let stop = Stop::on_signals()?;
    let (mut held, held_by_others) = office.gather(screen, &stop).await?;
    held.release_all().await;
    let chosen = selection.pick(held.letters());
    for &index in &chosen {
        screen.result(&serde_json::to_string(&Line::of(held.letter(index)))?)?;
    }
    let complete = !stop.requested() && held.letters().count() < LETTERS_MAX;
    screen.note(&format!("{} exported", plural(chosen.len(), "letter")));
    if held_by_others > 0 {
        screen.note(&format!(
            "about {held_by_others} more cannot be seen now: another reader holds them"
        ));
    }
    if !complete {
        screen.note("not all of the queue was read");
    }
    Ok(complete)
}

/// Puts exported letters, edited or not, back into the dead-letter queue, from where they can be
/// replayed.
pub(crate) async fn import(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    file: &Path,
    yes: bool,
) -> Result<bool> {
    let letters: Vec<Letter> = {
        let (fleet, _) = world.config.fleet(fleet)?;
        let read = |line: Line| Letter::read(line.into_message(), &world.config, fleet);
        parse(&text_of(file)?)
            .with_context(|| format!("{} is no export of letters", file.display()))?
            .into_iter()
            .map(read)
            .collect()
    };
    let office = Office::open(world, fleet).await?;
    let what = format!("put {} into {}", plural(letters.len(), "letter"), office.name());
    let shown: Vec<&Letter> = letters.iter().collect();
    screen.note(render::intent(&what, &shown, clock::now(), screen.paint).trim_end());
    if letters.is_empty() {
        screen.note("the file holds no letters");
        return Ok(true);
    }
    if !yes && !confirmed(screen, "put them there now?")? {
        return Ok(true);
    }
    let ledger = world.ledger().await.context("the ledger must know, so nothing was sent")?;
    let mut failed = 0;
    let mut waiting = &letters[..];
    while !waiting.is_empty() {
        let messages = waiting.iter().map(|letter| &letter.message);
        let (batch, rest) = waiting.split_at(fitting(messages.map(|m| (&m.body, &m.attributes))));
        waiting = rest;
        let messages: Vec<_> = batch
            .iter()
            .map(|letter| (letter.message.body.clone(), letter.message.attributes.clone()))
            .collect();
        for (letter, sent) in batch.iter().zip(office.letters.send(&messages).await) {
            let (from, to) = (Resolution::Discarded, Resolution::DeadLettered);
            let outcome = match sent {
                Ok(()) => record(&ledger, letter, from, to).await,
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = outcome {
                failed += 1;
                screen.note(&format!("letter {}: {why}", letter.id()));
            }
        }
        screen.progress(&format!("{} to go", waiting.len()));
    }
    ledger.close().await;
    report(screen, "imported", letters.len() - failed, failed)
}

/// Saves the letters to a file, then deletes them: what is given up can still be looked at, and
/// be imported again.
pub(crate) async fn discard(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    selection: &Selection,
    options: &DiscardOptions,
) -> Result<bool> {
    let office = Office::open(world, fleet).await?;
    let stop = Stop::on_signals()?;
    let (mut held, _) = office.gather(screen, &stop).await?;
    let mut chosen = selection.pick(held.letters());
    let letters: Vec<&Letter> = chosen.iter().map(|&index| held.letter(index)).collect();
    let file = options.save.display();
    let what = format!("discard {}, kept in {file}", plural(letters.len(), "dead letter"));
    screen.note(render::intent(&what, &letters, clock::now(), screen.paint).trim_end());
    if letters.is_empty() || !options.yes || stop.requested() {
        let shown: Vec<String> = letters.iter().map(|letter| letter.id().to_owned()).collect();
        held.release_all().await;
        if shown.is_empty() {
            screen.note("nothing to discard: no dead letter matches");
            return Ok(selection.ids.is_empty());
        }
        if stop.requested() {
            bail!("interrupted before anything was discarded");
        }
        if !confirmed(screen, "discard them now?")? {
            return Ok(true);
        }
        // Exactly what was shown, whatever else has arrived since.
        held = office.gather(screen, &stop).await?.0;
        let shown = Selection { ids: shown, ..Selection::default() };
        chosen = shown.pick(held.letters());
    }
    let prepared = async {
        let ledger = world.ledger().await.context("the ledger must know")?;
        save(&options.save, chosen.iter().map(|&index| held.letter(index)))?;
        anyhow::Ok(ledger)
    };
    let ledger = match prepared.await {
        Ok(ledger) => ledger,
        Err(error) => {
            held.release_all().await;
            return Err(error).context("nothing was discarded");
        }
    };
    let mut failed = Vec::new();
    let mut doomed = Vec::new();
    held.renew().await;
    for &index in &chosen {
        if !held.holds(index) {
            failed.push((index, "left alone: another reader has taken it".to_owned()));
            continue;
        }
        let letter = held.letter(index);
        // Recorded first: once the letter is gone, nobody could.
        match record(&ledger, letter, Resolution::DeadLettered, Resolution::Discarded).await {
            Ok(()) => doomed.push(index),
            Err(why) => failed.push((index, why)),
        }
    }
    failed.extend(delete(&mut held, doomed).await);
    held.release_all().await;
    ledger.close().await;
    for (index, why) in &failed {
        screen.note(&format!("letter {}: {why}", held.letter(*index).id()));
    }
    report(screen, "discarded", chosen.len() - failed.len(), failed.len())
}

/// Asks; when nobody can be asked, says what is needed.
fn confirmed(screen: &Screen, question: &str) -> Result<bool> {
    match screen.ask(question)? {
        Some(true) => return Ok(true),
        Some(false) => screen.note("nothing was changed"),
        None => screen.note("nothing was changed; add --yes to do it"),
    }
    Ok(false)
}

fn report(screen: &Screen, verb: &str, done: usize, failed: usize) -> Result<bool> {
    screen.clear_progress();
    if screen.json {
        screen.json(&BTreeMap::from([(verb, done), ("failed", failed)]))?;
    } else {
        screen.result(&format!("{} {verb}", plural(done, "letter")))?;
    }
    Ok(failed == 0)
}

fn text_of(file: &Path) -> Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    Ok(text)
}

/// All lines or none: half an import is harder to repeat than a whole one.
fn parse(text: &str) -> Result<Vec<Line>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).with_context(|| format!("line {}", number + 1))
        })
        .collect()
}

/// On the disk before anything is deleted; an existing file is never overwritten.
fn save<'l>(file: &Path, letters: impl Iterator<Item = &'l Letter>) -> Result<()> {
    let failed = || format!("cannot write {}", file.display());
    let mut out =
        fs::OpenOptions::new().write(true).create_new(true).open(file).with_context(failed)?;
    for letter in letters {
        let line = serde_json::to_string(&Line::of(letter))?;
        writeln!(out, "{line}").with_context(failed)?;
    }
    out.sync_all().with_context(failed)
}

#[cfg(test)]
mod tests {
    use weirgate_common::dead_letter::REASON;

    use super::super::letter::tests::{config, message};
    use super::*;

    #[test]
    fn letters_survive_the_way_through_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("letters.jsonl");
        let letters = [
            Letter::read(message("m-1", "a\n\"b\"", &[(REASON, "bad_body")]), &config(), "ads"),
            Letter::read(message("m-2", "", &[]), &config(), "ads"),
        ];
        save(&file, letters.iter()).unwrap();
        let lines = parse(&text_of(&file).unwrap()).unwrap();
        assert_eq!(lines.len(), 2);
        for (line, letter) in lines.into_iter().zip(&letters) {
            let read = line.into_message();
            assert_eq!(read.body, letter.message.body);
            assert_eq!(read.attributes, letter.message.attributes);
        }
        let error = save(&file, letters.iter()).unwrap_err().to_string();
        assert!(error.contains("cannot write"), "an existing file is kept: {error}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse("{\"body\":\"x\"}\n\nnonsense\n").unwrap_err().to_string();
        assert_eq!(error, "line 3");
        assert_eq!(parse("{\"body\":\"x\"}\n\n").unwrap().len(), 1);
    }
}
