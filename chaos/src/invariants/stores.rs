//! A program that knows times only, and applies what comes in the order of arrival, ends with what the nodes hold.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::history::{HeldRecord, History};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let Some(node) = history.finals.first() else { return finding };
    let by_record = |held: &[HeldRecord]| -> BTreeMap<(String, i64), (u64, String)> {
        held.iter().map(|h| ((h.table.clone(), h.record), (h.seq, h.value.clone()))).collect()
    };
    let right = by_record(&node.records);
    for store in &history.stores {
        let own = by_record(&store.records);
        for at in right.keys().chain(own.keys().filter(|at| !right.contains_key(*at))) {
            finding.require(right.get(at) == own.get(at), || {
                let ((table, record), id) = (at, store.session);
                format!(
                    "session {id} of {} ended with {table}/{record} as {:?}, but the nodes hold {:?}",
                    store.device,
                    own.get(at),
                    right.get(at)
                )
            });
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;
    use crate::history::Store;

    #[test]
    fn a_store_that_differs_is_found() {
        let mut history = good();
        let records = history.finals[0].records.clone();
        history.stores.push(Store { device: "till-1".into(), session: 1, records });
        assert!(check(&history).violations.is_empty());
        assert_eq!(check(&history).checked, 1);
        history.stores[0].records[0].seq = 1;
        wrong(&check(&history), "session 1 of till-1 ended with stock/1");
        history.stores[0].records.clear();
        wrong(&check(&history), "as None");
        history.stores[0].records = history.finals[0].records.clone();
        history.finals[0].records.clear();
        wrong(&check(&history), "hold None");
    }
}
