//! The order in which one session is sent changes: live, or from the log.
//!
//! A session has one stream. Either the hub sends it every change as it comes, or it is paused there, while the pages
//! of a sync or what a device missed go out; these jobs run one after the other. After the last one it catches up with
//! the hub from the log and is live again. So no session is sent an older state of a record after a newer one, and
//! nobody is refused because the session is busy.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;
use crate::gateway::fanout::feed;
use crate::gateway::fanout::hub::ChangeFilter;
use crate::gateway::fanout::send_queue::{EncodedEvent, QueuedFrame, SendQueue};
use crate::gateway::protocol::ServerEvent;
use crate::gateway::rates::RateShare;
use crate::gateway::session::removed_records::RemovedRecords;
use crate::ids::{RecordId, Seq};
use crate::limits;
use crate::model::access::ClassNumber;
use crate::model::error::{Code, Error};
use crate::model::read::PageSize;
use crate::proto::command::Intent;
use crate::proto::{Change, Delivered};
use crate::storage::BoxFuture;

/// A page from the log waits in the session's queue beside other events, so it is a fraction of it.
const PAGE: PageSize = PageSize { rows: 256, bytes: 512 << 10 };

const GONE: &str = "the changes after the cursor are gone: do a full sync";

/// Sends the pages of a sync; answers its own errors.
type Pages = Box<dyn FnOnce(Arc<Delivery>) -> BoxFuture<'static, ()> + Send>;

enum DeliveryJob {
    Pages(Pages),
    /// A device resumed from before where the session's stream begins.
    Missed {
        device_id: String,
        after: Seq,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryStage {
    /// Nothing was sent yet: the first `device_online` decides where the stream begins. Paused at the hub.
    Waiting,
    /// The hub sends changes as they come.
    Live,
    /// A task runs the jobs, then catches up. Paused at the hub.
    Busy,
    /// The session ends: nothing is sent any more. Paused at the hub.
    Ended,
}

/// What the session was sent: every change after `start` up to `at` that `filter` takes (or a newer one of its record),
/// in order, and perhaps other changes up to `may_have`.
struct DeliveryProgress {
    stage: DeliveryStage,
    filter: ChangeFilter,
    /// How often the filter was changed to one that takes more.
    widened: u64,
    /// The stream is whole from here on, for the filter.
    start: Seq,
    /// Kept while the session is paused; the hub knows it while it is live.
    at: Seq,
    /// Beside the stream the session may have been sent changes up to this one.
    may_have: Seq,
    /// The same of tables that it no longer wants.
    may_have_of_others: Seq,
    jobs: VecDeque<DeliveryJob>,
    /// Devices that have resumed: their counts follow when the session has caught up.
    resumed: Vec<String>,
}

/// What a sync must know of the stream beside it.
#[derive(Clone, Debug)]
pub(crate) struct SentBefore {
    filter: ChangeFilter,
    start: Seq,
    may_have: Seq,
    may_have_of_others: Seq,
}

impl SentBefore {
    /// The session may have been sent a newer state of the change's record. `version`: the record's newest change when
    /// the sync began, which is always sent.
    pub(crate) fn has_newer(&self, change: &Change, version: Option<Seq>) -> bool {
        let seq = Seq(change.seq);
        let may_have = if self.filter.takes(change) {
            seq <= self.may_have || version > Some(self.start)
        } else {
            seq <= self.may_have.max(self.may_have_of_others)
        };
        Some(seq) != version && may_have
    }
}

pub(crate) struct Delivery {
    gateway: Arc<Gateway>,
    send_queue: Arc<SendQueue>,
    /// Of the session's token.
    share: Arc<RateShare>,
    progress: Mutex<DeliveryProgress>,
    /// The session is gone.
    closed: CancellationToken,
}

impl Delivery {
    /// Of a session that has just been attached to the hub at `position`.
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        send_queue: Arc<SendQueue>,
        share: Arc<RateShare>,
        class: ClassNumber,
        position: Seq,
    ) -> Arc<Self> {
        let progress = DeliveryProgress {
            stage: DeliveryStage::Waiting,
            filter: ChangeFilter::of(None, class),
            widened: 0,
            start: position,
            at: position,
            may_have: Seq(0),
            may_have_of_others: Seq(0),
            jobs: VecDeque::new(),
            resumed: Vec::new(),
        };
        Arc::new(Self { gateway, send_queue, share, progress: Mutex::new(progress), closed: CancellationToken::new() })
    }

    /// The session is gone: its jobs end, and what waits for them.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// The tables whose changes the session wants from now on.
    pub(crate) fn subscribe(&self, filter: ChangeFilter) {
        let mut progress = self.progress.lock();
        if progress.filter == filter {
            return;
        }
        let sent_to = self.gateway.hub.subscribe(self.send_queue.id, filter.clone());
        // The stream of fewer tables is as whole as it was: nothing of it has to be sent again.
        let wider = !progress.filter.covers(&filter);
        progress.filter = filter;
        progress.widened += u64::from(wider);
        match progress.stage {
            DeliveryStage::Waiting => {}
            DeliveryStage::Live => progress.filter_changed(sent_to, wider),
            DeliveryStage::Busy | DeliveryStage::Ended => {
                let at = progress.at;
                progress.filter_changed(at, wider);
            }
        }
    }

    /// The number of the set of tables that the session wants.
    pub(crate) fn scope(&self) -> u64 {
        self.progress.lock().filter.scope()
    }

    /// Everything after this change comes after what is queued now, or came before it.
    pub(crate) fn position(&self) -> Seq {
        let progress = self.progress.lock();
        match progress.stage {
            DeliveryStage::Live => self.gateway.hub.sent_to(self.send_queue.id),
            _ => progress.at,
        }
    }

    /// Lets the stream begin, if it has not yet, where the session was attached.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut progress = self.progress.lock();
        if progress.stage == DeliveryStage::Waiting {
            self.resume_delivery(&mut progress);
        }
    }

    /// A device has everything up to `after`, and was told so: what came since then follows.
    pub(crate) fn resume(self: &Arc<Self>, device_id: String, after: Seq) -> Result<(), Error> {
        let mut progress = self.progress.lock();
        if progress.stage == DeliveryStage::Waiting {
            (progress.start, progress.at) = (after, after);
        }
        if after < progress.start {
            return self.push(progress, DeliveryJob::Missed { device_id, after });
        }
        if progress.resumed.len() < limits::SESSION_DEVICES {
            progress.resumed.push(device_id);
        }
        self.resume_delivery(&mut progress);
        Ok(())
    }

    /// Queues the pages of a sync. 2001 when too much waits.
    pub(crate) fn sync(self: &Arc<Self>, pages: Pages) -> Result<(), Error> {
        self.push(self.progress.lock(), DeliveryJob::Pages(pages))
    }

    fn push(
        self: &Arc<Self>,
        mut progress: parking_lot::MutexGuard<'_, DeliveryProgress>,
        job: DeliveryJob,
    ) -> Result<(), Error> {
        if progress.stage == DeliveryStage::Ended {
            return Err(Error::new(Code::SocketClosed, "the session ends"));
        }
        if progress.jobs.len() >= limits::SESSION_JOBS {
            let why = format!("{} syncs and resumes of this session are waiting", limits::SESSION_JOBS);
            return Err(Error::new(Code::SyncRequest, why));
        }
        progress.jobs.push_back(job);
        self.resume_delivery(&mut progress);
        Ok(())
    }

    /// Sends `answers`, which say why a resume failed, then ends the session, so that the client comes again: live
    /// changes would move its cursor past what it has missed.
    pub(crate) fn fail(self: &Arc<Self>, answers: Vec<EncodedEvent>, error: &Error) {
        let mut progress = self.progress.lock();
        if progress.stage == DeliveryStage::Live {
            progress.at = self.gateway.hub.pause(self.send_queue.id);
        }
        progress.stage = DeliveryStage::Ended;
        progress.jobs.clear();
        drop(progress);
        let mut why = Error::new(Code::SocketClosed, format!("the resume failed: connect again ({error})"));
        why.retry_after_ms = Some(error.retry_after_ms.unwrap_or(1_000));
        let delivery = self.clone();
        tokio::spawn(async move {
            for frame in answers {
                // The socket ends a session that takes nothing.
                if !delivery.send_queue.send_and_wait(frame).await {
                    return;
                }
            }
            delivery.send_queue.close(why);
        });
    }

    /// Makes the session live, or runs what has to come before that.
    fn resume_delivery(self: &Arc<Self>, progress: &mut DeliveryProgress) {
        match progress.stage {
            DeliveryStage::Busy | DeliveryStage::Ended => return,
            DeliveryStage::Live if progress.jobs.is_empty() => {
                return self.report(progress, self.gateway.hub.sent_to(self.send_queue.id));
            }
            DeliveryStage::Live => progress.at = self.gateway.hub.pause(self.send_queue.id),
            DeliveryStage::Waiting => {}
        }
        if self.try_live(progress).is_ok() {
            return;
        }
        progress.stage = DeliveryStage::Busy;
        let delivery = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = delivery.closed.cancelled() => {}
                () = delivery.run() => {}
            }
        });
    }

    /// An error: the newest change that has to be sent first; it may be one that was, if a job is waiting.
    fn try_live(&self, progress: &mut DeliveryProgress) -> Result<(), Seq> {
        if progress.stage == DeliveryStage::Ended || !progress.jobs.is_empty() {
            return Err(progress.at);
        }
        self.gateway.hub.go_live(self.send_queue.id, progress.at)?;
        progress.stage = DeliveryStage::Live;
        self.report(progress, progress.at);
        Ok(())
    }

    /// The resumed devices have been sent everything up to `seq`.
    fn report(&self, progress: &mut DeliveryProgress, seq: Seq) {
        for device_id in progress.resumed.drain(..) {
            let news = {
                let state = self.gateway.cluster.replica().state();
                let pending = state.sync_state(&device_id).is_some_and(|sync| Seq(sync.base_seq) < seq);
                pending || state.device(&device_id).is_some_and(|device| device.away)
            };
            if news {
                self.gateway.propose_aside(Intent::Delivered(Delivered { device_id, seq: seq.get() }));
            }
        }
    }

    async fn run(self: &Arc<Self>) {
        // A token that has read too much gets what its devices missed later; nothing of it is lost.
        if let Some(wait) = self.share.read_wait() {
            tokio::time::sleep(wait).await;
        }
        loop {
            let job = {
                let mut progress = self.progress.lock();
                match progress.stage {
                    DeliveryStage::Ended => return,
                    _ => progress.jobs.pop_front(),
                }
            };
            let done = match job {
                Some(DeliveryJob::Pages(pages)) => {
                    pages(self.clone()).await;
                    Ok(())
                }
                Some(DeliveryJob::Missed { device_id, after }) => self.send_missed(device_id, after).await,
                None => {
                    let live = self.try_live(&mut self.progress.lock());
                    let Err(to) = live else { return };
                    self.send_to(to).await
                }
            };
            if let Err(error) = done {
                tracing::debug!(%error, "a session cannot go on from the log");
                self.progress.lock().stage = DeliveryStage::Ended;
                let why = "what this session missed cannot be sent: connect again and resume from your cursor";
                return self.send_queue.close(Error::new(Code::SocketClosed, why));
            }
        }
    }

    /// Sends the stream from where it stands up to change `to`. Only while the session is paused.
    pub(crate) async fn send_to(&self, to: Seq) -> Result<(), Error> {
        loop {
            let (at, filter, widened) = {
                let progress = self.progress.lock();
                (progress.at, progress.filter.clone(), progress.widened)
            };
            if at >= to {
                return Ok(());
            }
            let page = self.page(at, to, &filter).await?;
            self.send(page.changes.iter()).await?;
            let mut progress = self.progress.lock();
            progress.at = page.seq;
            // This page was sent for the tables that the session wanted before.
            if progress.filter != filter {
                let wider = progress.widened != widened;
                progress.filter_changed(page.seq, wider);
            }
        }
    }

    /// Sends what came after `after`, before the stream began, except for records that the stream brings a newer state of.
    async fn send_missed(&self, device_id: String, after: Seq) -> Result<(), Error> {
        let (to, may_have, filter, widened) = {
            let progress = self.progress.lock();
            (progress.start, progress.may_have, progress.filter.clone(), progress.widened)
        };
        let mut from = after;
        while from < to {
            let page = self.page(from, to, &filter).await?;
            let (mut newest, head): (Vec<Option<Seq>>, Seq) = {
                let state = self.gateway.cluster.replica().state();
                let newest = page.changes.iter().map(|c| state.version_of(&c.table_name, RecordId(c.record_id)));
                (newest.collect(), state.meta().head())
            };
            if newest.contains(&None) {
                let removed = RemovedRecords::look(&self.gateway, from, head, &filter.of_any_class()).await?;
                let removed = removed.ok_or_else(|| Error::new(Code::BadCursor, GONE))?;
                for (newest, change) in newest.iter_mut().zip(&page.changes).filter(|(newest, _)| newest.is_none()) {
                    *newest = removed.newest(change);
                }
            }
            let brought = |c: &Change, newest: Option<Seq>| {
                let seq = Seq(c.seq);
                newest > Some(to) || (Some(seq) != newest && seq <= may_have)
            };
            let wanted = page.changes.iter().zip(&newest).filter(|(c, newest)| !brought(c, **newest));
            let wanted: Vec<_> = wanted.map(|(change, _)| change).collect();
            self.send(wanted.into_iter()).await?;
            from = page.seq;
        }
        let mut progress = self.progress.lock();
        if progress.widened == widened {
            progress.start = progress.start.min(after);
        }
        if progress.resumed.len() < limits::SESSION_DEVICES {
            progress.resumed.push(device_id);
        }
        Ok(())
    }

    async fn page(&self, after: Seq, to: Seq, filter: &ChangeFilter) -> Result<feed::Page, Error> {
        let page = feed::page(&self.gateway, after, to, PAGE, filter).await?;
        page.ok_or_else(|| Error::new(Code::BadCursor, GONE))
    }

    /// Sends changes, and waits until the socket has taken the last one.
    async fn send(&self, changes: impl DoubleEndedIterator<Item = &Arc<Change>>) -> Result<(), Error> {
        let epoch = self.gateway.epoch();
        let frame = |change| EncodedEvent::of(self.send_queue.transport, &ServerEvent::DataUpdate { change, epoch });
        let mut changes = changes;
        let Some(last) = changes.next_back() else { return Ok(()) };
        let last = frame(last);
        let mut bytes = last.size();
        for change in changes {
            let frame = frame(change);
            bytes += frame.size();
            self.send_queue.push(QueuedFrame { frame, taken: None });
        }
        self.share.read(bytes as u64);
        match self.send_queue.send_and_wait(last).await {
            true => Ok(()),
            false => Err(Error::new(Code::SocketClosed, "the session ended")),
        }
    }

    /// The pages of a sync as of change `head` follow. Returns what was sent before.
    pub(crate) fn pages_follow(&self, head: Seq) -> SentBefore {
        let mut progress = self.progress.lock();
        let sent = SentBefore {
            filter: progress.filter.clone(),
            start: progress.start,
            may_have: progress.may_have,
            may_have_of_others: progress.may_have_of_others,
        };
        progress.may_have = progress.may_have.max(head);
        sent
    }
}

impl DeliveryProgress {
    /// Up to `at` the session was sent what it wanted before.
    fn filter_changed(&mut self, at: Seq, wider: bool) {
        if wider {
            // The stream is whole from here on only.
            self.start = self.start.max(at);
            self.may_have = self.may_have.max(at);
        } else {
            self.may_have_of_others = self.may_have_of_others.max(at);
        }
    }
}
