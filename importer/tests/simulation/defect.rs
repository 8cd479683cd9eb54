//! Defects planted on purpose, between the protocol and the world: what the protocol notices and
//! what it asks for are tampered with, as if its code were wrong. Production code knows nothing
//! of them.

use std::time::Duration;

use weirgate_common::fault::{Dependency, Fault};
use weirgate_importer::failure::Failure;
use weirgate_importer::protocol::{
    DeliveryId, Effect, Extension, FeedId, ImportId, Input, Limits, Outcome,
};

/// What is wrong with the importer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    AcknowledgesBeforeTheCommit,
    DropsARecordOfAMessage,
    ImportsWithoutAskingTheLedger,
    TakesPoisonForSettled,
    TakesABrokenCommitForSettled,
    IgnoresALostLease,
    AsksForShortLeases,
    AsksForLongLeases,
    ExtendsAfterARelease,
    TakesARefusedDeleteForDone,
    MixesUpTheEntriesOfABatch,
    DeadLettersOnOutage,
    CountsAnAttemptOnOutage,
    CountsAnAttemptWhenBusy,
    DeletesBeforeTheDeadLetter,
    TakesAnUnsentDeadLetterForSent,
    ForgetsAHalfOpenBreaker,
    BelievesEveryProbe,
    ForgetsAFailedReceive,
    LosesAHeldMessageOnDrain,
    ReceivesDuringADrain,
    IgnoresTheDrain,
    RunsMoreThanItsSlots,
    IgnoresTheByteBudget,
    BlamesTheWholeGroup,
    TakesOneForAll,
    ImportsAGroupAsBeforeAfterItFailed,
    WaitsForCompanyForEver,
    GathersMoreThanAllowed,
    MixesFeeds,
}

impl Defect {
    pub(crate) const ALL: [Defect; 30] = [
        Defect::AcknowledgesBeforeTheCommit,
        Defect::DropsARecordOfAMessage,
        Defect::ImportsWithoutAskingTheLedger,
        Defect::TakesPoisonForSettled,
        Defect::TakesABrokenCommitForSettled,
        Defect::IgnoresALostLease,
        Defect::AsksForShortLeases,
        Defect::AsksForLongLeases,
        Defect::ExtendsAfterARelease,
        Defect::TakesARefusedDeleteForDone,
        Defect::MixesUpTheEntriesOfABatch,
        Defect::DeadLettersOnOutage,
        Defect::CountsAnAttemptOnOutage,
        Defect::CountsAnAttemptWhenBusy,
        Defect::DeletesBeforeTheDeadLetter,
        Defect::TakesAnUnsentDeadLetterForSent,
        Defect::ForgetsAHalfOpenBreaker,
        Defect::BelievesEveryProbe,
        Defect::ForgetsAFailedReceive,
        Defect::LosesAHeldMessageOnDrain,
        Defect::ReceivesDuringADrain,
        Defect::IgnoresTheDrain,
        Defect::RunsMoreThanItsSlots,
        Defect::IgnoresTheByteBudget,
        Defect::BlamesTheWholeGroup,
        Defect::TakesOneForAll,
        Defect::ImportsAGroupAsBeforeAfterItFailed,
        Defect::WaitsForCompanyForEver,
        Defect::GathersMoreThanAllowed,
        Defect::MixesFeeds,
    ];

    /// The limits that the defective protocol goes by.
    pub(crate) fn limits(defect: Option<Defect>, mut limits: Limits) -> Limits {
        match defect {
            Some(Defect::RunsMoreThanItsSlots) => limits.slots += 1,
            Some(Defect::IgnoresTheByteBudget) => limits.bytes_max = u64::MAX,
            Some(Defect::WaitsForCompanyForEver) => limits.grouping.linger *= 100,
            Some(Defect::GathersMoreThanAllowed) => limits.grouping.objects_max += 1,
            _ => {}
        }
        limits
    }
}

/// The defect of one process, and what it needs to remember.
pub(crate) struct Tamper {
    defect: Option<Defect>,
    /// Imports whose answer the protocol has been given already.
    answered: Vec<ImportId>,
    draining: bool,
}

impl Tamper {
    pub(crate) fn new(defect: Option<Defect>) -> Self {
        Tamper { defect, answered: Vec::new(), draining: false }
    }

    /// What the defective protocol notices of an input; `None`: nothing.
    pub(crate) fn input(&mut self, mut input: Input) -> Option<Input> {
        let Some(defect) = self.defect else { return Some(input) };
        self.draining |= matches!(input, Input::Drain(_));
        match (defect, &mut input) {
            (Defect::AcknowledgesBeforeTheCommit, Input::Imported(import, _)) => {
                let known = self.answered.iter().position(|answered| answered == import)?;
                self.answered.swap_remove(known);
                return None;
            }
            (Defect::DropsARecordOfAMessage, Input::Received(arrivals)) => {
                for arrival in arrivals.iter_mut().filter(|arrival| arrival.loads.len() > 1) {
                    arrival.loads.pop();
                }
            }
            (Defect::MixesFeeds, Input::Received(arrivals)) => {
                let loads = arrivals.iter_mut().flat_map(|arrival| &mut arrival.loads);
                loads.for_each(|load| load.feed = FeedId(0));
            }
            (Defect::TakesOneForAll, Input::Imported(_, outcomes))
                if outcomes.iter().any(|(_, outcome)| *outcome == Outcome::Settled) =>
            {
                outcomes.iter_mut().for_each(|(_, outcome)| *outcome = Outcome::Settled);
            }
            (Defect::ForgetsAHalfOpenBreaker, Input::Probed(_, false))
            | (Defect::ForgetsAFailedReceive, Input::ReceiveFailed)
            | (Defect::IgnoresTheDrain, Input::Drain(_)) => return None,
            (Defect::BelievesEveryProbe, Input::Probed(_, back)) => *back = true,
            (Defect::IgnoresALostLease, Input::Extended(results)) => {
                results.iter_mut().for_each(|(_, extension)| *extension = Extension::Granted);
            }
            (Defect::TakesARefusedDeleteForDone, Input::Deleted(results)) => {
                results.iter_mut().for_each(|(_, deleted)| *deleted = true);
            }
            (Defect::MixesUpTheEntriesOfABatch, Input::Deleted(results)) => {
                let turned: Vec<bool> = results.iter().rev().map(|(_, deleted)| *deleted).collect();
                results.iter_mut().zip(turned).for_each(|((_, deleted), other)| *deleted = other);
            }
            (Defect::TakesAnUnsentDeadLetterForSent, Input::DeadLettered(_, sent)) => *sent = true,
            (_, Input::Imported(_, outcomes)) => {
                outcomes.iter_mut().for_each(|(_, outcome)| Self::outcome(defect, outcome));
            }
            _ => {}
        }
        Some(input)
    }

    fn outcome(defect: Defect, outcome: &mut Outcome) {
        let (Outcome::Failed(failure) | Outcome::FailedTogether(failure)) = outcome else { return };
        match (defect, failure.fault) {
            (Defect::TakesPoisonForSettled, Fault::Permanent)
            | (Defect::TakesABrokenCommitForSettled, Fault::Transient) => {
                *outcome = Outcome::Settled;
            }
            (Defect::BlamesTheWholeGroup, Fault::Permanent) => {
                *outcome = Outcome::Failed(failure.clone());
            }
            (Defect::ImportsAGroupAsBeforeAfterItFailed, _) => {
                failure.fault = Fault::Busy;
                *outcome = Outcome::Failed(failure.clone());
            }
            (Defect::DeadLettersOnOutage, Fault::Outage(_)) => {
                *outcome = Outcome::Failed(Failure::permanent(failure.code, ""));
            }
            (Defect::CountsAnAttemptOnOutage, Fault::Outage(Dependency::Database))
            | (Defect::CountsAnAttemptWhenBusy, Fault::Busy) => {
                *outcome = Outcome::Failed(Failure::new(Fault::Transient, failure.code, ""));
            }
            _ => {}
        }
    }

    /// What the defective protocol does, and what it believes to have been told at once.
    pub(crate) fn effects(&mut self, effects: Vec<Effect>) -> (Vec<Effect>, Vec<Input>) {
        let Some(defect) = self.defect else { return (effects, Vec::new()) };
        let mut done = Vec::with_capacity(effects.len() + 1);
        let mut believed = Vec::new();
        for mut effect in effects {
            match (defect, &mut effect) {
                (Defect::AcknowledgesBeforeTheCommit, Effect::Import(import, tasks)) => {
                    self.answered.push(*import);
                    let settled = tasks.iter().map(|task| (*task, Outcome::Settled)).collect();
                    believed.push(Input::Imported(*import, settled));
                }
                (Defect::AsksForShortLeases, Effect::Extend(batch)) => {
                    batch.iter_mut().for_each(|(_, span)| *span /= 4);
                }
                (Defect::AsksForLongLeases, Effect::Extend(batch)) => {
                    batch.iter_mut().for_each(|(_, span)| *span += Duration::from_secs(1));
                }
                (Defect::ExtendsAfterARelease, Effect::Release(batch)) => {
                    let again: Vec<(DeliveryId, Duration)> = batch.clone();
                    done.push(effect);
                    effect = Effect::Extend(again);
                }
                (Defect::DeletesBeforeTheDeadLetter, Effect::DeadLetter { delivery, .. }) => {
                    done.push(Effect::Delete(vec![*delivery]));
                }
                (Defect::LosesAHeldMessageOnDrain, Effect::Release(batch)) if self.draining => {
                    believed.extend(batch.pop().map(|(id, _)| Input::Released(vec![id])));
                }
                (Defect::ReceivesDuringADrain, Effect::Release(_)) if self.draining => {
                    done.push(Effect::Receive { count: 1 });
                }
                _ => {}
            }
            done.push(effect);
        }
        done.retain(|effect| !matches!(effect, Effect::Release(batch) if batch.is_empty()));
        (done, believed)
    }
}
