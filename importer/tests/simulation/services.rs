//! What the queue, the object store and the database do when a request reaches them, each with
//! the faults of the scenario.

use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use weirgate_common::fault::{Dependency, Fault};
use weirgate_importer::failure::Failure;
use weirgate_importer::protocol::{
    Arrival, DeliveryId, Effect, Extension, ImportId, Input, Outcome, TaskId,
};

use super::defect::Defect;
use super::queue::Place;
use super::scenario::Kind;
use super::{ProcessId, What, World};

/// How long a receive waits for messages.
const LONG_POLL: Duration = Duration::from_secs(20);

impl World {
    /// A request has reached its dependency.
    pub(super) fn arrive(&mut self, from: ProcessId, effect: Effect) {
        match effect {
            Effect::Receive { count } => {
                self.poll(from, count, self.now + LONG_POLL);
            }
            Effect::Import(import, tasks) => self.begin(from, import, tasks),
            Effect::DeadLetter { delivery, .. } => {
                let sent = !self.refuses();
                if sent {
                    let message = self.queue.message(delivery);
                    self.queue.messages[message].dead_letters += 1;
                }
                let told = sent && !self.strikes(self.scenario.rates.lost_reply);
                self.answer(from, Input::DeadLettered(delivery, told));
            }
            Effect::Extend(batch) => {
                let results = batch.into_iter().map(|(id, span)| (id, self.extend(id, span)));
                let results = results.collect();
                self.answer(from, Input::Extended(results));
            }
            Effect::Delete(batch) => {
                let results = batch.into_iter().map(|id| (id, self.delete(id))).collect();
                self.answer(from, Input::Deleted(results));
            }
            Effect::Release(batch) => {
                let ids = batch.iter().map(|(id, _)| *id).collect();
                for (id, delay) in batch {
                    if !self.refuses() {
                        self.queue.change_visibility(id, delay, self.now);
                    }
                }
                self.answer(from, Input::Released(ids));
            }
            Effect::Probe(dependency) => {
                let back = !self.scenario.is_away(dependency, self.now);
                self.answer(from, Input::Probed(dependency, back));
            }
            Effect::Forget(_) | Effect::Stop => {}
        }
    }

    /// Whether SQS does not do what one entry asks.
    fn refuses(&mut self) -> bool {
        self.scenario.is_away(Dependency::Queue, self.now)
            || self.strikes(self.scenario.rates.refused)
    }

    fn extend(&mut self, id: DeliveryId, span: Duration) -> Extension {
        if self.refuses() {
            return Extension::Failed;
        }
        let result = self.queue.change_visibility(id, span, self.now);
        match self.strikes(self.scenario.rates.lost_reply) {
            true => Extension::Failed,
            false => result,
        }
    }

    fn delete(&mut self, id: DeliveryId) -> bool {
        let message = self.queue.message(id);
        if let Err(rule) = self.check_delete(message) {
            self.violate(rule);
        }
        if self.refuses() {
            return false;
        }
        if !self.strikes(self.scenario.rates.idle_delete) {
            self.queue.delete(id);
        }
        !self.strikes(self.scenario.rates.lost_reply)
    }

    /// Everything in it must be settled, or a copy must lie in the dead-letter queue.
    fn check_delete(&self, message: usize) -> Result<(), String> {
        let entry = &self.queue.messages[message];
        let asked = &self.scenario.messages[message];
        let settled = |object: &usize| self.database.is_settled(&self.scenario, *object);
        let settled = !asked.strange && asked.events.iter().all(settled);
        match entry.place != Place::Queued || entry.dead_letters > 0 || settled {
            true => Ok(()),
            false => Err(format!("message {message} is deleted before it is settled")),
        }
    }

    pub(super) fn poll(&mut self, from: ProcessId, count: usize, until: Duration) {
        if self.scenario.is_away(Dependency::Queue, self.now) {
            return self.answer(from, Input::ReceiveFailed);
        }
        if self.strikes(self.scenario.rates.empty_receive) {
            return self.answer(from, Input::Received(Vec::new()));
        }
        let candidates = self.candidates();
        if candidates.is_empty() && self.now < until {
            let queued = self.queue.messages.iter().filter(|it| it.place == Place::Queued);
            let at = queued.map(|entry| entry.visible_at).min().unwrap_or(until).min(until);
            return self.insert(at, from, What::Poll { count, until });
        }
        let mut arrivals = Vec::new();
        for (message, injected) in candidates {
            if arrivals.len() == count {
                break;
            }
            arrivals.extend(self.receive(message, injected));
        }
        let lost = self.strikes(self.scenario.rates.lost_receive);
        let input = if lost { Input::ReceiveFailed } else { Input::Received(arrivals) };
        self.answer(from, input);
    }

    /// What a receive may return, in any order, and whether that is against the lease.
    fn candidates(&mut self) -> Vec<(usize, bool)> {
        let mut candidates = Vec::new();
        for message in 0..self.queue.messages.len() {
            let entry = &self.queue.messages[message];
            if entry.place != Place::Queued {
                continue;
            }
            let leased = entry.visible_at > self.now;
            let in_flight = entry.receipt.is_some();
            if !leased || in_flight && self.strikes(self.scenario.rates.duplicate) {
                candidates.push((message, leased));
            }
        }
        candidates.shuffle(&mut self.rng);
        candidates
    }

    fn receive(&mut self, message: usize, injected: bool) -> Option<Arrival> {
        let before = self.queue.messages[message].receipt;
        if let Some(before) = before
            && !injected
        {
            let processes = self.importers.iter().filter_map(|it| it.process.as_ref());
            if processes.map(|process| &process.watch).any(|watch| watch.must_hold(before)) {
                self.violate(format!("the lease of {before:?} ran out while it was worked on"));
            }
        } else if let Some(before) = before {
            let processes = self.importers.iter_mut().filter_map(|it| it.process.as_mut());
            processes.for_each(|process| process.watch.excuse(before));
        }
        let lease = self.scenario.limits.lease;
        let Some(delivery) = self.queue.receive(message, self.now, lease) else {
            self.note(|_| format!("queue: message {message} goes to the dead-letter queue"));
            return None;
        };
        self.note(|_| format!("queue: message {message} goes out as {delivery:?}"));
        let asked = &self.scenario.messages[message];
        Some(Arrival {
            delivery,
            receive_count: self.queue.messages[message].receives,
            loads: asked.events.iter().map(|it| self.scenario.objects[*it].load()).collect(),
            failure: asked.strange.then(|| Failure::permanent("no_feed", "")),
        })
    }

    /// An import asks the ledger, reads its objects, and opens its transaction.
    fn begin(&mut self, from: ProcessId, import: ImportId, tasks: Vec<TaskId>) {
        let (mut members, mut outcomes) = (Vec::new(), Vec::new());
        let mut span = Duration::ZERO;
        for task in &tasks {
            let message = self.queue.message(task.delivery);
            let object = self.scenario.messages[message].events[task.index];
            match self.open(object, tasks.len()) {
                Ok(true) => {
                    span = span.max(self.span(object));
                    members.push((*task, object));
                }
                Ok(false) => outcomes.push((*task, Outcome::Settled)),
                Err(outcome) => outcomes.push((*task, outcome)),
            }
        }
        match members.is_empty() {
            true => self.answer(from, Input::Imported(import, outcomes)),
            false => {
                self.insert(self.now + span, from, What::Commit { import, members, outcomes });
            }
        }
    }

    fn span(&mut self, object: usize) -> Duration {
        let slow = self.scenario.objects[object].slow;
        let usual = slow.unwrap_or(Duration::from_millis(self.rng.random_range(5..900)));
        match self.strikes(self.scenario.rates.slow_import) {
            true => self.scenario.limits.lease.mul_f64(self.rng.random_range(0.8..3.0)),
            false => usual,
        }
    }

    /// `true`: it is part of the transaction; `false`: there is nothing to do.
    fn open(&mut self, object: usize, company: usize) -> Result<bool, Outcome> {
        let (database, store) = (Dependency::Database, Dependency::ObjectStore);
        if self.scenario.is_away(database, self.now) {
            let failure = Failure::new(Fault::Outage(database), "away", "");
            return Err(Outcome::FailedTogether(failure));
        }
        let asks = self.defect != Some(Defect::ImportsWithoutAskingTheLedger);
        if asks && self.database.asks_nothing(&self.scenario, object) {
            return Ok(false);
        }
        let failed = |fault, code| Err(Outcome::Failed(Failure::new(fault, code, "")));
        if self.scenario.is_away(store, self.now) {
            return failed(Fault::Outage(store), "away");
        }
        if !self.scenario.is_readable(object, self.now) {
            self.database.supersede(object);
            return Ok(false);
        }
        match self.scenario.objects[object].kind {
            Kind::Poison => return failed(Fault::Permanent, "corrupt"),
            Kind::Cursed => return failed(Fault::Outage(store), "cursed"),
            Kind::Flaky if self.rng.random_bool(0.7) => return failed(Fault::Transient, "flaky"),
            Kind::Bloated if company > 1 => return Err(Outcome::Apart),
            Kind::Flaky | Kind::Bloated | Kind::Spoiler | Kind::Jinx | Kind::Good => {}
        }
        match self.database.lock(self.scenario.objects[object].key) {
            true => Ok(true),
            false => failed(Fault::Busy, "busy"),
        }
    }

    pub(super) fn unlock(&mut self, members: &[(TaskId, usize)]) {
        for (_, object) in members {
            self.database.unlock(self.scenario.objects[*object].key);
        }
    }

    /// Whether the transaction cannot be committed with these.
    pub(super) fn spoils(&self, members: &[(TaskId, usize)]) -> bool {
        let spoils = |object: &usize| {
            matches!(self.scenario.objects[*object].kind, Kind::Spoiler | Kind::Jinx)
        };
        members.iter().any(|(_, object)| spoils(object))
    }

    pub(super) fn write(&mut self, members: &[(TaskId, usize)]) {
        for (_, object) in members {
            match self.defect {
                Some(Defect::ImportsWithoutAskingTheLedger) => {
                    self.database.write(&self.scenario, *object, &[]);
                }
                _ => self.database.commit(&self.scenario, *object),
            }
        }
    }

    pub(super) fn commit(
        &mut self,
        from: ProcessId,
        import: ImportId,
        members: &[(TaskId, usize)],
        mut outcomes: Vec<(TaskId, Outcome)>,
    ) {
        self.unlock(members);
        let jinx =
            |(_, object): &(TaskId, usize)| self.scenario.objects[*object].kind == Kind::Jinx;
        let spoils = self.spoils(members);
        let away =
            self.scenario.is_away(Dependency::Database, self.now) || members.iter().any(jinx);
        let broken = self.strikes(self.scenario.rates.broken_commit);
        let reached = !spoils && (!(away || broken) || self.rng.random_bool(0.5));
        if reached {
            self.note(|_| format!("database: commits {members:?}"));
            self.write(members);
        }
        let failure = match (away, broken, spoils) {
            (true, _, _) => Some((Fault::Outage(Dependency::Database), "commit_lost")),
            (false, true, _) => Some((Fault::Transient, "commit_lost")),
            (false, false, true) => Some((Fault::Permanent, "refused")),
            (false, false, false) => None,
        };
        let outcome = match failure {
            Some((fault, code)) => Outcome::FailedTogether(Failure::new(fault, code, "")),
            None => Outcome::Settled,
        };
        outcomes.extend(members.iter().map(|(task, _)| (*task, outcome.clone())));
        self.answer(from, Input::Imported(import, outcomes));
    }
}
