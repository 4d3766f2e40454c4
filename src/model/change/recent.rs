//! The newest changes in memory, for readers that are nearly up to date. Apply may read
//! of it only what the rows say as well: how much is here differs from node to node.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::ids::Seq;
use crate::limits;
use crate::proto::Change;

#[derive(Debug, Default)]
pub(in crate::model) struct RecentChanges {
    /// The seq before the first change held.
    before: Seq,
    bytes: usize,
    changes: VecDeque<Arc<Change>>,
}

impl RecentChanges {
    pub(super) fn after(head: Seq) -> Self {
        Self { before: head, ..Self::default() }
    }

    pub(super) fn push(&mut self, change: Arc<Change>) {
        debug_assert_eq!(change.seq, self.before.get() + self.changes.len() as u64 + 1);
        self.bytes += weight(&change);
        self.changes.push_back(change);
        while self.changes.len() > limits::RECENT_CHANGES || self.bytes > limits::RECENT_BYTES {
            let Some(old) = self.changes.pop_front() else { break };
            self.bytes -= weight(&old);
            self.before = self.before.next();
        }
    }

    pub(crate) fn get(&self, seq: Seq) -> Option<&Arc<Change>> {
        let at = seq.get().checked_sub(self.before.get() + 1)?;
        self.changes.get(usize::try_from(at).ok()?)
    }

    /// The changes after `seq`; `None` if some of them are no longer in memory.
    pub(crate) fn iter_after(&self, seq: Seq) -> Option<impl Iterator<Item = &Arc<Change>>> {
        let skip = seq.get().checked_sub(self.before.get())?;
        Some(self.changes.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)))
    }
}

fn weight(change: &Change) -> usize {
    change.data.len() + 256
}
