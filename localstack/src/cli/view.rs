//! What `status` and `env` print.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::NOT_RUNNING;
use crate::layout::Layout;
use crate::look::{Depth, Group, depth, group};
use crate::process::PidFiles;
use crate::progress::print;
use crate::world::{self, State};

#[derive(Debug, Serialize)]
struct Status {
    world: String,
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    processes: BTreeMap<String, i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Depth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letters: Option<Depth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<Group>,
}

pub(super) async fn status(layout: &Layout, name: &str, json: bool) -> Result<ExitCode> {
    let folder = layout.world(name)?;
    let state = State::read(&folder);
    let processes = PidFiles::new(&folder).running();
    let mut status = Status {
        world: name.to_owned(),
        running: state.is_some(),
        processes: processes.into_iter().map(|(name, identity)| (name, identity.pid)).collect(),
        queue: None,
        dead_letters: None,
        group: None,
        state,
    };
    if let Some(state) = &status.state {
        let clients = state.endpoints.clients().await;
        status.queue = depth(&clients, &state.data_plane.queue_url).await;
        status.dead_letters = depth(&clients, &state.data_plane.dead_letter_queue_url).await;
        status.group = group(&clients, &state.group).await;
    }
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(&status)?));
    } else {
        print(&status_text(&status, &folder, world::owner(layout, name).is_some()));
    }
    let code = if status.running { 0 } else { NOT_RUNNING };
    Ok(ExitCode::from(code))
}

fn status_text(status: &Status, folder: &Path, owned: bool) -> String {
    let processes =
        status.processes.iter().map(|(name, pid)| line(name, &format!("process {pid}")));
    let processes: String = processes.collect();
    let Some(state) = &status.state else {
        let word = if owned { "starting" } else { "not running" };
        return format!("{}: {word}\n{processes}", status.world);
    };
    let depth = |depth: Option<Depth>| match depth {
        Some(d) => {
            format!("{} visible, {} in flight, {} delayed", d.visible, d.in_flight, d.delayed)
        }
        None => "unknown: LocalStack does not answer".to_owned(),
    };
    let group = match &status.group {
        Some(group) => format!("{} wanted, {} there", group.desired, group.instances.len()),
        None => "unknown: moto does not answer".to_owned(),
    };
    [
        format!("{}: running, owned by process {}\n", status.world, state.owner.pid),
        processes,
        line("queue", &depth(status.queue)),
        line("dead letters", &depth(status.dead_letters)),
        line("group", &group),
        summary(state, folder),
    ]
    .concat()
}

fn line(what: &str, value: &str) -> String {
    format!("  {what:<28} {value}\n")
}

/// Where things are, for a person who has just started them.
pub(super) fn summary(state: &State, folder: &Path) -> String {
    let world = folder.file_name().unwrap_or_default().to_string_lossy();
    [
        line("bucket", &format!("s3://{}", state.data_plane.bucket)),
        line("LocalStack", &state.endpoints.localstack),
        line("moto", &state.endpoints.moto),
        line("database", &without_password(&state.environment["WEIRGATE_DATABASE"])),
        line("configuration", &state.config.display().to_string()),
        line("logs", &folder.join("logs").display().to_string()),
        line("variables", &format!("eval \"$(cargo local env --world {world})\"")),
    ]
    .concat()
}

/// `env` prints the whole, for programs.
fn without_password(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?))) {
        Some((scheme, (user, host))) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}")
        }
        None => url.to_owned(),
    }
}

pub(super) fn environment(state: &State, json: bool) -> Result<()> {
    let mut variables = state.environment.clone();
    for (name, value) in [
        ("BUCKET", &state.data_plane.bucket),
        ("TOPIC_ARN", &state.data_plane.topic_arn),
        ("QUEUE_URL", &state.data_plane.queue_url),
        ("DEAD_LETTER_QUEUE_URL", &state.data_plane.dead_letter_queue_url),
        ("GROUP", &state.group),
    ] {
        variables.insert(format!("WEIRGATE_LOCAL_{name}"), value.clone());
    }
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(&variables)?));
    } else {
        let lines =
            variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value)));
        print(&lines.collect::<String>());
    }
    Ok(())
}

/// For any POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_shell() {
        let value = "it's $HOME `x` \"y\"";
        let script = format!("printf %s {}", quoted(value));
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
    }

    #[test]
    fn a_summary_shows_no_password() {
        for (url, shown) in [
            ("postgres://weirgate:secret@127.0.0.1:1/w", "postgres://weirgate@127.0.0.1:1/w"),
            ("sqlite:///tmp/w.db", "sqlite:///tmp/w.db"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
