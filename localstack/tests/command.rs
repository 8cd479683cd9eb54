//! `up` and `down` as a person types them, and what is left after a death: nothing.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use weirgate_common::clock;
use weirgate_local::process::{Identity, PidFiles};

const WORLD: &str = "test-command";

fn local(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weirgate-local"));
    command.args(args).args(["--world", WORLD]).current_dir(checkout());
    command
}

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

fn ok(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = local(args).output().expect("it starts");
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(status.success(), "{args:?}: {status}\n{stdout}\n{stderr}");
    stdout
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("it prints UTF-8")
}

fn processes() -> Vec<(String, Identity)> {
    PidFiles::new(&checkout().join(".weirgate").join(WORLD)).running()
}

fn owner() -> Identity {
    let status: serde_json::Value =
        serde_json::from_str(&ok(&["status", "--json"])).expect("status prints JSON");
    serde_json::from_value(status["state"]["owner"].clone()).expect("a running world has an owner")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = clock::monotonic() + Duration::from_secs(60);
    while !holds() {
        assert!(clock::monotonic() < deadline, "not within 60 s: {what}; now {:?}", processes());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One test, since all of it is about one world.
#[test]
fn up_and_down_and_deaths_of_every_owner() {
    ok(&["reset"]);
    assert_eq!(local(&["status"]).output().expect("it starts").status.code(), Some(3));
    assert_eq!(local(&["env"]).output().expect("it starts").status.code(), Some(3));

    ok(&["up", "--bare"]);
    ok(&["up", "--bare"]);
    assert_eq!(local(&["up", "--postgres"]).output().expect("it starts").status.code(), Some(1));
    assert_eq!(processes().len(), 2);
    let environment = ok(&["env"]);
    assert!(environment.contains("export AWS_ENDPOINT_URL_SQS='http://127.0.0.1:"));

    // An emulator dies: the supervisor brings it back at the same address.
    let (_, moto) = processes().into_iter().find(|(name, _)| name == "moto").expect("moto runs");
    moto.signal(Signal::KILL);
    until("moto is back", || {
        processes().iter().any(|(name, now)| name == "moto" && *now != moto)
            && ok(&["status"]).contains("0 wanted")
    });
    assert_eq!(ok(&["env"]), environment);

    ok(&["down"]);
    assert_eq!(processes(), []);

    // The supervisor is killed: the kernel ends its children.
    ok(&["up", "--bare"]);
    owner().signal(Signal::KILL);
    until("nothing is left of a killed supervisor", || processes().is_empty());
    ok(&["down"]);

    // The starter is killed half way: its supervisor ends by itself.
    let mut up = local(&["up", "--bare"]).stderr(Stdio::null()).spawn().expect("it starts");
    until("something has started", || !processes().is_empty());
    up.kill().expect("it is ours");
    up.wait().expect("it is ours");
    until("nothing is left of a killed starter", || {
        processes().is_empty() && ok_down_finds_nothing()
    });
    ok(&["reset"]);
}

fn ok_down_finds_nothing() -> bool {
    let output = local(&["down"]).output().expect("it starts");
    output.status.success() && text(output.stderr).contains("nothing was running")
}
