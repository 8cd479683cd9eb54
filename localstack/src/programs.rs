//! The programs of the fleet as child processes: the one place where a program becomes a command.
//!
//! `weirgate-local` is all of them in one (`weirgate-local run importer …`), so that one build is
//! enough to run the whole system.

#![allow(clippy::print_stderr, reason = "a wrong program name is told to a person")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

/// The subcommand under which a program of the fleet is reached.
pub const RUN: &str = "run";

/// A program and its arguments, apart from where and with what environment it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Shown in logs and by `ps`.
    pub name: String,
    pub path: PathBuf,
    pub args: Vec<OsString>,
}

impl Program {
    /// `importer`, `scaler` or `weirgate`, from this very executable.
    pub fn of_fleet(name: &str) -> Result<Self> {
        let path = std::env::current_exe().context("find this program's own file")?;
        Ok(Self::in_executable(path, name))
    }

    /// From another executable that passes [`RUN`] on to this library, such as a test's.
    pub fn in_executable(path: PathBuf, name: &str) -> Self {
        Self { name: name.to_owned(), path, args: vec![RUN.into(), name.into()] }
    }

    /// An importer, which takes the fleet from its configuration.
    pub fn importer() -> Result<Self> {
        Self::of_fleet("importer")
    }

    /// The scaler as a service.
    pub fn scaler() -> Result<Self> {
        Ok(Self::of_fleet("scaler")?.arg("run"))
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn command(&self, environment: &BTreeMap<String, String>) -> Command {
        let mut command = Command::new(&self.path);
        command.arg0(&self.name).args(&self.args);
        forget_aws(&mut command);
        command.envs(environment);
        command
    }
}

/// Becomes the program named first; the rest are its arguments.
pub fn dispatch(program: Vec<OsString>) -> ExitCode {
    let name = program.first().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    match name.as_str() {
        "importer" => weirgate_importer::cli::run(program.into_iter()),
        "weirgate" => weirgate_operator::cli::run(program.into_iter()),
        "scaler" => weirgate_scaler::cli::run(program.into_iter()),
        _ => {
            eprintln!("error: there is no program {name:?}; try importer, scaler or weirgate");
            ExitCode::from(2)
        }
    }
}

/// Removes what the caller's environment says about the real AWS: no emulated program may ever
/// reach it by accident.
pub fn forget_aws(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(|name| name.starts_with("AWS_")) {
            command.env_remove(variable);
        }
    }
}
