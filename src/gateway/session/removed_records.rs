//! Records of tables that were removed: the state knows nothing of them any more, so the log says which change of each
//! was the newest.

use std::collections::HashMap;

use crate::gateway::Gateway;
use crate::gateway::fanout::feed;
use crate::gateway::fanout::hub::ChangeFilter;
use crate::ids::{RecordId, Seq};
use crate::limits;
use crate::model::error::Error;
use crate::model::read::PageSize;
use crate::proto::Change;

/// Changes looked at together.
const LOOK: PageSize = PageSize { rows: 4_096, bytes: 1 << 20 };

/// The newest change of each such record within a stretch of the log, by the table's name.
#[derive(Default)]
pub(crate) struct RemovedRecords {
    newest: HashMap<String, HashMap<RecordId, Seq>>,
}

impl RemovedRecords {
    /// Looks through the changes after `after` up to `to`. `None`: some are compacted, or the records are too many.
    pub(crate) async fn look(
        gateway: &Gateway,
        after: Seq,
        to: Seq,
        filter: &ChangeFilter,
    ) -> Result<Option<Self>, Error> {
        let (mut found, mut records, mut at) = (Self::default(), 0, after);
        while at < to {
            let Some(page) = feed::page(gateway, at, to, LOOK, filter).await? else { return Ok(None) };
            let state = gateway.cluster.replica().state();
            for Change { table_name, record_id, seq, .. } in page.changes.iter().map(|change| &**change) {
                let (record_id, seq) = (RecordId(*record_id), Seq(*seq));
                let version = state.version_of(table_name, record_id);
                // A record that was made after `to`, in a table of the same name, is another one.
                if version.is_some_and(|version| version <= to) {
                    continue;
                }
                let of_table = found.newest.entry(table_name.clone()).or_default();
                records += usize::from(of_table.insert(record_id, seq).is_none());
            }
            if records > limits::SYNC_MOVED {
                return Ok(None);
            }
            at = page.seq;
        }
        Ok(Some(found))
    }

    /// The newest change of the change's record; `None`: it is none of these.
    pub(crate) fn newest(&self, change: &Change) -> Option<Seq> {
        let of_table = self.newest.get(&change.table_name);
        of_table.and_then(|records| records.get(&RecordId(change.record_id))).copied()
    }
}
