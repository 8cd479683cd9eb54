//! What the dead-letter commands print. Pure.

use std::fmt::Write;

use weirgate_common::clock::Timestamp;

use super::letter::{self, Group, Letter};
use super::replay::{Fate, REPLAYS_MAX};
use crate::text::{Align, Columns, Paint, count, cut, one_line, plural, span};

/// Errors are cut here in lists; `dlq show` has them in full.
const ERROR_WIDTH_MAX: usize = 160;

/// Everything a list shows, as data.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Listing {
    pub(crate) fleet: String,
    pub(crate) queue: String,
    /// Letters that match.
    pub(crate) count: usize,
    /// Letters that could not be looked at because somebody else holds them; approximate.
    pub(crate) held_by_others: u64,
    /// More letters than this tool reads at once, or interrupted.
    pub(crate) incomplete: bool,
    pub(crate) groups: Vec<Group>,
    pub(crate) letters: Vec<Row>,
}

/// One letter as data.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Row {
    pub(crate) message_id: String,
    pub(crate) reason: String,
    pub(crate) detail: String,
    pub(crate) feeds: Vec<String>,
    pub(crate) objects: Vec<String>,
    /// What the importer tried; unknown for redriven letters.
    pub(crate) attempts: Option<u32>,
    pub(crate) first_failed_at: Option<Timestamp>,
    pub(crate) sent_at: Timestamp,
    /// Receives in this queue, looks like this one included.
    pub(crate) receives: u32,
    pub(crate) replays: u32,
}

impl Row {
    pub(crate) fn of(letter: &Letter) -> Self {
        let reason = letter.reason.as_ref();
        Row {
            message_id: letter.id().to_owned(),
            reason: letter.code().to_owned(),
            detail: letter.detail().to_owned(),
            feeds: letter.feeds.clone(),
            objects: letter.objects.clone(),
            attempts: reason.map(|reason| reason.attempts),
            first_failed_at: reason.map(|reason| reason.first_failed_at),
            sent_at: letter.message.sent_at,
            receives: letter.message.receive_count,
            replays: letter.replays(),
        }
    }
}

pub(crate) fn listing(listing: &Listing, each: bool, now: Timestamp, paint: Paint) -> String {
    let mut text = format!(
        "{} in {} (fleet {})\n",
        paint.bold(&plural(listing.count, "dead letter")),
        listing.queue,
        listing.fleet
    );
    if listing.held_by_others > 0 {
        let _ = writeln!(
            text,
            "{}",
            paint.yellow(&format!(
                "about {} more cannot be seen now: another reader holds them",
                count(listing.held_by_others)
            ))
        );
    }
    if listing.incomplete {
        text.push_str(&paint.yellow("not all of the queue was read\n"));
    }
    if listing.count == 0 {
        return text;
    }
    text.push('\n');
    text.push_str(&if each { rows(listing, now, paint) } else { groups(listing, now, paint) });
    if listing.groups.iter().any(|group| group.replays_max >= REPLAYS_MAX) {
        let _ = writeln!(
            text,
            "\nLetters replayed {REPLAYS_MAX} times or more are parked: `dlq replay` skips them \
             unless --force is given."
        );
    }
    text
}

fn groups(listing: &Listing, now: Timestamp, paint: Paint) -> String {
    let mut columns = Columns::new(&[
        ("COUNT", Align::Right),
        ("REASON", Align::Left),
        ("FEED", Align::Left),
        ("OLDEST", Align::Right),
        ("REPLAYS", Align::Right),
        ("FOR EXAMPLE", Align::Left),
    ]);
    for group in &listing.groups {
        let example = group.example_object.as_deref().unwrap_or("");
        columns.row(vec![
            count(group.count as u64),
            one_line(&group.reason),
            one_line(&feeds(&group.feeds)),
            span(now.since(group.oldest_sent_at)),
            group.replays_max.to_string(),
            one_line(&format!("{}  {example}", group.example_id)).trim_end().to_owned(),
        ]);
    }
    let table = columns.render(paint);
    let mut lines = table.lines();
    let mut text = String::new();
    text.extend(lines.next().map(|header| format!("{header}\n")));
    for (line, group) in lines.zip(&listing.groups) {
        let error = cut(&one_line(&group.error), ERROR_WIDTH_MAX);
        let _ = writeln!(text, "{line}\n       {}", paint.dim(&error));
    }
    text
}

fn rows(listing: &Listing, now: Timestamp, paint: Paint) -> String {
    let mut columns = Columns::new(&[
        ("MESSAGE", Align::Left),
        ("AGE", Align::Right),
        ("REASON", Align::Left),
        ("FEED", Align::Left),
        ("TRIES", Align::Right),
        ("REPLAYS", Align::Right),
        ("OBJECT", Align::Left),
    ]);
    for row in &listing.letters {
        columns.row(vec![
            row.message_id.clone(),
            span(now.since(row.sent_at)),
            one_line(&row.reason),
            one_line(&feeds(&row.feeds)),
            row.attempts.map_or("?".to_owned(), |attempts| attempts.to_string()),
            row.replays.to_string(),
            one_line(&objects(&row.objects)),
        ]);
    }
    let table = columns.render(paint);
    let mut lines = table.lines();
    let mut text = String::new();
    text.extend(lines.next().map(|header| format!("{header}\n")));
    for (line, row) in lines.zip(&listing.letters) {
        let detail = cut(&one_line(&row.detail), ERROR_WIDTH_MAX);
        let _ = writeln!(text, "{line}\n    {}", paint.dim(&detail));
    }
    text
}

fn feeds(feeds: &[String]) -> String {
    if feeds.is_empty() { "-".to_owned() } else { feeds.join(",") }
}

fn objects(objects: &[String]) -> String {
    match objects {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// One letter in full.
pub(crate) fn letter(letter: &Letter, now: Timestamp, paint: Paint) -> String {
    let row = Row::of(letter);
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(text, "{}  {value}", paint.dim(&format!("{name:<13}")));
    };
    field("message", &row.message_id);
    field("reason", &one_line(&row.reason));
    field("error", &one_line(&row.detail));
    field("feed", &one_line(&feeds(&row.feeds)));
    for object in &row.objects {
        field("object", &one_line(object));
    }
    let attempts = row.attempts.map_or("unknown".to_owned(), |attempts| attempts.to_string());
    field("attempts", &attempts);
    if let Some(at) = row.first_failed_at {
        field("first failed", &format!("{at} ({} ago)", span(now.since(at))));
    }
    field("dead since", &format!("{} ({} ago)", row.sent_at, span(now.since(row.sent_at))));
    field("receives", &format!("{} in this queue, this look included", row.receives));
    field("replays", &row.replays.to_string());
    for (name, value) in &letter.message.attributes {
        if !name.starts_with("weirgate-") {
            field("attribute", &one_line(&format!("{name} = {value}")));
        }
    }
    text.push('\n');
    text.push_str(&body(&letter.message.body));
    text
}

/// Indented when it is JSON; with line breaks but without anything that steers a terminal.
fn body(body: &str) -> String {
    let pretty = serde_json::from_str::<serde_json::Value>(body)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| body.to_owned());
    let mut text = String::with_capacity(pretty.len() + 1);
    for line in pretty.lines() {
        text.push_str(&one_line(line));
        text.push('\n');
    }
    text
}

/// What is about to happen to the letters, group by group; nothing when there are none.
pub(crate) fn intent(what: &str, chosen: &[&Letter], now: Timestamp, paint: Paint) -> String {
    let mut text = String::new();
    if chosen.is_empty() {
        return text;
    }
    let _ = writeln!(text, "{}", paint.bold(what));
    for group in letter::group(chosen.iter().copied()) {
        let _ = writeln!(
            text,
            "  {} {} {} oldest {}: {}",
            count(group.count as u64),
            one_line(&group.reason),
            one_line(&feeds(&group.feeds)),
            span(now.since(group.oldest_sent_at)),
            cut(&one_line(&group.error), ERROR_WIDTH_MAX)
        );
    }
    text
}

/// What a replay will do, before it does.
pub(crate) fn plan(
    chosen: &[&Letter],
    parked: &[&Letter],
    destination: &str,
    now: Timestamp,
    paint: Paint,
) -> String {
    let what = format!("replay {} to {destination}", plural(chosen.len(), "dead letter"));
    let mut text = intent(&what, chosen, now, paint);
    if !parked.is_empty() {
        let _ = writeln!(
            text,
            "{}",
            paint.yellow(&format!(
                "leave {} parked: replayed {REPLAYS_MAX} times or more (--force takes them too)",
                plural(parked.len(), "letter")
            ))
        );
    }
    text
}

pub(crate) fn outcome(outcomes: &[(&Letter, &Fate)], paint: Paint) -> String {
    let mut text = String::new();
    let replayed = outcomes.iter().filter(|(_, fate)| fate.is_sent()).count();
    let interrupted = outcomes.iter().filter(|(_, fate)| **fate == Fate::Interrupted).count();
    for (letter, fate) in outcomes {
        let said = match fate {
            Fate::Replayed | Fate::Interrupted => continue,
            Fate::ReplayedUnrecorded(why) => {
                format!("replayed, but the ledger could not be told: {why}")
            }
            Fate::SentNotDeleted(why) => format!(
                "replayed, but still in the dead-letter queue ({why}); replaying it again does no \
                 harm, the ledger knows what was imported"
            ),
            Fate::NotSent(why) => format!("not sent, still in the dead-letter queue: {why}"),
            Fate::LeaseLost => "left alone: another reader has taken it".to_owned(),
        };
        let _ = writeln!(text, "{} {}", paint.red(letter.id()), one_line(&said));
    }
    let _ = writeln!(text, "{}", paint.bold(&format!("{} replayed", plural(replayed, "letter"))));
    if interrupted > 0 {
        let _ = writeln!(
            text,
            "interrupted; {} left where they were: run the same command again to go on",
            plural(interrupted, "letter")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::letter::tests::{config, message};
    use super::*;
    use weirgate_common::dead_letter;

    const PLAIN: Paint = Paint { colour: false };

    fn letters() -> Vec<Letter> {
        let corrupt = |id: &str, n: u32| {
            let object = format!("s3://ads/imp/{n}.avro");
            let detail = format!("{object}: block {n}: checksum\x1b[2J does not match");
            let attributes = [
                (dead_letter::REASON, "corrupt_object"),
                (dead_letter::DETAIL, detail.as_str()),
                (dead_letter::FEED, "impressions"),
                (dead_letter::OBJECT, object.as_str()),
                (dead_letter::ATTEMPTS, "1"),
                (dead_letter::REPLAYS, "3"),
                (dead_letter::FIRST_FAILED_AT, "2023-11-14T22:13:00Z"),
            ];
            Letter::read(message(id, "{}", &attributes), &config(), "ads")
        };
        vec![
            corrupt("m-1", 1),
            Letter::read(message("m-3", "{\"a\":\"\u{1b}x\"}", &[]), &config(), "ads"),
            corrupt("m-22", 22),
        ]
    }

    fn now() -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_125_000)
    }

    fn of(letters: &[Letter]) -> Listing {
        Listing {
            fleet: "ads".into(),
            queue: "ads-dlq".into(),
            count: letters.len(),
            held_by_others: 2,
            incomplete: false,
            groups: letter::group(letters.iter()),
            letters: letters.iter().map(Row::of).collect(),
        }
    }

    #[test]
    fn groups_read_like_this() {
        assert_eq!(
            listing(&of(&letters()), false, now(), PLAIN),
            "\
3 dead letters in ads-dlq (fleet ads)
about 2 more cannot be seen now: another reader holds them

COUNT  REASON          FEED         OLDEST  REPLAYS  FOR EXAMPLE
    2  corrupt_object  impressions   2m 5s        3  m-1  s3://ads/imp/1.avro
       OBJECT: block N: checksum\u{fffd}[NJ does not match
    1  redriven        -             2m 5s        0  m-3
       SQS moved it here after too many receives, and tells no reason; importers crashed on it or gave it back each time: see their logs

Letters replayed 3 times or more are parked: `dlq replay` skips them unless --force is given.
"
        );
        let empty = Listing { held_by_others: 0, ..of(&[]) };
        assert_eq!(listing(&empty, false, now(), PLAIN), "0 dead letters in ads-dlq (fleet ads)\n");
    }

    #[test]
    fn each_letter_reads_like_this() {
        let text = listing(&of(&letters()[..1]), true, now(), PLAIN);
        let table: Vec<&str> = text.lines().skip(3).take(3).collect();
        assert_eq!(
            table,
            [
                "MESSAGE    AGE  REASON          FEED         TRIES  REPLAYS  OBJECT",
                "m-1      2m 5s  corrupt_object  impressions      1        3  s3://ads/imp/1.avro",
                "    s3://ads/imp/1.avro: block 1: checksum\u{fffd}[2J does not match",
            ]
        );
        let full = letter(&letters()[1], now(), PLAIN);
        assert!(full.contains("attempts       unknown\n"), "{full}");
        assert!(
            full.ends_with("{\n  \"a\": \"\\u001bx\"\n}\n") || !full.contains('\x1b'),
            "{full}"
        );
    }

    #[test]
    fn outcomes_name_every_letter_that_needs_a_look() {
        let letters = letters();
        let outcomes = [
            (&letters[0], &Fate::Replayed),
            (&letters[1], &Fate::NotSent("AccessDenied".into())),
            (&letters[2], &Fate::Interrupted),
        ];
        assert_eq!(
            outcome(&outcomes, PLAIN),
            "m-3 not sent, still in the dead-letter queue: AccessDenied\n1 letter replayed\n\
             interrupted; 1 letter left where they were: run the same command again to go on\n"
        );
    }
}
