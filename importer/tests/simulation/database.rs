//! The ledger and the tables. Whether an object is written is decided by the importer's own
//! `admit`; the rest is what a transaction is.

use std::collections::{BTreeMap, BTreeSet};

use weirgate_importer::sink::admission::{Admission, LedgerRow, RowState, admit};

use super::scenario::Scenario;

#[derive(Default)]
pub(crate) struct Database {
    /// By key; the id of a row is the number of its object.
    ledger: BTreeMap<usize, Vec<LedgerRow>>,
    /// How often the rows of each object are in the table.
    rows: BTreeMap<usize, u32>,
    /// Keys that a transaction is about.
    locks: BTreeSet<usize>,
    /// Objects that a newer version made needless.
    superseded: BTreeSet<usize>,
}

impl Database {
    pub(crate) fn lock(&mut self, key: usize) -> bool {
        self.locks.insert(key)
    }

    pub(crate) fn unlock(&mut self, key: usize) {
        self.locks.remove(&key);
    }

    /// Whether the object needs no import any more.
    pub(crate) fn asks_nothing(&mut self, scenario: &Scenario, object: usize) -> bool {
        match self.admission(scenario, object) {
            Admission::AlreadyCommitted { advance_sequencer } => advance_sequencer.is_none(),
            Admission::Superseded => {
                self.superseded.insert(object);
                true
            }
            Admission::Import { .. } => false,
        }
    }

    pub(crate) fn supersede(&mut self, object: usize) {
        self.superseded.insert(object);
    }

    /// The whole transaction.
    pub(crate) fn commit(&mut self, scenario: &Scenario, object: usize) {
        match self.admission(scenario, object) {
            Admission::AlreadyCommitted { .. } => {}
            Admission::Superseded => {
                self.superseded.insert(object);
            }
            Admission::Import { replaces } => self.write(scenario, object, &replaces),
        }
    }

    /// What a transaction does that does not ask the ledger.
    pub(crate) fn write(&mut self, scenario: &Scenario, object: usize, replaces: &[i64]) {
        let it = &scenario.objects[object];
        let ledger = self.ledger.entry(it.key).or_default();
        for row in ledger.iter_mut().filter(|row| replaces.contains(&row.id)) {
            row.state = RowState::Replaced;
            self.rows.remove(&(row.id as usize));
        }
        ledger.push(LedgerRow {
            id: object as i64,
            etag: it.etag.clone(),
            sequencer: Some(it.sequencer.clone()),
            state: RowState::Committed,
            event_at: None,
        });
        *self.rows.entry(object).or_default() += 1;
    }

    fn admission(&self, scenario: &Scenario, object: usize) -> Admission {
        let it = &scenario.objects[object];
        let rows = self.ledger.get(&it.key).map(Vec::as_slice).unwrap_or_default();
        admit(scenario.mode, &it.etag, Some(&it.sequencer), rows)
    }

    /// Its rows were written, or it is known that they need not be.
    pub(crate) fn is_settled(&self, scenario: &Scenario, object: usize) -> bool {
        let rows = self.ledger.get(&scenario.objects[object].key);
        let mut rows = rows.into_iter().flatten();
        rows.any(|row| row.id == object as i64) || self.superseded.contains(&object)
    }

    /// Whether the table holds just what it must hold of a settled object.
    pub(crate) fn is_right(&self, scenario: &Scenario, object: usize) -> bool {
        let it = &scenario.objects[object];
        let rows = self.ledger.get(&it.key).map(Vec::as_slice).unwrap_or_default();
        let mut own = rows.iter().filter(|row| row.id == object as i64);
        let expected = match own.next().map(|row| row.state) {
            Some(RowState::Committed) => 1,
            Some(RowState::Replaced | RowState::Retracted) | None => 0,
        };
        own.next().is_none() && self.rows.get(&object).copied().unwrap_or(0) == expected
    }

    /// The newest version of the key that ever reached the ledger is the one in the table.
    pub(crate) fn holds_newest(&self, key: usize) -> bool {
        let rows = self.ledger.get(&key).map(Vec::as_slice).unwrap_or_default();
        let newest = rows.iter().max_by_key(|row| &row.sequencer);
        newest.is_none_or(|row| row.state == RowState::Committed)
    }
}
