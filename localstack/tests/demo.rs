//! The demo as a person runs it, small: under fire, interrupted, and kept.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use weirgate_common::clock;
use weirgate_local::process::PidFiles;

fn local(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weirgate-local"));
    command.args(args).current_dir(checkout());
    command
}

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

fn running(world: &str) -> usize {
    PidFiles::new(&checkout().join(".weirgate").join(world)).running().len()
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn the_proof_holds_whatever_is_killed() {
    let world = "test-demo-chaos";
    let args =
        ["demo", "--world", world, "--postgres", "--chaos", "--objects", "60", "--rows", "40"];
    let output = local(&args).output().expect("it starts");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("everything holds") && said.contains("corrupt_object"), "{said}");
    assert!(said.contains("kill -9"), "{said}");
    assert_eq!(running(world), 0);
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let world = "test-demo-interrupt";
    let mut command = local(&["demo", "--world", world]);
    let demo = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    until("scaler and emulators run", || running(world) >= 3);
    let pid = Pid::from_child(&demo);
    kill_process(pid, Signal::INT).expect("it is ours");
    let output = demo.wait_with_output().expect("it is ours");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    until("nothing runs", || running(world) == 0);
}

#[test]
fn a_kept_demo_runs_on_and_can_be_looked_at() {
    let world = "test-demo-keep";
    let args = ["demo", "--world", world, "--keep", "--objects", "10", "--rows", "20"];
    // Waits for the end of the output, too: the supervisor must have let go of it.
    let output = local(&args).output().expect("it starts");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("keeps running"), "{said}");
    assert!(running(world) >= 3);
    let status = local(&["status", "--world", world]).output().expect("it starts");
    assert!(text(&status).contains("1 visible"), "the dead letter: {}", text(&status));
    assert!(local(&["reset", "--world", world]).output().expect("it starts").status.success());
    assert_eq!(running(world), 0);
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = clock::monotonic() + Duration::from_secs(120);
    while !holds() {
        assert!(clock::monotonic() < deadline, "not within 120 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
