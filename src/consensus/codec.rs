//! Entries, log ids, votes and memberships as bytes on disk and between nodes.
//!
//! These layouts are part of the format (`limits`-free, big-endian, no padding): a newer version must
//! read them for ever. A new kind of entry gets a new first byte; nothing that exists changes.
//!
//! | what | bytes |
//! |---|---|
//! | log id | term `u64`, index `u64` |
//! | vote | term `u64`, node `u64`, committed `u8` (0, 1) |
//! | entry | kind `u8`, term `u64`, payload; the index is known from where the entry stands |
//! | entry, kind 1 | blank: no payload |
//! | entry, kind 2 | commands: a `proto::Batch` |
//! | entry, kind 3 | membership: JSON of openraft's `Membership` with [`MemberAddress`](super::types::Member)s |

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;

use super::types::{EncodedBatch, Entry, LogId, RaftMembership, StoredMembership, Vote};
use crate::ids::{LogIndex, NodeId};

/// The format of all of the above and of `wire`: peers with another one are turned away.
pub(crate) const FORMAT: u32 = 1;

const BLANK: u8 = 1;
const COMMANDS: u8 = 2;
const MEMBERSHIP: u8 = 3;
const ENTRY_HEADER: usize = 9;

pub(crate) fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} does not decode"))
}

pub(crate) fn put_log_id(to: &mut impl BufMut, id: &LogId) {
    to.put_u64(*id.leader_id);
    to.put_u64(id.index);
}

pub(crate) fn encode_log_id(id: &LogId) -> Bytes {
    let mut bytes = BytesMut::with_capacity(16);
    put_log_id(&mut bytes, id);
    bytes.freeze()
}

pub(crate) fn get_log_id(from: &mut impl Buf) -> io::Result<LogId> {
    let mut field = || from.try_get_u64().map_err(|_| corrupt("log id"));
    Ok(LogId::new_term_index(field()?, field()?))
}

pub(crate) fn decode_log_id(mut bytes: &[u8]) -> io::Result<LogId> {
    get_log_id(&mut bytes)
}

pub(crate) fn put_vote(to: &mut impl BufMut, vote: &Vote) {
    to.put_u64(vote.leader_id.term);
    to.put_u64(vote.leader_id.voted_for.get());
    to.put_u8(vote.committed.into());
}

pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut bytes = BytesMut::with_capacity(17);
    put_vote(&mut bytes, vote);
    bytes.freeze()
}

pub(crate) fn get_vote(from: &mut impl Buf) -> io::Result<Vote> {
    let term = from.try_get_u64().map_err(|_| corrupt("vote"))?;
    let node = from.try_get_u64().map_err(|_| corrupt("vote"))?;
    match from.try_get_u8() {
        Ok(0) => Ok(Vote::new(term, NodeId(node))),
        Ok(1) => Ok(Vote::new_committed(term, NodeId(node))),
        _ => Err(corrupt("vote")),
    }
}

pub(crate) fn decode_vote(mut bytes: &[u8]) -> io::Result<Vote> {
    get_vote(&mut bytes)
}

/// Bytes that [`put_entry`] writes for an entry, if it is no membership.
pub(crate) fn entry_len(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(batch) => ENTRY_HEADER + batch.0.len(),
        _ => ENTRY_HEADER,
    }
}

pub(crate) fn put_entry(to: &mut impl BufMut, entry: &Entry) -> io::Result<()> {
    let kind = match entry.payload {
        EntryPayload::Blank => BLANK,
        EntryPayload::Normal(_) => COMMANDS,
        EntryPayload::Membership(_) => MEMBERSHIP,
    };
    to.put_u8(kind);
    to.put_u64(*entry.log_id.leader_id);
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Normal(batch) => to.put_slice(&batch.0),
        EntryPayload::Membership(membership) => to.put_slice(&serde_json::to_vec(membership)?),
    }
    Ok(())
}

pub(crate) fn encode_entry(entry: &Entry) -> io::Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(entry_len(entry));
    put_entry(&mut bytes, entry)?;
    Ok(bytes.freeze())
}

/// The entry at `index`. Commands share the given bytes.
pub(crate) fn decode_entry(index: LogIndex, mut bytes: Bytes) -> io::Result<Entry> {
    let kind = bytes.try_get_u8().map_err(|_| corrupt("entry"))?;
    let term = bytes.try_get_u64().map_err(|_| corrupt("entry"))?;
    let payload = match kind {
        BLANK => EntryPayload::Blank,
        COMMANDS => EntryPayload::Normal(EncodedBatch(bytes)),
        MEMBERSHIP => EntryPayload::Membership(decode_membership(&bytes)?),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unknown kind of entry: {kind}"))),
    };
    Ok(Entry { log_id: LogId::new_term_index(term, index.get()), payload })
}

fn decode_membership(bytes: &[u8]) -> io::Result<RaftMembership> {
    serde_json::from_slice(bytes).map_err(|_| corrupt("membership"))
}

/// The membership that the state machine keeps with its rows, JSON.
pub(crate) fn encode_stored_membership(membership: &StoredMembership) -> io::Result<Bytes> {
    Ok(serde_json::to_vec(membership)?.into())
}

/// Empty bytes stand for "none yet".
pub(crate) fn decode_stored_membership(bytes: &[u8]) -> io::Result<StoredMembership> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    serde_json::from_slice(bytes).map_err(|_| corrupt("membership"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::super::types::MemberAddress;
    use super::*;

    pub(crate) fn any_log_id() -> impl Strategy<Value = LogId> {
        (any::<u64>(), any::<u64>()).prop_map(|(term, index)| LogId::new_term_index(term, index))
    }

    pub(crate) fn any_vote() -> impl Strategy<Value = Vote> {
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| {
            if committed { Vote::new_committed(term, NodeId(node)) } else { Vote::new(term, NodeId(node)) }
        })
    }

    pub(crate) fn any_payload()
    -> impl Strategy<Value = <super::super::types::TypeConfig as openraft::RaftTypeConfig>::Payload> {
        let membership = (proptest::collection::btree_set((1u64..9).prop_map(NodeId), 1..4), "[ -~]{0,12}").prop_map(
            |(voters, text)| {
                let member = |id: &NodeId| (*id, MemberAddress { raft: format!("{text}:{id}"), gateway: text.clone() });
                let nodes: BTreeMap<NodeId, MemberAddress> = voters.iter().map(member).collect();
                RaftMembership::new(vec![voters.into_iter().collect::<BTreeSet<_>>()], nodes).unwrap()
            },
        );
        prop_oneof![
            Just(EntryPayload::Blank),
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(|b| EntryPayload::Normal(EncodedBatch(b.into()))),
            membership.prop_map(EntryPayload::Membership),
        ]
    }

    proptest! {
        #[test]
        fn log_ids_and_votes_come_back(id in any_log_id(), vote in any_vote()) {
            prop_assert_eq!(decode_log_id(&encode_log_id(&id)).unwrap(), id);
            prop_assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        }

        #[test]
        fn entries_come_back(log_id in any_log_id(), payload in any_payload()) {
            let entry = Entry { log_id, payload };
            prop_assert_eq!(decode_entry(LogIndex(log_id.index), encode_entry(&entry).unwrap()).unwrap(), entry);
        }

        #[test]
        fn torn_bytes_are_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode_log_id(&bytes);
            let _ = decode_vote(&bytes);
            let _ = decode_entry(LogIndex(1), bytes.into());
        }
    }

    /// What version 1 wrote. If this fails, old logs no longer open.
    #[test]
    fn the_layout_of_format_1_stands() {
        let at = |payload| Entry { log_id: LogId::new_term_index(3, 7), payload };
        let commands = at(EntryPayload::Normal(EncodedBatch(Bytes::from_static(b"ab"))));
        assert_eq!(&encode_entry(&commands).unwrap()[..], b"\x02\0\0\0\0\0\0\0\x03ab");
        assert_eq!(&encode_entry(&at(EntryPayload::Blank)).unwrap()[..], b"\x01\0\0\0\0\0\0\0\x03");
        let one = BTreeMap::from([(NodeId(1), MemberAddress { raft: "a:1".into(), gateway: "b:2".into() })]);
        let membership =
            at(EntryPayload::Membership(RaftMembership::new(vec![BTreeSet::from([NodeId(1)])], one).unwrap()));
        let json = br#"{"configs":[[1]],"nodes":{"1":{"raft":"a:1","gateway":"b:2"}}}"#;
        let mut bytes = b"\x03\0\0\0\0\0\0\0\x03".to_vec();
        bytes.extend_from_slice(json);
        assert_eq!(encode_entry(&membership).unwrap(), bytes);
        assert!(decode_entry(LogIndex(7), Bytes::from_static(b"\x09\0\0\0\0\0\0\0\x03")).is_err());
    }
}
