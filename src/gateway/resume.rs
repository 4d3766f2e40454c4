//! Catching up: a session that came with a cursor is sent what it missed, then joins the live events.

use std::sync::Arc;

use super::Gateway;
use super::feed;
use super::hub::Filter;
use super::outbox::{Frame, Out, Outbox};
use super::wire::ServerEvent;
use crate::model::error::{Code, Error};
use crate::model::read::PageSize;

/// A page waits in the session's queue beside live events, so it is a fraction of it.
const PAGE: PageSize = PageSize { rows: 256, bytes: 512 << 10 };

/// A session on hold at the hub, on its way back to the live events.
pub struct CatchUp {
    pub gateway: Arc<Gateway>,
    pub outbox: Arc<Outbox>,
    pub filter: Filter,
    /// A stretch that it missed before it attached: after the first, up to the second.
    pub missed: Option<(u64, u64)>,
    /// Where the hold began: everything after this is still to be told.
    pub from: u64,
}

impl CatchUp {
    /// Ends the session if what it missed can no longer be told.
    pub async fn run(self) {
        if let Err(error) = self.tell().await {
            self.outbox.close(error);
        }
    }

    async fn tell(&self) -> Result<(), Error> {
        if let Some((after, to)) = self.missed {
            self.tell_range(after, to).await?;
        }
        let mut at = self.from;
        while let Err(dispatched) = self.gateway.hub.release(self.outbox.id, at) {
            self.tell_range(at, dispatched).await?;
            at = dispatched;
        }
        Ok(())
    }

    async fn tell_range(&self, after: u64, to: u64) -> Result<(), Error> {
        let epoch = self.gateway.epoch();
        let mut after = after;
        while after < to {
            let Some(page) = feed::page(&self.gateway, after, to, PAGE, &self.filter).await? else {
                return Err(Error::new(Code::BadCursor, "the changes after the cursor are gone: do a full sync"));
            };
            after = page.seq;
            let Some((last, others)) = page.changes.split_last() else { continue };
            let frame = |change| Frame::of(self.outbox.transport, &ServerEvent::DataUpdate { change, epoch });
            for change in others {
                self.outbox.push(Out { frame: frame(change), taken: None });
            }
            if !self.outbox.send_and_wait(frame(last)).await {
                return Err(Error::new(Code::SocketClosed, "the session ended"));
            }
        }
        Ok(())
    }
}
