//! A queue and a group held in memory, which can be told to fail.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use weirgate_common::clock::Timestamp;
use weirgate_common::queue::{Depth, QueueError};
use weirgate_scaler::cloudwatch::{Aged, Monitor, MonitorError, Series};
use weirgate_scaler::group::{Group, GroupError, GroupState, Instance, InstanceId, Life};
use weirgate_scaler::observe::Gauge;

/// Shared by the clones given to several scalers.
#[derive(Clone, Debug)]
pub(crate) struct World(Arc<Mutex<State>>);

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) group: GroupState,
    pub(crate) depth: Depth,
    /// Every write that took effect, in order.
    pub(crate) writes: Vec<String>,
    pub(crate) away: bool,
    pub(crate) published: Vec<Series>,
    /// An instance refresh is under way.
    pub(crate) refreshing: bool,
    /// The next write answers this code.
    pub(crate) busy_once: bool,
    launched: u32,
}

impl World {
    pub(crate) fn new(desired: u32, min: u32, max: u32) -> Self {
        let world = World(Arc::new(Mutex::new(State {
            group: GroupState {
                desired: 0,
                min,
                max,
                instances: Vec::new(),
                suspended: BTreeSet::new(),
                launch_failure: None,
            },
            depth: Depth { visible: 0, in_flight: 0, delayed: 0 },
            writes: Vec::new(),
            away: false,
            published: Vec::new(),
            refreshing: false,
            busy_once: false,
            launched: 0,
        })));
        world.lock().launch(desired);
        world
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn desired(&self) -> u32 {
        self.lock().group.desired
    }
}

impl State {
    /// Instances are in service at once, as in the emulator.
    fn launch(&mut self, desired: u32) {
        self.group.desired = desired;
        while self.group.count(Life::InService) < desired {
            self.launched += 1;
            self.group.instances.push(Instance {
                id: InstanceId(format!("i-{}", self.launched)),
                life: Life::InService,
                protected: false,
            });
        }
    }

    fn answer(&mut self, call: &'static str) -> Result<(), GroupError> {
        if self.away {
            return Err(GroupError::Away { call, detail: "connection refused".into() });
        }
        if std::mem::take(&mut self.busy_once) {
            return Err(GroupError::Busy { call, detail: "ScalingActivityInProgress".into() });
        }
        Ok(())
    }
}

impl Group for World {
    async fn describe(&self) -> Result<GroupState, GroupError> {
        let state = self.lock();
        if state.away {
            let call = "DescribeAutoScalingGroups";
            return Err(GroupError::Away { call, detail: "connection refused".into() });
        }
        Ok(state.group.clone())
    }

    async fn set_desired(&self, desired: u32) -> Result<(), GroupError> {
        let mut state = self.lock();
        state.answer("SetDesiredCapacity")?;
        if !(state.group.min..=state.group.max).contains(&desired) {
            let (call, detail) = ("SetDesiredCapacity", "ValidationError".into());
            return Err(GroupError::Refused { call, detail });
        }
        state.launch(desired);
        state.writes.push(format!("set {desired}"));
        Ok(())
    }

    async fn terminate(&self, instance: &InstanceId) -> Result<(), GroupError> {
        let mut state = self.lock();
        state.answer("TerminateInstanceInAutoScalingGroup")?;
        let present = state.group.instances.iter().any(|i| i.id == *instance);
        if state.group.desired <= state.group.min || !present {
            let (call, detail) = ("TerminateInstanceInAutoScalingGroup", "ValidationError".into());
            return Err(GroupError::Refused { call, detail });
        }
        state.group.instances.retain(|i| i.id != *instance);
        state.group.desired -= 1;
        state.writes.push(format!("terminate {instance}"));
        Ok(())
    }

    async fn refreshing(&self) -> Result<bool, GroupError> {
        let state = self.lock();
        Ok(state.refreshing)
    }

    async fn latest_cause(&self) -> Result<Option<String>, GroupError> {
        Ok(Some("a user request changed the desired capacity".to_owned()))
    }
}

impl Monitor for World {
    async fn oldest(&self, _: Timestamp) -> Result<Option<Aged>, MonitorError> {
        Ok(None)
    }

    async fn publish(&self, _: Timestamp, series: &[Series]) -> Result<(), MonitorError> {
        self.lock().published.extend(series);
        Ok(())
    }
}

impl Gauge for World {
    async fn depth(&self) -> Result<Depth, QueueError> {
        let state = self.lock();
        if state.away {
            return Err(QueueError::Call {
                url: "http://queue".into(),
                call: "GetQueueAttributes",
                code: None,
                detail: "connection refused".into(),
            });
        }
        Ok(state.depth)
    }
}
