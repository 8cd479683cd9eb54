//! `weirgate-programs run importer|scaler|weirgate …`

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    weirgate_local::programs::dispatch(arguments)
}
