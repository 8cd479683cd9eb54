//! The program itself: help, exit codes, and what it says to wrong input.

use std::process::{Command, Output};

fn scaler(arguments: &[&str], folder: &std::path::Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scaler"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        // Nothing listens there: what would be asked is away.
        .envs([
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ])
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const CONFIG: &str = r#"
database = "sqlite://weirgate.db"
[fleet.ads]
queue = "http://127.0.0.1:9/000000000000/ads"
auto_scaling_group = "ads-importers"
[fleet.fixed]
queue = "http://127.0.0.1:9/000000000000/fixed"
[feed.impressions]
fleet = "ads"
objects = "s3://ads/**.avro"
table = "impressions"
"#;

#[test]
fn wrong_usage_and_configuration_exit_with_2_and_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("weirgate.toml"), CONFIG).unwrap();
    std::fs::write(folder.path().join("bad.toml"), CONFIG.replace("queue", "quue")).unwrap();
    for (arguments, says) in [
        (&["rnu"][..], "unrecognized subcommand"),
        (&["run", "--config", "absent.toml"], "cannot read absent.toml"),
        (&["run", "--config", "bad.toml"], "did you mean `queue`?"),
        (&["run", "--fleet", "adz"], "no fleet `adz` in the configuration; it has: ads, fixed"),
        (&["plan", "--fleet", "fixed"], "fleet `fixed` has no auto_scaling_group"),
    ] {
        let output = scaler(arguments, folder.path());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    let help = scaler(&["--help"], folder.path());
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Exit codes: 0 success"), "{}", text(&help.stdout));
}

#[test]
fn a_plan_from_a_world_that_is_away_holds_and_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("weirgate.toml"), CONFIG).unwrap();
    let output = scaler(&["plan", "--json"], folder.path());
    let (plan, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(plan.contains(r#""step":{"hold":"group_unknown"}"#), "{plan}{said}");
    assert!(plan.contains("queue: "), "{plan}");
}

#[test]
fn a_simulation_prints_the_same_table_twice_and_names_what_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let asked = ["simulate", "--workload", "steady", "--policy", "weirgate,keda@4", "--seeds", "1"];
    let (once, again) = (scaler(&asked, folder.path()), scaler(&asked, folder.path()));
    assert_eq!(once.status.code(), Some(0), "{}", text(&once.stderr));
    assert_eq!(once.stdout, again.stdout);
    assert!(text(&once.stdout).contains("\nkeda@4 "), "{}", text(&once.stdout));

    let drawn = [&asked[..], &["--svg", "plots"]].concat();
    assert_eq!(scaler(&drawn, folder.path()).status.code(), Some(0));
    for file in ["steady.svg", "steady-pareto.svg"] {
        let svg = std::fs::read_to_string(folder.path().join("plots").join(file)).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
        assert!(svg.contains("keda@4"), "{file}");
    }

    let output = scaler(&["simulate", "--policy", "kedda"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no policy `kedda`; there are: weirgate, static-peak"));
}
