//! The launcher against an emulated group, with shell scripts for importers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Pid, Signal};
use weirgate_common::clock;
use weirgate_local::launcher::{Instance, Launcher, Limits, Phase};
use weirgate_local::programs::Program;
use weirgate_local::progress::Progress;
use weirgate_local::world::{Options, World};

#[tokio::test]
async fn instances_are_processes() -> Result<()> {
    let world = World::start(Options::new("test-launcher")).await?;
    // It drains when told so, unless the instance's file says that it is deaf.
    let script = r#"
        echo "boot $WEIRGATE_INSTANCE_ID $AWS_ENDPOINT_URL_SQS"
        trap 'test -e deaf || { echo drained; exit 0; }' TERM
        while :; do sleep 0.1; done"#;
    let program = Program {
        name: "importer".to_owned(),
        path: PathBuf::from("sh"),
        args: vec!["-c".into(), script.replace("deaf", &deaf(&world)).into()],
    };
    let limits = Limits {
        restart_first: Duration::from_millis(100),
        ..Limits::new(Duration::from_millis(300), Duration::from_secs(1))
    };
    let launcher = Launcher::start(&world, &world.fleet, program, limits, Progress::Quiet);

    set_desired(&world, 2).await?;
    until(&launcher, "two run", |all| all.len() == 2 && all.iter().all(runs)).await;
    let before = launcher.instances();
    let (id, victim) = before.iter().next().expect("two run");
    wait_for_log(&world, id, &format!("boot {id} {}", world.endpoints.localstack)).await;

    kill(victim, Signal::KILL);
    until(&launcher, "another process on the same instance", |_| {
        launcher.instances().get(id).is_some_and(|now| runs(now) && now.pid != victim.pid)
    })
    .await;

    // moto loses the group for a while: unknown is not empty, but a group deployed anew is.
    let mut world = world;
    world.moto.kill().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(launcher.instances().len(), 2);
    world.tend().await?;
    until(&launcher, "all drained", <[Instance]>::is_empty).await;
    wait_for_log(&world, id, "drained").await;

    set_desired(&world, 1).await?;
    until(&launcher, "one runs", |all| all.len() == 1 && all.iter().all(runs)).await;
    let deaf_one = launcher.instances().keys().next().expect("one runs").clone();
    wait_for_log(&world, &deaf_one, "boot").await;
    std::fs::write(deaf(&world), "")?;
    set_desired(&world, 0).await?;
    let started = clock::monotonic();
    until(&launcher, "killed", <[Instance]>::is_empty).await;
    assert!(clock::monotonic() - started >= Duration::from_secs(1), "the grace was cut short");

    launcher.stop().await;
    world.stop().await;
    Ok(())
}

fn deaf(world: &World) -> String {
    world.folder.join("deaf").display().to_string()
}

fn runs(instance: &Instance) -> bool {
    matches!(instance.phase, Phase::Running { .. }) && instance.pid.is_some()
}

fn kill(instance: &Instance, signal: Signal) {
    let pid = instance.pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    rustix::process::kill_process(pid.expect("it runs"), signal).expect("it is ours");
}

async fn set_desired(world: &World, desired: i32) -> Result<()> {
    let call = world.clients.auto_scaling.set_desired_capacity();
    call.auto_scaling_group_name(&world.fleet.group).desired_capacity(desired).send().await?;
    Ok(())
}

async fn until(launcher: &Launcher, what: &str, holds: impl Fn(&[Instance]) -> bool) {
    let deadline = clock::monotonic() + Duration::from_secs(20);
    loop {
        let all: Vec<Instance> = launcher.instances().into_values().collect();
        if holds(&all) {
            return;
        }
        assert!(clock::monotonic() < deadline, "not within 20 s: {what}; now {all:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_for_log(world: &World, id: &str, text: &str) {
    let path = world.logs().join(format!("importer-{id}.log"));
    let deadline = clock::monotonic() + Duration::from_secs(10);
    loop {
        let log = std::fs::read_to_string(&path).unwrap_or_default();
        if log.contains(text) {
            return;
        }
        assert!(clock::monotonic() < deadline, "no {text:?} in {}: {log}", path.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
