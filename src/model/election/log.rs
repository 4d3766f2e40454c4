//! The log of elections: what compaction drops of it, and the rows of a database that are taken over into it.

use super::key::KEY;
use crate::ids::{ElectionId, UnixMs};
use crate::limits;
use crate::model::state::State;
use crate::model::tables::RowKey;
use crate::proto::{Election, ElectionMethod, ElectionReason};

impl State {
    /// Drops the oldest elections up to `to`, a step at a time. The last one is always kept.
    pub(in crate::model) fn drop_elections(&mut self, to: ElectionId) {
        let from = self.meta.election_dropped + 1;
        let newest = self.meta.election_head.saturating_sub(1);
        // A database's rows come newest first and without a gap: while they do, none goes.
        let importing = self.meta.import.as_ref().is_some_and(|import| import.finished_ms == 0);
        let to = if importing { 0 } else { to.get() };
        for id in from..=to.min(newest).min(self.meta.election_dropped + limits::COMPACT_STEP) {
            self.delete(RowKey::Election(ElectionId(id)));
            *self.meta.elections(KEY).election_dropped = id;
        }
    }

    /// The elections of the empty cluster give way to `rows` of a database; how many they were.
    pub(in crate::model) fn elections_give_way(&mut self, rows: u64) -> u64 {
        let elections = self.meta.election_dropped + 1..=self.meta.election_head;
        let gone = elections.clone().count() as u64;
        for id in elections {
            self.delete(RowKey::Election(ElectionId(id)));
        }
        let fields = self.meta.elections(KEY);
        (*fields.election_head, *fields.election_dropped) = (rows, rows);
        // Terms grow with the ids of elections, those of the database included.
        *fields.term = rows.max(*fields.term);
        if !self.meta.master.is_empty() {
            self.master_stays();
        }
        gone
    }

    /// The present master's election went with the logs: it is told anew.
    fn master_stays(&mut self) {
        *self.meta.elections(KEY).term += 1;
        *self.meta.elections(KEY).election_head += 1;
        let election = Election {
            id: self.meta.election_head,
            new_master: self.meta.master.clone(),
            reason: ElectionReason::Manual.into(),
            method: ElectionMethod::Automatic.into(),
            at_ms: self.meta.now_ms,
            participating: self.active_devices() as u32,
            term: self.meta.term,
            ..Election::default()
        };
        self.put(RowKey::Election(ElectionId(election.id)), &election);
    }

    /// A database's row is here; they come newest first. Whether it is the next one.
    pub(in crate::model) fn import_election(&mut self, row: Election, begun_ms: UnixMs) -> bool {
        if row.id == 0 || row.id != self.meta.election_dropped {
            return false;
        }
        *self.meta.elections(KEY).election_dropped -= 1;
        let (id, at_ms) = (row.id, row.at_ms.min(begun_ms.get()));
        self.put(RowKey::Election(ElectionId(id)), &Election { at_ms, term: id, imported: true, ..row });
        true
    }
}
