//! What one importer process was told and what it asked for, and whether the two go together.
//! It hears the truth: a defect planted between the protocol and the world does not deceive it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weirgate_common::fault::{Dependency, Fault};
use weirgate_common::queue::{BATCH_MAX, LEASE_TOTAL_MAX};
use weirgate_importer::failure::Failure;
use weirgate_importer::protocol::{
    DeliveryId, Effect, Extension, Grouping, ImportId, Input, Limits, Load, Moment, Outcome,
    Protocol, TaskId,
};

use super::scenario::SMALL;

/// What a drain may take beyond its grace.
const STOP_AFTER: Duration = Duration::from_secs(5);

/// While a slot is free, a small object waits no longer than this for its first try, however
/// long a giant takes beside it.
const FIRST_TRY_WITHIN: Duration = Duration::from_secs(600);

/// Failed deletes after which redelivery may settle a message instead.
const DELETES_MAX: u32 = 5;

pub(crate) struct Watch {
    limits: Limits,
    deliveries: BTreeMap<DeliveryId, Known>,
    running: BTreeMap<ImportId, Vec<TaskId>>,
    away: BTreeSet<Dependency>,
    /// When something last stood in the way of all work.
    hindered_at: Moment,
    suspended_at: Moment,
    /// Receives that have not returned, and whether the last that did was full.
    receives: usize,
    full: bool,
    drain: Option<Moment>,
    pub(crate) stopped: bool,
}

struct Known {
    received_at: Moment,
    receive_count: u32,
    loads: Vec<Load>,
    strange: bool,
    tasks: Vec<Told>,
    extending: bool,
    extend_asked_at: Moment,
    lost: bool,
    /// The lease may run out without anybody's fault.
    excused: bool,
    dead_lettered: bool,
    delete_asked: bool,
    deletes_failed: u32,
    deleted: bool,
    release_asked: bool,
    released: bool,
}

/// What came of an event so far.
#[derive(Clone, Default)]
struct Told {
    /// How many may be imported together with it, itself included.
    company: usize,
    tried: bool,
    answered: bool,
    settled: bool,
    permanent: bool,
    transient: u32,
}

impl Known {
    /// SQS said so, or its 12 hours are over.
    fn is_lost(&self, now: Moment) -> bool {
        self.lost || now + Duration::from_secs(2) > self.received_at + LEASE_TOTAL_MAX
    }
}

impl Watch {
    pub(crate) fn new(limits: Limits) -> Self {
        Watch {
            limits,
            deliveries: BTreeMap::new(),
            running: BTreeMap::new(),
            away: BTreeSet::new(),
            hindered_at: Moment::ZERO,
            suspended_at: Moment::ZERO,
            receives: 0,
            full: false,
            drain: None,
            stopped: false,
        }
    }

    /// Whether the process works on this delivery and should have kept its lease.
    pub(crate) fn must_hold(&self, id: DeliveryId) -> bool {
        self.deliveries.get(&id).is_some_and(|known| {
            !(known.excused || known.lost || known.delete_asked || known.release_asked)
        })
    }

    /// SQS delivered the message once more though the lease holds.
    pub(crate) fn excuse(&mut self, id: DeliveryId) {
        if let Some(known) = self.deliveries.get_mut(&id) {
            known.excused = true;
        }
    }

    /// The machine stood still: nobody can have kept a lease.
    pub(crate) fn suspended(&mut self, now: Moment) {
        self.hindered_at = now;
        self.suspended_at = now;
        for known in self.deliveries.values_mut() {
            known.excused = true;
        }
    }

    pub(crate) fn told(&mut self, now: Moment, input: &Input) {
        if !self.away.is_empty() || self.running.len() >= self.limits.slots {
            self.hindered_at = now;
        }
        match input {
            Input::Wake => {}
            Input::Received(arrivals) => {
                self.receives -= 1;
                self.full = arrivals.len() == BATCH_MAX;
                let company = self.limits.grouping.objects_max;
                let fresh = Told { company, ..Told::default() };
                for arrival in arrivals {
                    let known = Known {
                        received_at: now,
                        receive_count: arrival.receive_count,
                        loads: arrival.loads.clone(),
                        strange: arrival.failure.is_some(),
                        tasks: vec![fresh.clone(); arrival.loads.len()],
                        extending: false,
                        extend_asked_at: now,
                        lost: false,
                        // Messages that waited for a suspended process may be lost already.
                        excused: now <= self.suspended_at,
                        dead_lettered: false,
                        delete_asked: false,
                        deletes_failed: 0,
                        deleted: false,
                        release_asked: false,
                        released: false,
                    };
                    self.deliveries.insert(arrival.delivery, known);
                }
            }
            Input::ReceiveFailed => {
                self.receives -= 1;
                self.full = false;
                self.away.insert(Dependency::Queue);
            }
            Input::Imported(import, outcomes) => self.imported(*import, outcomes),
            Input::DeadLettered(id, sent) => {
                if let Some(known) = self.deliveries.get_mut(id) {
                    known.dead_lettered |= sent;
                }
            }
            Input::Deleted(results) => {
                for (id, deleted) in results {
                    let Some(known) = self.deliveries.get_mut(id) else { continue };
                    known.deleted |= deleted;
                    known.deletes_failed += u32::from(!deleted);
                }
            }
            Input::Extended(results) => {
                for (id, extension) in results {
                    let Some(known) = self.deliveries.get_mut(id) else { continue };
                    known.extending = false;
                    // What was granted before a suspension may be over by now.
                    let holds = known.extend_asked_at > self.suspended_at;
                    // Near its 12 hours nobody can keep it.
                    let ends = now + self.limits.lease * 2 > known.received_at + LEASE_TOTAL_MAX;
                    known.excused = *extension != Extension::Granted || !holds || ends;
                    known.lost |= *extension == Extension::Lost;
                }
            }
            Input::Released(ids) => {
                for id in ids {
                    if let Some(known) = self.deliveries.get_mut(id) {
                        known.released = true;
                    }
                }
            }
            Input::Probed(dependency, ok) => {
                if *ok {
                    self.away.remove(dependency);
                }
            }
            Input::Drain(deadline) => self.drain = Some(self.drain.unwrap_or(*deadline)),
        }
    }

    fn imported(&mut self, import: ImportId, outcomes: &[(TaskId, Outcome)]) {
        let tasks = self.running.remove(&import).map_or(0, |tasks| tasks.len());
        for (task, outcome) in outcomes {
            if let Outcome::Failed(failure) | Outcome::FailedTogether(failure) = outcome
                && let Fault::Outage(dependency) = failure.fault
            {
                self.away.insert(dependency);
            }
            let Some(known) = self.deliveries.get_mut(&task.delivery) else { continue };
            let told = &mut known.tasks[task.index];
            told.answered = true;
            match outcome {
                Outcome::Settled => told.settled = true,
                Outcome::Apart => told.company = 1,
                Outcome::FailedTogether(_) if tasks > 1 => told.company = tasks.div_ceil(2),
                Outcome::Failed(failure) | Outcome::FailedTogether(failure) => {
                    match failure.fault {
                        Fault::Permanent => told.permanent = true,
                        Fault::Transient => told.transient += 1,
                        Fault::Busy | Fault::Outage(_) => {}
                    }
                }
            }
        }
    }

    /// Judges one effect; `Err` says which rule it breaks.
    pub(crate) fn asked(&mut self, now: Moment, effect: &Effect) -> Result<(), String> {
        match effect {
            Effect::Receive { count } => self.receive(*count),
            Effect::Import(import, tasks) => self.import(*import, tasks),
            Effect::DeadLetter { delivery, event, failure, .. } => {
                self.dead_letter(*delivery, *event, failure)
            }
            Effect::Extend(batch) => {
                check_batch(batch.iter().map(|(id, _)| *id))?;
                batch.iter().try_for_each(|(id, span)| self.extend(now, *id, *span))
            }
            Effect::Delete(batch) => {
                check_batch(batch.iter().copied())?;
                batch.iter().try_for_each(|id| self.delete(*id))
            }
            Effect::Release(batch) => {
                check_batch(batch.iter().map(|(id, _)| *id))?;
                batch.iter().try_for_each(|(id, delay)| self.release(*id, *delay))
            }
            Effect::Probe(dependency) => match self.away.contains(dependency) {
                true => Ok(()),
                false => Err(format!("asks whether {dependency} is back, which is not away")),
            },
            Effect::Forget(id) => self.forget(now, *id),
            Effect::Stop => self.stop(now),
        }
    }

    /// Judges the state after a step.
    pub(crate) fn settled_down(&self, now: Moment, protocol: &Protocol) -> Result<(), String> {
        if protocol.held() != self.deliveries.len() {
            return Err(format!(
                "holds {} deliveries, but has {} at hand",
                protocol.held(),
                self.deliveries.len()
            ));
        }
        if self.drain.is_some_and(|deadline| now >= deadline + STOP_AFTER) && !self.stopped {
            return Err("drains beyond its grace".into());
        }
        let late = |known: &Known| {
            let since = known.received_at.max(self.hindered_at);
            let mut tasks = known.tasks.iter().zip(&known.loads);
            now > since + FIRST_TRY_WITHIN
                // One whose lease was lost is the queue's again; what still runs of it keeps it here.
                && !known.is_lost(now)
                && tasks.any(|(told, load)| load.cost == SMALL && !told.tried)
        };
        if self.away.is_empty() && self.deliveries.values().any(late) {
            return Err("a small object starves".into());
        }
        let idle = self.running.is_empty() && self.away.is_empty() && self.drain.is_none();
        let lonely = |known: &Known| {
            let waited = now >= known.received_at + self.limits.grouping.linger;
            waited && !known.is_lost(now) && known.tasks.iter().any(|told| !told.tried)
        };
        match idle && self.deliveries.values().any(lonely) {
            true => Err("an object waits for company though nothing runs".into()),
            false => Ok(()),
        }
    }

    fn known(&mut self, id: DeliveryId) -> Result<&mut Known, String> {
        self.deliveries.get_mut(&id).ok_or_else(|| format!("{id:?} is not held"))
    }

    fn receive(&mut self, count: usize) -> Result<(), String> {
        let receives_max = if self.full { 4 } else { 1 };
        if self.receives >= receives_max || self.drain.is_some() {
            return Err("receives while it receives or drains".into());
        }
        if !self.away.is_empty() {
            return Err("an outage burns receives".into());
        }
        if !(1..=BATCH_MAX).contains(&count) {
            return Err(format!("asks for {count} messages"));
        }
        // A group of small ones counts as one.
        let Grouping { objects_max, bytes_max, .. } = self.limits.grouping;
        let unsettled = self.deliveries.values();
        let unsettled = unsettled.filter(|known| !known.delete_asked && !known.release_asked);
        let small = |known: &&Known| known.loads.iter().all(|load| load.cost <= bytes_max / 4);
        let (small, others): (Vec<_>, Vec<_>) = unsettled.partition(small);
        let held = others.len() + small.len().div_ceil(objects_max);
        if held > 2 * self.limits.slots + BATCH_MAX {
            return Err(format!("asks for {count} more while it holds {held}"));
        }
        self.receives += 1;
        Ok(())
    }

    fn import(&mut self, import: ImportId, tasks: &[TaskId]) -> Result<(), String> {
        if !self.away.is_empty() {
            return Err("starts an import during an outage".into());
        }
        let runs = |task: &TaskId| self.running.values().flatten().any(|running| running == task);
        if tasks.iter().any(runs) {
            return Err("starts an import that runs".into());
        }
        if self.running.insert(import, tasks.to_vec()).is_some() {
            return Err("uses the number of an import that runs".into());
        }
        if self.running.len() > self.limits.slots {
            return Err(format!("runs {} imports", self.running.len()));
        }
        for task in tasks {
            let known = self.known(task.delivery)?;
            if known.delete_asked || known.release_asked {
                return Err("starts an import of a message it gave away".into());
            }
            if known.lost {
                return Err("starts an import of a message that somebody else has".into());
            }
            let told = known.tasks.get_mut(task.index).ok_or("imports what was never received")?;
            if told.settled || told.permanent {
                return Err("starts an import that has come to its end".into());
            }
            told.tried = true;
        }
        self.check_group(tasks)?;
        self.check_memory()
    }

    fn check_group(&self, tasks: &[TaskId]) -> Result<(), String> {
        let of = |task: &TaskId| {
            let known = &self.deliveries[&task.delivery];
            (known.loads[task.index], known.tasks[task.index].company)
        };
        let members: Vec<(Load, usize)> = tasks.iter().map(of).collect();
        let Some((first, company)) = members.first() else {
            return Err("starts an import of nothing".into());
        };
        if members.iter().any(|(load, _)| load.feed != first.feed) {
            return Err("imports objects of different feeds together".into());
        }
        if members.len() > *company {
            return Err("imports too many objects together".into());
        }
        if members.iter().any(|(_, other)| other != company) {
            return Err("imports suspects together with others".into());
        }
        let bytes: u64 = members.iter().map(|(load, _)| load.cost).sum();
        match members.len() > 1 && bytes > self.limits.grouping.bytes_max {
            true => Err(format!("imports {bytes} bytes together")),
            false => Ok(()),
        }
    }

    /// What is too large counts as three quarters of the budget, so that small ones run as well.
    fn check_memory(&self) -> Result<(), String> {
        let cap = self.limits.bytes_max - self.limits.bytes_max / 4;
        let cost = |task: &TaskId| {
            self.deliveries.get(&task.delivery).map_or(0, |known| known.loads[task.index].cost)
        };
        let charge = |tasks: &Vec<TaskId>| tasks.iter().map(cost).sum::<u64>().min(cap);
        let bytes: u64 = self.running.values().map(charge).sum();
        match bytes > self.limits.bytes_max {
            true => Err(format!("imports in flight need {bytes} bytes")),
            false => Ok(()),
        }
    }

    fn dead_letter(
        &mut self,
        id: DeliveryId,
        event: Option<usize>,
        failure: &Failure,
    ) -> Result<(), String> {
        let attempts_max = self.limits.attempts_max;
        let last_receive = self.limits.receives_max;
        let drains = self.drain.is_some();
        let known = self.known(id)?;
        if known.dead_lettered {
            return Err("dead-letters a message twice".into());
        }
        if known.delete_asked || known.release_asked {
            return Err("dead-letters a message it gave away".into());
        }
        let last_receive = known.receive_count >= last_receive;
        let deserved = match (failure.fault, event) {
            (Fault::Permanent, None) => known.strange,
            (Fault::Permanent, Some(index)) => known.tasks[index].permanent,
            (Fault::Transient, Some(index)) => {
                known.tasks[index].transient >= attempts_max && last_receive
            }
            (Fault::Transient, None) | (Fault::Busy | Fault::Outage(_), _) => false,
        };
        if !deserved {
            return Err(format!("dead-letters without a cause: {failure:?}"));
        }
        let given_up = drains && last_receive;
        match known.tasks.iter().all(|told| told.answered) || given_up {
            true => Ok(()),
            false => Err("a bad event keeps its neighbours from being tried".into()),
        }
    }

    fn extend(&mut self, now: Moment, id: DeliveryId, span: Duration) -> Result<(), String> {
        let lease = self.limits.lease;
        let known = self.known(id)?;
        if known.lost {
            return Err("extends a lease that it lost".into());
        }
        if known.extending || known.delete_asked || known.release_asked {
            return Err("extends what needs no extension; it would undo a release".into());
        }
        if span.is_zero() || span > lease || now + span > known.received_at + LEASE_TOTAL_MAX {
            return Err(format!("asks for a lease of {span:?}"));
        }
        known.extending = true;
        known.extend_asked_at = now;
        Ok(())
    }

    fn delete(&mut self, id: DeliveryId) -> Result<(), String> {
        let known = self.known(id)?;
        if known.release_asked || known.deleted {
            return Err("deletes what is released or deleted".into());
        }
        known.delete_asked = true;
        Ok(())
    }

    fn release(&mut self, id: DeliveryId, delay: Duration) -> Result<(), String> {
        let drains = self.drain.is_some();
        let known = self.known(id)?;
        if known.release_asked || known.delete_asked {
            return Err("gives back what it gave away".into());
        }
        if known.extending {
            return Err("gives back while an extension is under way, which may undo it".into());
        }
        let tried = known.strange || known.tasks.iter().any(|told| told.answered);
        if drains && !delay.is_zero() && !tried {
            return Err("a drain hides what nobody has tried".into());
        }
        known.release_asked = true;
        Ok(())
    }

    fn forget(&mut self, now: Moment, id: DeliveryId) -> Result<(), String> {
        let known = self.known(id)?;
        let done = known.deleted || known.released || known.deletes_failed >= DELETES_MAX;
        if !done && !known.is_lost(now) {
            return Err("forgets a message that is neither deleted nor given back".into());
        }
        self.deliveries.remove(&id);
        Ok(())
    }

    fn stop(&mut self, now: Moment) -> Result<(), String> {
        let deadline = self.drain.ok_or("stops without a drain")?;
        self.stopped = true;
        match self.deliveries.is_empty() || now >= deadline + STOP_AFTER {
            true => Ok(()),
            false => Err(format!("stops while it holds {}", self.deliveries.len())),
        }
    }
}

fn check_batch(ids: impl Iterator<Item = DeliveryId>) -> Result<(), String> {
    let ids: Vec<DeliveryId> = ids.collect();
    let distinct: BTreeSet<_> = ids.iter().collect();
    match distinct.len() == ids.len() && (1..=BATCH_MAX).contains(&ids.len()) {
        true => Ok(()),
        false => Err(format!("a batch that SQS refuses: {ids:?}")),
    }
}
