//! The command line: arguments in, exit code out.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use weirgate_common::aws;
use weirgate_common::config::{Config, DEFAULT_PATH, PATH_VARIABLE, UnknownFleet, parse_duration};
use weirgate_common::fault::chain;
use weirgate_common::telemetry::{LOG_VARIABLE, LogFormat, start_logging};

use crate::address::Address;
use crate::dlq::{self, DiscardOptions, ReplayOptions, Selection};
use crate::screen::Screen;
use crate::world::World;
use crate::{audit, check, publish, schema, status, wait};

const ABOUT: &str = "Look at, check and repair a Weirgate system.";

const EXAMPLES: &str = "\
Examples:
  weirgate check                            is everything set up so that it can work?
  weirgate status                           how fresh are the tables, what waits, who works?
  weirgate publish day/*.avro s3://ads-events/impressions/dt=2026-03-01/
  weirgate wait s3://ads-events/impressions/dt=2026-03-01/ --timeout 30m
  weirgate schema impression.avsc --feed impressions
                                            what DDL would a new schema run?
  weirgate audit                            is every object loaded, exactly once?
  weirgate dlq list                         what could not be processed, and why
  weirgate dlq replay --reason missing_object --limit 1 --yes
                                            try one first, then the others

Exit codes:
  0  all is well
  1  something is wrong, or did not work
  2  the command line or the configuration is wrong

AWS region, credentials and endpoints come from the standard environment
(AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL, …). WEIRGATE_LOG=debug shows what the SDK does.";

#[derive(Debug, Parser)]
#[command(name = "weirgate", version, about = ABOUT, after_help = EXAMPLES)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, env = PATH_VARIABLE, default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    /// The fleet to work on; needed by `dlq` when the configuration has several.
    #[arg(long, global = true, value_name = "NAME")]
    fleet: Option<String>,
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration, then the world: database, queues, buckets, group.
    ///
    /// Each line says what was looked at and how it is; each problem says what to do. Nothing is
    /// changed. Exits with 1 when something fails, 2 when the configuration is wrong.
    Check,
    /// Show freshness, backlog, instances and dead letters.
    ///
    /// What cannot be learned is shown as unknown, never as zero; then the exit code is 1.
    Status {
        /// Freshness is computed over the commits of this long.
        #[arg(long, default_value = "1h", value_parser = parse_duration, value_name = "SPAN")]
        window: Duration,
    },
    /// Upload files to S3, the way a producer does.
    ///
    /// A destination that ends with `/` is a folder; folders among the files keep their structure.
    #[command(after_help = "Examples:
  weirgate publish part-0.avro s3://ads-events/impressions/dt=2026-03-01/
  weirgate publish dt=2026-03-01 s3://ads-events/impressions/
  weirgate publish fixed.avro s3://ads-events/impressions/dt=2026-03-01/part-0.avro")]
    Publish {
        /// Files and folders.
        #[arg(required = true, value_name = "FILES")]
        files: Vec<PathBuf>,
        /// s3://BUCKET/PREFIX/ or, for one file, s3://BUCKET/KEY.
        #[arg(value_name = "DESTINATION")]
        destination: Address,
        /// Uploads at the same time.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
        parallel: u16,
    },
    /// Wait until everything under a prefix is in the tables.
    ///
    /// For schedulers and shell scripts. Exits with 0 when all of it is loaded; with 1 when
    /// something was dead-lettered, or is still not there when the time is over.
    #[command(after_help = "Example:
  weirgate wait s3://ads-events/impressions/dt=2026-03-01/ --timeout 30m && run-the-report")]
    Wait {
        /// s3://BUCKET/PREFIX/.
        prefix: Address,
        /// Give up after this long.
        #[arg(long, default_value = "10m", value_parser = parse_duration, value_name = "SPAN")]
        timeout: Duration,
        /// Look again this often.
        #[arg(long, default_value = "2s", value_parser = parse_duration, value_name = "SPAN")]
        poll: Duration,
    },
    /// Print the DDL that a file's schema would run on its feed's table.
    ///
    /// Nothing is changed: run it yourself, or let the first importer do it. Exits with 1 when the
    /// rows will not fit into the table under the feed's `evolve`, and says which field is why.
    #[command(after_help = "Examples:
  weirgate schema impression.avsc --feed impressions
  weirgate schema part-0.avro --object s3://ads-events/impressions/dt=2026-03-01/part-0.avro
  weirgate schema impression.avsc --feed impressions | psql")]
    Schema {
        /// An Avro file, or a schema as JSON.
        file: PathBuf,
        /// The feed whose table is meant [default: the one that takes the object].
        #[arg(long, value_name = "NAME")]
        feed: Option<String>,
        /// An object as the file would be published; its key tells the types of captured columns.
        #[arg(long, value_name = "S3-ADDRESS")]
        object: Option<Address>,
    },
    /// Compare S3 with the ledger and the ledger with the tables.
    ///
    /// Names objects that are missing or stale, and objects whose rows in the table are not the
    /// rows that were loaded. Dead letters are shown, and are no fault of the books. Exits with 1
    /// when something is wrong.
    Audit {
        /// Objects younger than this may still be on their way [default: the fleet's freshness].
        #[arg(long, value_parser = parse_duration, value_name = "SPAN")]
        grace: Option<Duration>,
    },
    /// Look into the dead-letter queue, and send letters back to work.
    #[command(subcommand)]
    Dlq(Dlq),
}

#[derive(Debug, Subcommand)]
enum Dlq {
    /// Show what could not be processed, grouped by error.
    ///
    /// Reading a queue hides its messages for a moment; they are put back at once.
    #[command(after_help = "Examples:
  weirgate dlq list
  weirgate dlq list --each --feed impressions
  weirgate dlq list --reason redriven       moved by SQS itself after too many receives")]
    List {
        #[command(flatten)]
        select: Select,
        /// Show every letter instead of groups.
        #[arg(long)]
        each: bool,
    },
    /// Show one letter in full, body included.
    Show {
        /// The message id, or its beginning.
        id: String,
    },
    /// Send letters back to the queue they came from.
    ///
    /// Without --yes it shows what it would do, and asks when there is a terminal. A letter is
    /// sent, recorded in the ledger, then deleted: a failure in between leaves it twice rather
    /// than nowhere, and importing twice changes nothing. Run it again after an interruption.
    #[command(after_help = "Examples:
  weirgate dlq replay --reason missing_object                what would be replayed
  weirgate dlq replay --reason missing_object --limit 1 --yes   one, to see whether it is fixed
  weirgate dlq replay --object 's3://ads-events/impressions/dt=2026-03-01/*' --yes
  weirgate dlq replay --all --rate 50 --yes")]
    Replay {
        #[command(flatten)]
        select: Select,
        /// Every letter in the queue.
        #[arg(long, conflicts_with_all = ["reason", "object", "feed", "message_id"])]
        all: bool,
        /// Do it, without asking.
        #[arg(long)]
        yes: bool,
        /// Also letters that were replayed 3 times or more.
        #[arg(long)]
        force: bool,
        /// Letters per second, at most.
        #[arg(long, value_name = "N")]
        rate: Option<NonZeroU32>,
    },
    /// Print letters as JSON lines; they stay where they are.
    #[command(after_help = "Example:
  weirgate dlq export --reason bad_body > letters.jsonl")]
    Export {
        #[command(flatten)]
        select: Select,
    },
    /// Put exported letters, edited or not, into the dead-letter queue.
    Import {
        /// JSON lines with `body` and `attributes`, as `dlq export` prints them; `-` reads
        /// standard input.
        file: PathBuf,
        /// Do it, without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Give letters up: save them to a file, then delete them.
    ///
    /// The file can be imported again. The ledger remembers that the objects were given up, so
    /// that an audit does not call them missing.
    #[command(after_help = "Example:
  weirgate dlq discard --reason bad_body --save letters.jsonl --yes")]
    Discard {
        #[command(flatten)]
        select: Select,
        /// Every letter in the queue.
        #[arg(long, conflicts_with_all = ["reason", "object", "feed", "message_id"])]
        all: bool,
        /// A new file to keep the letters in.
        #[arg(long, value_name = "FILE")]
        save: PathBuf,
        /// Do it, without asking.
        #[arg(long)]
        yes: bool,
    },
}

/// Conditions on letters; all that are given must hold, any value of each will do.
#[derive(Debug, Args)]
struct Select {
    /// Letters with this reason, as `dlq list` shows it.
    #[arg(long, value_name = "REASON")]
    reason: Vec<String>,
    /// Letters about this object: an address, its beginning, or a pattern with `*`.
    #[arg(long, value_name = "S3-ADDRESS")]
    object: Vec<String>,
    /// Letters of this feed.
    #[arg(long, value_name = "NAME")]
    feed: Vec<String>,
    /// The letter with this id, or the beginning of it.
    #[arg(long, value_name = "ID")]
    message_id: Vec<String>,
    /// At most this many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl From<Select> for Selection {
    fn from(select: Select) -> Self {
        Selection {
            ids: select.message_id,
            reasons: select.reason,
            objects: select.object,
            feeds: select.feed,
            limit: select.limit,
        }
    }
}

impl Select {
    /// What changes letters must be told which ones, or that all are meant.
    fn or_all(self, all: bool) -> Result<Selection, Unselective> {
        let selection = Selection::from(self);
        if selection.is_empty() && !all { Err(Unselective) } else { Ok(selection) }
    }
}

/// What a finished process says to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Well = 0,
    Wrong = 1,
    Usage = 2,
}

impl From<bool> for Exit {
    fn from(well: bool) -> Self {
        if well { Exit::Well } else { Exit::Wrong }
    }
}

/// Runs the tool with the arguments of a process, the program's name first.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::from(exit(args) as u8)
}

fn exit(args: impl Iterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, and a reader that went away is no error.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Well };
        }
    };
    if std::env::var_os(LOG_VARIABLE).is_some() {
        start_logging(LogFormat::Human);
    }
    let screen = Screen::new(cli.json);
    let failed = |error: &(dyn std::error::Error + 'static), code: Exit| {
        screen.note(&format!("weirgate: {}", chain(error)));
        code
    };
    let config = match Config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => {
            if matches!(cli.command, Command::Check) {
                return match check::refused(&screen, &cli.config, &error) {
                    Ok(()) => Exit::Usage,
                    Err(error) => failed(error.as_ref(), Exit::Wrong),
                };
            }
            return failed(&error, Exit::Usage);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error, Exit::Wrong),
    };
    let outcome = runtime.block_on(async {
        let config_path = cli.config.display().to_string();
        let world = World { config, config_path, sdk: aws::sdk_config().await };
        Box::pin(command(&world, &screen, cli.fleet.as_deref(), cli.command)).await
    });
    match outcome {
        Ok(well) => well.into(),
        Err(error) if error.is::<UnknownFleet>() => failed(error.as_ref(), Exit::Usage),
        Err(error) if error.is::<schema::Unclear>() => failed(error.as_ref(), Exit::Usage),
        Err(error) if error.is::<Unselective>() => failed(error.as_ref(), Exit::Usage),
        Err(error) => failed(error.as_ref(), Exit::Wrong),
    }
}

/// True when all is well.
async fn command(
    world: &World,
    screen: &Screen,
    fleet: Option<&str>,
    command: Command,
) -> Result<bool> {
    match command {
        Command::Check => check::check(world, screen, fleet).await,
        Command::Status { window } => status::status(world, screen, fleet, window).await,
        Command::Publish { files, destination, parallel } => {
            publish::publish(world, screen, &files, &destination, usize::from(parallel)).await
        }
        Command::Wait { prefix, timeout, poll } => {
            wait::wait(world, screen, &prefix, timeout, poll).await
        }
        Command::Schema { file, feed, object } => {
            schema::schema(world, screen, &file, feed.as_deref(), object.as_ref()).await
        }
        Command::Audit { grace } => audit::audit(world, screen, fleet, grace).await,
        Command::Dlq(Dlq::List { select, each }) => {
            dlq::list(world, screen, fleet, &select.into(), each).await
        }
        Command::Dlq(Dlq::Show { id }) => dlq::show(world, screen, fleet, &id).await,
        Command::Dlq(Dlq::Replay { select, all, yes, force, rate }) => {
            let selection = select.or_all(all)?;
            let options = ReplayOptions { yes, force, rate_max: rate };
            dlq::replay_letters(world, screen, fleet, &selection, options).await
        }
        Command::Dlq(Dlq::Export { select }) => {
            dlq::export(world, screen, fleet, &select.into()).await
        }
        Command::Dlq(Dlq::Import { file, yes }) => {
            dlq::import(world, screen, fleet, &file, yes).await
        }
        Command::Dlq(Dlq::Discard { select, all, save, yes }) => {
            let selection = select.or_all(all)?;
            let options = DiscardOptions { yes, save };
            dlq::discard(world, screen, fleet, &selection, &options).await
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "say which letters: --reason, --object, --feed, --message-id, or --all; `weirgate dlq list` \
     shows what there is"
)]
struct Unselective;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn exit_of(args: &[&str]) -> Exit {
        exit(["weirgate"].iter().chain(args).map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        for part in ["Examples:", "Exit codes:", "dlq", "publish", "status", "check"] {
            assert!(help.contains(part), "{help}");
        }
    }

    #[test]
    fn the_last_argument_of_publish_is_its_destination() {
        let cli = Cli::try_parse_from(["weirgate", "publish", "a", "b", "s3://c/d/"]).unwrap();
        match cli.command {
            Command::Publish { files, destination, .. } => {
                assert_eq!(files.len(), 2);
                assert_eq!(destination.to_string(), "s3://c/d/");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn usage_and_configuration_errors_exit_with_2() {
        for args in [
            &["dlq", "replay", "--all", "--reason", "x"][..],
            &["publish", "a", "not-s3"],
            &["frobnicate"],
            &["--config", "/nonexistent/weirgate.toml", "status"],
            &["--config", "/nonexistent/weirgate.toml", "check"],
        ] {
            assert_eq!(exit_of(args), Exit::Usage, "{args:?}");
        }
        assert_eq!(exit_of(&["--help"]), Exit::Well);
    }
}
