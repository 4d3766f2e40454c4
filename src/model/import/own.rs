//! The rows that taking over a database writes itself: its begin and its end in the audit log, and the election of the
//! node that was master before and stays it. They stand behind what was taken over and are no part of it.

use super::{BEGIN, EVENT, FINISH};
use crate::ids::{AuditId, ElectionId};
use crate::model::tables::{RowKey, TablesError, TablesRead, get_row};
use crate::proto::{Audit, Election, Meta};

/// So many rows at the ends of the logs are the import's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnRows {
    pub elections: u64,
    pub audits: u64,
}

/// None, once anything has come after the import or between its begin and its end: from then on its rows are history
/// like all others. No election and nothing that a device does goes by without an audit row, so the last two of these
/// tell.
pub(crate) fn own_rows(rows: &dyn TablesRead, meta: &Meta) -> Result<OwnRows, TablesError> {
    let Some(import) = meta.import.filter(|import| import.finished_ms > 0) else { return Ok(OwnRows::default()) };
    let head = meta.audit_head;
    for (id, operation, at_ms) in [(head, FINISH, import.finished_ms), (head.saturating_sub(1), BEGIN, import.begun_ms)]
    {
        let row = get_row::<Audit>(rows, &RowKey::Audit(AuditId(id)))?;
        if row.is_none_or(|row| row.event_type != EVENT || row.operation != operation || row.at_ms != at_ms) {
            return Ok(OwnRows::default());
        }
    }
    let last = get_row::<Election>(rows, &RowKey::Election(ElectionId(meta.election_head)))?;
    Ok(OwnRows { elections: last.map_or(0, |election| u64::from(!election.imported)), audits: 2 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::properties::{StateUnderTest, online};
    use crate::proto::command::Intent;
    use crate::proto::{DeviceOnline, ImportBegin, ImportFinish, ImportRows, NodeLost, Presence, Role};

    const ID: u64 = 7;
    const OWN: OwnRows = OwnRows { elections: 1, audits: 2 };

    fn node() -> Intent {
        let device_id = "node-1".to_owned();
        Intent::DeviceOnline(DeviceOnline { device_id, presence: Presence::Node.into(), ..DeviceOnline::default() })
    }

    fn begin() -> Intent {
        Intent::ImportBegin(ImportBegin { import_id: ID, election_rows: 1, audit_rows: 2, ..ImportBegin::default() })
    }

    /// A log whose last rows read as an import's own.
    fn rows() -> Intent {
        let audit = |id, operation: &str| Audit {
            id,
            event_type: EVENT.into(),
            operation: operation.into(),
            at_ms: id,
            ..Audit::default()
        };
        Intent::ImportRows(ImportRows {
            import_id: ID,
            elections: vec![Election { id: 1, new_master: "till".into(), at_ms: 1, ..Election::default() }],
            audits: vec![audit(2, FINISH), audit(1, BEGIN)],
            ..ImportRows::default()
        })
    }

    fn finish() -> Intent {
        Intent::ImportFinish(ImportFinish { import_id: ID, ..ImportFinish::default() })
    }

    fn own(b: &StateUnderTest) -> OwnRows {
        own_rows(&b.tables, b.state.meta()).unwrap()
    }

    /// A cluster in which a node's device is master.
    fn booted() -> StateUnderTest {
        let mut b = StateUnderTest::new();
        b.ok(node());
        b.ok(Intent::Elect(crate::proto::Elect { reason: 2, ..Default::default() }));
        b
    }

    #[test]
    fn the_imports_rows_are_its_own_until_something_happens() {
        let mut b = booted();
        assert_eq!(own(&b), OwnRows::default());
        for step in [begin(), rows()] {
            b.ok(step);
            assert_eq!(own(&b), OwnRows::default(), "it is not over");
        }
        b.ok(finish());
        assert_eq!(own(&b), OWN);
        // What is not counted is what was taken over, all of it.
        let meta = b.state.meta();
        assert_eq!((meta.election_head - OWN.elections, meta.audit_head - OWN.audits), (1, 2));
        b.ok(finish());
        assert_eq!(own(&b), OWN, "sent again, it changes nothing");
        b.ok(online("till", 20, Role::Client));
        assert_eq!(own(&b), OwnRows::default());
    }

    #[test]
    fn what_happens_while_it_goes_on_counts() {
        let mut b = booted();
        b.ok(begin());
        b.ok(Intent::NodeLost(NodeLost { node: 1 }));
        b.ok(rows());
        b.ok(finish());
        assert_eq!(own(&b), OwnRows::default());
    }

    #[test]
    fn without_a_master_there_is_no_election_of_its_own() {
        let mut b = StateUnderTest::new();
        for step in [begin(), rows(), finish()] {
            b.ok(step);
        }
        assert_eq!(own(&b), OwnRows { elections: 0, audits: 2 });
    }
}
