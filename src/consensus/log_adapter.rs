//! The Raft log that openraft sees, over [`LogStore`].

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};

use xxhash_rust::xxh3::xxh3_64;

use super::codec::{decode_entry, decode_log_id, decode_vote, encode_entry, encode_log_id, encode_vote};
use super::runtime::spawn;
use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::ids::LogIndex;
use crate::limits::SHARED_ENTRIES;
use crate::proto::CommittedEntry;
use crate::storage::{LogStore, WriteAck};

/// Bytes of entries read for one append request.
const APPEND_BYTES: usize = 1 << 20;
/// Bytes of entries read at once for apply.
const APPLY_BYTES: usize = 4 << 20;

/// No linearizable read is served before this index is applied: the end of the log at boot. A restarted
/// leader may otherwise take an old commit index for the newest one.
#[derive(Debug, Default)]
pub(crate) struct ReadGate(AtomicU64);

impl ReadGate {
    pub(crate) fn index(&self) -> LogIndex {
        LogIndex(self.0.load(Ordering::SeqCst))
    }

    /// What was cut off the log was never committed: do not wait for it.
    fn lower(&self, index: LogIndex) {
        self.0.fetch_min(index.get(), Ordering::SeqCst);
    }
}

#[derive(Clone)]
pub(crate) struct LogAdapter {
    log: Arc<dyn LogStore>,
    gate: Arc<ReadGate>,
}

impl LogAdapter {
    pub(crate) fn new(log: Arc<dyn LogStore>) -> Self {
        let bounds = log.bounds();
        let end = bounds.last.or(bounds.purged.map(|(index, _)| index)).unwrap_or_default();
        Self { log, gate: Arc::new(ReadGate(AtomicU64::new(end.get()))) }
    }

    pub(crate) fn gate(&self) -> Arc<ReadGate> {
        self.gate.clone()
    }

    /// A few entries up to `last`, as far as the log has them, in order.
    pub(crate) async fn few_up_to(&self, last: LogIndex) -> io::Result<Vec<CommittedEntry>> {
        let mut few = Vec::new();
        if let Some((purged, mark)) = self.log.bounds().purged
            && purged <= last
            && purged.plus(SHARED_ENTRIES) > last
        {
            few.push(CommittedEntry { index: purged.get(), term: decode_log_id(&mark)?.leader_id.term, sum: 0 });
        }
        let first = LogIndex((last.get() + 1).saturating_sub(SHARED_ENTRIES));
        for entry in self.read(first, last.next(), APPEND_BYTES).await? {
            let sum = match &entry.payload {
                EntryPayload::Normal(batch) => xxh3_64(&batch.0).max(1),
                // How a membership is written may differ between versions.
                EntryPayload::Blank | EntryPayload::Membership(_) => 0,
            };
            few.push(CommittedEntry { index: entry.log_id.index, term: entry.log_id.leader_id.term, sum });
        }
        Ok(few)
    }

    /// The id of the entry at this index; `None`: the log does not have it, or not any more.
    pub(crate) async fn id_of(&self, index: LogIndex) -> io::Result<Option<LogId>> {
        if let Some((purged, mark)) = self.log.bounds().purged
            && purged == index
        {
            return decode_log_id(&mark).map(Some);
        }
        let found = self.read(index, index.next(), 0).await?.pop();
        Ok(found.map(|entry| entry.log_id))
    }

    /// Entries as they are kept, at least one if there is one.
    pub(crate) async fn raw(
        &self,
        from: LogIndex,
        to: LogIndex,
        max_bytes: usize,
    ) -> io::Result<Vec<(LogIndex, Bytes)>> {
        self.log.read(from, to, max_bytes).await
    }

    async fn read(&self, from: LogIndex, to: LogIndex, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let bounds = self.log.bounds();
        let from = from.max(bounds.purged.as_ref().map_or(LogIndex(0), |(index, _)| index.next()));
        let to = to.min(bounds.last.map_or(LogIndex(0), LogIndex::next));
        if from >= to {
            return Ok(Vec::new());
        }
        let entries = self.log.read(from, to, max_bytes).await?;
        entries.into_iter().map(|(index, bytes)| decode_entry(index, bytes)).collect()
    }
}

async fn acknowledged(ack: WriteAck) -> io::Result<()> {
    ack.await.unwrap_or_else(|_| Err(io::Error::other("the log thread ended")))
}

fn ends(range: &impl RangeBounds<u64>) -> (LogIndex, LogIndex) {
    let from = match range.start_bound() {
        Bound::Included(from) => LogIndex(*from),
        Bound::Excluded(before) => LogIndex(*before).next(),
        Bound::Unbounded => LogIndex(0),
    };
    let to = match range.end_bound() {
        Bound::Included(last) => LogIndex(*last).next(),
        Bound::Excluded(to) => LogIndex(*to),
        Bound::Unbounded => LogIndex::MAX,
    };
    (from, to)
}

impl RaftLogReader<TypeConfig> for LogAdapter {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = ends(&range);
        self.read(from, to, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.log.vote().map(|bytes| decode_vote(&bytes)).transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(LogIndex(start), LogIndex(end), APPEND_BYTES).await
    }

    /// In pieces: what is to be applied after a restart may be the whole log.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = ends(&range);
        let start = (self.clone(), from, Vec::new().into_iter());
        Box::pin(stream::try_unfold(start, move |(reader, mut from, mut piece)| async move {
            loop {
                if let Some(entry) = piece.next() {
                    return Ok(Some((entry, (reader, from, piece))));
                }
                if from >= to {
                    return Ok(None);
                }
                let entries = reader.read(from, to, APPLY_BYTES).await?;
                match entries.last() {
                    Some(last) => from = LogIndex(last.log_id.index).next(),
                    None => return Ok(None),
                }
                piece = entries.into_iter();
            }
        }))
    }
}

impl RaftLogStorage<TypeConfig> for LogAdapter {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let bounds = self.log.bounds();
        let last_purged_log_id = bounds.purged.map(|(_, mark)| decode_log_id(&mark)).transpose()?;
        let last_log_id = match bounds.last {
            Some(last) => self.read(last, last.next(), usize::MAX).await?.pop().map(|entry| entry.log_id),
            None => None,
        };
        Ok(LogState { last_purged_log_id, last_log_id: last_log_id.or(last_purged_log_id) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        acknowledged(self.log.save_vote(encode_vote(vote))).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.save_committed(committed.as_ref().map(encode_log_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.log.committed().map(|bytes| decode_log_id(&bytes)).transpose()
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded: io::Result<Vec<_>> =
            entries.into_iter().map(|entry| Ok((LogIndex(entry.log_id.index), encode_entry(&entry)?))).collect();
        self.log.append(encoded?, Box::new(move |done| callback.io_completed(done)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let index = last.map(|id| LogIndex(id.index));
        if let Some(committed) = self.read_committed().await?
            && LogIndex(committed.index) > index.unwrap_or_default()
        {
            return Err(io::Error::other(format!(
                "the leader wants entries after {} replaced, but this node knows entry {} as committed: the leader has another \
                 history, perhaps because nodes were put back to older copies of their folders; keep this folder, find out \
                 which history is right, and add the other nodes again under new numbers",
                index.unwrap_or_default(),
                committed.index
            )));
        }
        self.gate.lower(index.unwrap_or_default());
        acknowledged(self.log.truncate_after(index)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        // Purging makes the rows durable first, which takes a while; openraft needs only the order.
        let ack = self.log.purge(LogIndex(upto.index), encode_log_id(&upto));
        spawn(async move {
            if let Err(error) = acknowledged(ack).await {
                tracing::error!(%error, "purging the log failed");
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::memory;

    #[tokio::test]
    async fn what_is_known_as_committed_is_not_cut_off() {
        let store = memory::stores().log;
        let blank = |index| (LogIndex(index), Bytes::from_static(b"\x01\0\0\0\0\0\0\0\x01"));
        store.append((0..6).map(blank).collect(), Box::new(|_| {}));
        let mut log = LogAdapter::new(store.clone());
        log.save_committed(Some(LogId::new_term_index(1, 4))).await.unwrap();
        let error = log.truncate_after(Some(LogId::new_term_index(1, 3))).await.unwrap_err();
        assert!(error.to_string().contains("another history"), "{error}");
        assert_eq!(store.bounds().last, Some(LogIndex(5)));
        log.truncate_after(Some(LogId::new_term_index(1, 4))).await.unwrap();
        assert_eq!(store.bounds().last, Some(LogIndex(4)));
    }

    #[tokio::test]
    async fn the_newest_entries_are_told_by_term_and_commands() {
        let store = memory::stores().log;
        let entry = |index: u64| {
            (LogIndex(index), Bytes::from([b"\x02\0\0\0\0\0\0\0\x05".as_slice(), &[index as u8]].concat()))
        };
        let blank = (LogIndex(40), Bytes::from_static(b"\x01\0\0\0\0\0\0\0\x06"));
        store.append((0..40).map(entry).chain([blank]).collect(), Box::new(|_| {}));
        let mut log = LogAdapter::new(store);
        let told = log.few_up_to(LogIndex(40)).await.unwrap();
        assert_eq!((told.len() as u64, told[0].index), (SHARED_ENTRIES, 41 - SHARED_ENTRIES));
        assert_eq!((told[14].term, told[15].term, told[15].sum), (5, 6, 0));
        assert!(told[13].sum != 0 && told[13].sum != told[14].sum);
        log.purge(LogId::new_term_index(5, 38)).await.unwrap();
        let told = log.few_up_to(LogIndex(39)).await.unwrap();
        assert_eq!(
            told.iter().map(|entry| (entry.index, entry.sum != 0)).collect::<Vec<_>>(),
            [(38, false), (39, true)]
        );
        assert_eq!(log.few_up_to(LogIndex(20)).await.unwrap(), []);
    }

    #[tokio::test]
    async fn the_boot_gate_is_the_end_of_the_log_and_sinks_with_it() {
        let store = memory::stores().log;
        assert_eq!(LogAdapter::new(store.clone()).gate().index(), LogIndex(0));
        let blank = |index| (LogIndex(index), Bytes::from_static(b"\x01\0\0\0\0\0\0\0\x01"));
        store.append((0..6).map(blank).collect(), Box::new(|_| {}));
        let mut log = LogAdapter::new(store.clone());
        let gate = log.gate();
        assert_eq!(gate.index(), LogIndex(5));
        log.truncate_after(Some(LogId::new_term_index(1, 3))).await.unwrap();
        assert_eq!(gate.index(), LogIndex(3));
        store.append((4..9).map(blank).collect(), Box::new(|_| {}));
        assert_eq!(gate.index(), LogIndex(3), "only what was there at boot counts");
        log.purge(LogId::new_term_index(1, 8)).await.unwrap();
        assert_eq!(LogAdapter::new(store).gate().index(), LogIndex(8));
    }
}
