//! Makes a stopped node's data folder a cluster of one, when most of the other voters' disks are lost for good.
//!
//! What a majority had acknowledged may be lost with them, so an operator decides it, and what goes on is another history:
//! it has an epoch of its own, which every handshake and every cursor carries. In the log stands one more entry, the
//! membership of this node alone; at the next start it elects itself, and writes the epoch into the state
//! (`ClusterRecovered`) before it serves anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use super::codec::{decode_entry, encode_entry, encode_log_id, encode_vote};
use super::log_adapter::LogAdapter;
use super::node::cover_rows;
use super::replica::Replica;
use super::segment::SegmentFile;
use super::state_machine::{StateMachine, decode_applied};
use super::types::{Entry, LogId, MemberAddress, RaftMembership, Vote};
use crate::ids::{LogIndex, NodeId, Seq, UnixMs};
use crate::model::state::{State, decode_batch};
use crate::proto::{Applied, Meta, NodeBoot};
use crate::storage::{StartMark, Stores};

/// Entries looked through at once.
const STEP: u64 = 256;
/// Bytes of a file read at once.
const PIECE: usize = 1 << 20;

/// How far a restore goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestorePoint {
    /// As far as there is something.
    End,
    /// Up to this entry of the log.
    Entry(LogIndex),
    /// Up to this change, and what was applied with it.
    Change(Seq),
    /// Nothing that came later.
    Time(UnixMs),
}

/// What a data folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FolderContents {
    pub cluster: String,
    pub epoch: u64,
    pub members: BTreeMap<NodeId, MemberAddress>,
    pub voters: BTreeSet<NodeId>,
    /// Nodes that were taken out of the cluster.
    pub removed: Vec<NodeId>,
    /// The last entry of the log.
    pub last_entry: LogIndex,
    /// The newest change that was applied.
    pub head_seq: u64,
    /// The time of what was applied last.
    pub applied_ms: UnixMs,
}

/// An open data folder of a node that does not run.
pub(crate) struct StoppedNode {
    stores: Stores,
    replica: std::sync::Arc<Replica>,
    pub contents: FolderContents,
}

impl StoppedNode {
    /// Looks into a folder. Blocks on the disk.
    pub(crate) async fn open(mut stores: Stores) -> io::Result<Self> {
        let tables = std::mem::replace(&mut stores.tables, Box::new(crate::model::tables::MemoryTables::default()));
        let (replica, _) = Replica::new(State::open(tables).map_err(io::Error::other)?);
        let contents = contents(&stores, &replica).await?;
        Ok(Self { stores, replica, contents })
    }

    /// Makes the folder that of a cluster of `node` alone, with another epoch. Durable when it resolves; once more after a
    /// crash in the middle gives the same, with one more epoch.
    pub(crate) async fn make_alone(&self, node: NodeId, member: MemberAddress, epoch: u64) -> io::Result<()> {
        let log = &self.stores.log;
        // First what keeps the other nodes away.
        self.stores.starts.save_epoch(epoch).await?;
        cover_rows(&**log, &*self.stores.snapshots, &self.replica).await?;
        let applied = self.replica.applied();
        if LogIndex(applied.index) > log_end(&self.stores) {
            acknowledged(log.purge(LogIndex(applied.index), applied.last_log_id)).await?;
        }
        let mut adapter = LogAdapter::new(log.clone());
        let last = adapter.get_log_state().await?.last_log_id;
        let voted = adapter.read_vote().await?.map_or(0, |vote| vote.leader_id.term);
        let Some(last) = last else { return Err(io::Error::other("the log is empty")) };
        let term = voted.max(last.leader_id.term) + 1;
        // As a leader leaves its folder.
        acknowledged(log.save_vote(encode_vote(&Vote::new_committed(term, node)))).await?;
        let alone = RaftMembership::new(vec![BTreeSet::from([node])], BTreeMap::from([(node, member)]));
        let payload = EntryPayload::Membership(alone.map_err(io::Error::other)?);
        let entry = Entry { log_id: LogId::new_term_index(term, last.index + 1), payload };
        let (done, appended) = oneshot::channel();
        let told = Box::new(move |result| {
            let _ = done.send(result);
        });
        log.append(vec![(LogIndex(entry.log_id.index), encode_entry(&entry)?)], told);
        acknowledged(appended).await
    }

    /// Puts all rows of a snapshot into a folder that holds nothing yet, and proves that they are those of the file.
    pub(crate) async fn restore(stores: Stores, from: &Path) -> io::Result<Self> {
        let file = File::open(from)?;
        let mut receiver = stores.snapshots.receive().await?;
        let mut at = 0;
        loop {
            let file = file.try_clone()?;
            let piece = tokio::task::spawn_blocking(move || read_piece(file, at)).await.map_err(io::Error::other)??;
            if piece.is_empty() {
                break;
            }
            let end = at + piece.len() as u64;
            receiver.write(at, piece).await?;
            at = end;
        }
        let snapshot = receiver.finish().await?;
        let applied = snapshot.applied.clone();
        stores.snapshots.install(snapshot).await?;
        let restored = Self::open(stores).await?;
        if restored.replica.applied() != applied {
            return Err(io::Error::other("the rows that were restored are not those of the file"));
        }
        Ok(restored)
    }

    /// Applies what came after, up to a point; true: the point is reached, and there may be more in the file.
    pub(crate) async fn go_on_with(&self, segment: &Path, until: RestorePoint) -> io::Result<bool> {
        let mut file = SegmentFile::new(BufReader::with_capacity(PIECE, File::open(segment)?))?;
        let applied = self.replica.applied();
        let epoch = self.replica.state().meta().epoch;
        if encode_log_id(&file.before) != applied.last_log_id || file.epoch != epoch {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it does not go on where the rows end (entry {})", applied.index),
            ));
        }
        let (snapshots, pressure) = (self.stores.snapshots.clone(), self.stores.pressure.clone());
        let machine = StateMachine::new(self.replica.clone(), snapshots, pressure);
        loop {
            // One entry is as large as a request at most.
            let Some((index, bytes)) = file.next()? else { return Ok(false) };
            let entry = decode_entry(index, bytes)?;
            if self.is_reached(until, &entry) {
                return Ok(true);
            }
            machine.apply_entry(entry).await?;
        }
    }

    /// Whether `next` is behind the point.
    fn is_reached(&self, until: RestorePoint, next: &Entry) -> bool {
        match until {
            RestorePoint::End => false,
            RestorePoint::Entry(last) => LogIndex(next.log_id.index) > last,
            RestorePoint::Change(last) => self.replica.state().meta().head() >= last,
            RestorePoint::Time(last) => match &next.payload {
                EntryPayload::Normal(batch) => {
                    decode_batch(batch.0.clone()).commands.iter().any(|command| UnixMs(command.at_ms) > last)
                }
                EntryPayload::Blank | EntryPayload::Membership(_) => false,
            },
        }
    }

    /// What the rows are of.
    pub(crate) fn reached(&self) -> (Applied, Meta) {
        (self.replica.applied(), self.replica.state().meta().clone())
    }

    /// The next start of `node` here is newer than any that the rows know of it.
    pub(crate) async fn go_on_from_its_last_start(&self, node: NodeId) -> io::Result<()> {
        let known = self.replica.state().boot_of(node).copied();
        let Some(NodeBoot { boot, instance, .. }) = known else { return Ok(()) };
        self.stores.starts.save(StartMark { boot, instance, took_part: true }).await
    }

    /// Lets go of the folder.
    pub(crate) async fn close(self) -> io::Result<()> {
        self.stores.close.close().await
    }
}

fn read_piece(file: File, at: u64) -> io::Result<Bytes> {
    let mut piece = vec![0; PIECE];
    let read = file.read_at(&mut piece, at)?;
    piece.truncate(read);
    Ok(piece.into())
}

async fn acknowledged(ack: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    ack.await.unwrap_or_else(|_| Err(io::Error::other("the log thread ended")))
}

fn log_end(stores: &Stores) -> LogIndex {
    let bounds = stores.log.bounds();
    bounds.last.or(bounds.purged.map(|(index, _)| index)).unwrap_or_default()
}

async fn contents(stores: &Stores, replica: &Replica) -> io::Result<FolderContents> {
    let (_, mut membership) = decode_applied(&replica.applied())?;
    // A newer one may not be applied yet.
    let mut log = LogAdapter::new(stores.log.clone());
    let (mut from, end) = (replica.applied_index(), log_end(stores));
    while from <= end {
        for entry in log.try_get_log_entries(from.get()..from.plus(STEP).get()).await? {
            if let EntryPayload::Membership(newer) = entry.payload {
                membership = super::types::StoredMembership::new(Some(entry.log_id), newer);
            }
        }
        from = from.plus(STEP);
    }
    let state = replica.state();
    let meta = state.meta();
    Ok(FolderContents {
        cluster: meta.cluster_id.clone(),
        epoch: meta.epoch,
        members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
        voters: membership.voter_ids().collect(),
        removed: meta.removed_nodes.iter().copied().map(NodeId).collect(),
        last_entry: end.max(LogIndex(state.applied().index)),
        head_seq: meta.head_seq,
        applied_ms: UnixMs(meta.now_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryDisk;

    #[tokio::test]
    async fn an_empty_folder_holds_nothing_to_recover() {
        let stopped = StoppedNode::open(MemoryDisk::default().open()).await.unwrap();
        assert_eq!(stopped.contents, FolderContents::default());
        assert!(stopped.make_alone(NodeId(1), MemberAddress::default(), 7).await.is_err());
    }
}
