//! Pages of the change log: from memory where the newest changes are enough, else from the rows.

use std::sync::Arc;

use crate::gateway::Gateway;
use crate::gateway::fanout::hub::ChangeFilter;
use crate::ids::Seq;
use crate::model::access::{ClassRights, Right};
use crate::model::error::{Code, Error};
use crate::model::read::{PageSize, changes_after, weight};
use crate::proto::Change;

/// Changes looked at under the state's lock for one page.
const LOOK: usize = 4_096;

#[derive(Debug, Default)]
pub(crate) struct Page {
    pub changes: Vec<Arc<Change>>,
    /// Everything up to this change has been looked at.
    pub seq: Seq,
    pub more: bool,
}

/// The changes after `after`, up to `head`, that the filter takes. `None` if some were compacted. An error if they are
/// not there at all: a page that leads nowhere would keep its reader asking for ever.
pub(crate) async fn page(
    gateway: &Gateway,
    after: Seq,
    head: Seq,
    size: PageSize,
    filter: &ChangeFilter,
) -> Result<Option<Page>, Error> {
    match recent(gateway, after, head, size, filter) {
        RecentPage::Page(page) if page.more && page.seq <= after => {
            tracing::error!(
                after = after.get(),
                head = head.get(),
                "the changes that were asked for are not in the log"
            );
            return Err(Error::new(Code::Internal, format!("there is no change {} on this node", after.next())));
        }
        RecentPage::Page(page) => return Ok(Some(page)),
        RecentPage::Compacted => return Ok(None),
        RecentPage::InRows => {}
    }
    let (wanted, rights) = (filter.clone(), rights(gateway, filter));
    let takes = move |c: &Change| wanted.takes(c) && is_shown(rights.as_deref(), c);
    let read = move |t: &dyn crate::model::tables::TablesRead| changes_after(t, after, head, size, takes);
    let found = gateway.cluster.replica().read_rows(read).await?;
    Ok(found.map(|p| Page { changes: p.changes.into_iter().map(Arc::new).collect(), seq: p.seq, more: p.more }))
}

/// What the reader may read by now; `None`: everything.
fn rights(gateway: &Gateway, filter: &ChangeFilter) -> Option<Arc<ClassRights>> {
    gateway.cluster.replica().state().access().of(filter.class()).cloned()
}

fn is_shown(rights: Option<&ClassRights>, change: &Change) -> bool {
    rights.is_none_or(|rights| rights.right(&change.table_name) >= Right::Read)
}

enum RecentPage {
    Page(Page),
    Compacted,
    InRows,
}

fn recent(gateway: &Gateway, after: Seq, head: Seq, size: PageSize, filter: &ChangeFilter) -> RecentPage {
    let state = gateway.cluster.replica().state();
    if after < state.meta().compacted() {
        return RecentPage::Compacted;
    }
    let mut page = Page { seq: after, ..Page::default() };
    if after >= head {
        return RecentPage::Page(page);
    }
    let Some(changes) = state.recent_after(after) else { return RecentPage::InRows };
    let rights = state.access().of(filter.class());
    let mut bytes = 0;
    for change in changes.take_while(|c| Seq(c.seq) <= head).take(LOOK) {
        if filter.takes(change) && is_shown(rights.map(|r| &**r), change) {
            bytes += weight(change);
            if page.changes.len() >= size.rows || (bytes > size.bytes && !page.changes.is_empty()) {
                break;
            }
            page.changes.push(change.clone());
        }
        page.seq = Seq(change.seq);
    }
    page.more = page.seq < head;
    RecentPage::Page(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::gateway::GatewaySettings;
    use crate::testkit::local_cluster::LocalCluster;
    use crate::token::KeyRing;

    #[tokio::test]
    async fn a_page_of_changes_that_are_not_there_is_an_error_not_an_endless_walk() {
        let (cluster, _effects) = LocalCluster::start(Arc::new(SystemClock)).await.unwrap();
        let gateway = Gateway::new(cluster, GatewaySettings::default(), KeyRing::parse(&"5a".repeat(32)).unwrap());
        let ask = async |head| {
            page(&gateway, Seq(0), head, PageSize { rows: 10, bytes: 1_000 }, &ChangeFilter::default()).await
        };
        let empty = ask(Seq(0)).await.unwrap().unwrap();
        assert!(empty.changes.is_empty() && !empty.more);
        let error = ask(Seq(3)).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::Internal, "there is no change 1 on this node"));
    }
}
