//! Stories as text. Each file in `scenarios/` sets a scene line by line; the lines beginning
//! with `→` are what the policy said, and the test compares them. With `WEIRGATE_BLESS=1` it
//! writes them instead.
//!
//! ```text
//! queue VISIBLE/IN_FLIGHT/DELAYED | queue unknown
//! group desired=N min=N max=N suspended=PROCESS | group unknown     (what is not named stays)
//! instance ID in_service | pending | leaving | protected | gone
//! worker ID busy=N rate=PER_MINUTE oldest=SECONDS waiting=1 | worker ID silent | workers unknown | workers known
//! dead_letters N     in the last five minutes
//! cloudwatch SECONDS | cloudwatch none     age of the oldest message, as of now
//! launches fail REASON | launches work
//! for SECONDS        observe and plan every period; print the first plan and each that differs
//! plan               print the whole report of a plan made now
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use weirgate_common::clock::Timestamp;
use weirgate_common::ledger::{WorkerReport, WorkerState};
use weirgate_common::queue::Depth;
use weirgate_scaler::cloudwatch::Aged;
use weirgate_scaler::group::{GroupState, Instance, InstanceId, Life};
use weirgate_scaler::history::History;
use weirgate_scaler::observe::{Observation, Reading};
use weirgate_scaler::policy::{Objective, plan};

pub(crate) fn objective() -> Objective {
    Objective {
        freshness: Duration::from_secs(300),
        instances_min: 0,
        instances_max: 10,
        slots: 4,
        period: Duration::from_secs(10),
        settle: Duration::from_secs(75),
    }
}

struct Worker {
    busy: u64,
    /// Messages settled per minute.
    rate: u64,
    /// Sixtieths of a message.
    settled: u64,
    oldest_s: u64,
    waiting: bool,
    started_at: Timestamp,
}

struct Scene {
    objective: Objective,
    history: History,
    now: Timestamp,
    depth: Option<Depth>,
    group: GroupState,
    group_known: bool,
    workers: BTreeMap<String, Worker>,
    workers_known: bool,
    dead_letters: u64,
    oldest: Option<Aged>,
    said: String,
}

impl Scene {
    fn new() -> Self {
        Scene {
            objective: objective(),
            history: History::default(),
            now: Timestamp::from_unix_ms(0),
            depth: Some(Depth { visible: 0, in_flight: 0, delayed: 0 }),
            group: GroupState {
                desired: 0,
                min: 0,
                max: 20,
                instances: Vec::new(),
                suspended: [].into(),
                launch_failure: None,
            },
            group_known: true,
            workers: BTreeMap::new(),
            workers_known: true,
            dead_letters: 0,
            oldest: None,
            said: String::new(),
        }
    }

    fn observation(&self) -> Observation {
        let unknown = || "away".to_owned();
        let reports = self.workers.iter().map(|(id, worker)| WorkerReport {
            worker: id.clone(),
            fleet: "ads".into(),
            state: if worker.waiting { WorkerState::Waiting } else { WorkerState::Running },
            slots: self.objective.slots,
            busy: worker.busy,
            done: worker.settled / 60,
            service_ms: 0,
            oldest_message_at: (worker.busy > 0)
                .then(|| self.now.before(Duration::from_secs(worker.oldest_s))),
            started_at: worker.started_at,
            reported_at: self.now,
        });
        Observation {
            at: self.now,
            depth: self.depth.map_or_else(|| Reading::Unknown(unknown()), Reading::Known),
            group: match self.group_known {
                true => Reading::Known(self.group.clone()),
                false => Reading::Unknown(unknown()),
            },
            workers: match self.workers_known {
                true => Reading::Known(reports.collect()),
                false => Reading::Unknown(unknown()),
            },
            oldest: Reading::Known(self.oldest),
            dead_letters: Reading::Known(self.dead_letters),
        }
    }

    fn run(&mut self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap();
        let words: Vec<&str> = words.collect();
        match (command, words.as_slice()) {
            ("queue", ["unknown"]) => self.depth = None,
            ("launches", ["work"]) => self.group.launch_failure = None,
            ("launches", ["fail", why @ ..]) => self.group.launch_failure = Some(why.join(" ")),
            ("cloudwatch", ["none"]) => self.oldest = None,
            ("cloudwatch", [seconds]) => {
                let age = Duration::from_secs(seconds.parse().unwrap());
                self.oldest = Some(Aged { at: self.now, age });
            }
            ("queue", [counts]) => {
                let counts: Vec<u64> = counts.split('/').map(|n| n.parse().unwrap()).collect();
                let [visible, in_flight, delayed] = counts[..] else { panic!("{line}") };
                self.depth = Some(Depth { visible, in_flight, delayed });
            }
            ("group", ["unknown"]) => self.group_known = false,
            ("group", settings) => {
                self.group_known = true;
                for setting in settings {
                    match setting.split_once('=').unwrap() {
                        ("desired", n) => self.group.desired = n.parse().unwrap(),
                        ("min", n) => self.group.min = n.parse().unwrap(),
                        ("max", n) => self.group.max = n.parse().unwrap(),
                        ("suspended", "") => self.group.suspended.clear(),
                        ("suspended", process) => {
                            self.group.suspended.insert(process.to_owned());
                        }
                        _ => panic!("{line}"),
                    }
                }
            }
            ("instance", [id, state]) => {
                self.group.instances.retain(|instance| instance.id.0 != *id);
                let life = match *state {
                    "gone" => return String::new(),
                    "in_service" | "protected" => Life::InService,
                    "pending" => Life::Pending,
                    "leaving" => Life::Leaving,
                    _ => panic!("{line}"),
                };
                let (id, protected) = (InstanceId((*id).to_owned()), *state == "protected");
                self.group.instances.push(Instance { id, life, protected });
                self.group.instances.sort_by(|a, b| a.id.cmp(&b.id));
            }
            ("workers", [state]) => self.workers_known = *state == "known",
            ("worker", [id, "silent"]) => {
                self.workers.remove(*id);
            }
            ("worker", [id, settings @ ..]) => {
                let started_at = self.now;
                let worker = self.workers.entry((*id).to_owned()).or_insert(Worker {
                    busy: 0,
                    rate: 0,
                    settled: 0,
                    oldest_s: 0,
                    waiting: false,
                    started_at,
                });
                for setting in settings {
                    let (name, n) = setting.split_once('=').unwrap();
                    let n = n.parse().unwrap();
                    match name {
                        "busy" => worker.busy = n,
                        "rate" => worker.rate = n,
                        "oldest" => worker.oldest_s = n,
                        "waiting" => worker.waiting = n > 0,
                        _ => panic!("{line}"),
                    }
                }
            }
            ("dead_letters", [count]) => self.dead_letters = count.parse().unwrap(),
            ("for", [seconds]) => return self.watch(seconds.parse().unwrap()),
            ("plan", []) => {
                let observation = self.observation();
                let plan = plan(&self.objective, &self.history, &observation, self.now);
                return plan.report.to_string().lines().map(|l| format!("→ {l}\n")).collect();
            }
            _ => panic!("not a line of a scenario: {line}"),
        }
        String::new()
    }

    fn watch(&mut self, seconds: u64) -> String {
        let end = self.now.after(Duration::from_secs(seconds));
        let mut said = String::new();
        while self.now < end {
            let observation = self.observation();
            self.history.learn(&observation);
            let plan = plan(&self.objective, &self.history, &observation, self.now);
            self.history.note_wanted(self.now, plan.report.wanted);
            let headline = plan.report.headline();
            if headline != self.said {
                writeln!(said, "→ {:>4} s  {headline}", self.now.unix_ms() / 1000).unwrap();
                self.said = headline;
            }
            self.now = self.now.after(self.objective.period);
            for worker in self.workers.values_mut() {
                worker.settled += worker.rate * self.objective.period.as_secs();
            }
        }
        said
    }
}

#[test]
fn the_policy_tells_the_stories_as_they_are_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scenarios");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut differing = Vec::new();
    for path in paths {
        let written = std::fs::read_to_string(&path).unwrap();
        let mut scene = Scene::new();
        let mut told = String::new();
        for line in written.lines().filter(|line| !line.starts_with('→')) {
            told.push_str(line);
            told.push('\n');
            if !line.trim().is_empty() && !line.starts_with('#') {
                told.push_str(&scene.run(line));
            }
        }
        if told != written {
            if std::env::var_os("WEIRGATE_BLESS").is_some() {
                std::fs::write(&path, told).unwrap();
            } else {
                differing.push(format!("{} reads now:\n{told}", path.display()));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
