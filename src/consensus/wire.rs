//! The bodies of Raft's remote calls as bytes. Layouts as in [`codec`](super::codec), same rules.
//!
//! An optional log id is a `u8` (0, 1) and the log id if 1.
//!
//! | body | bytes |
//! |---|---|
//! | append | vote, optional previous log id, optional commit, first index `u64`, number of entries `u32`, for each: length `u32`, entry |
//! | append's answer | 0: matching (optional log id); 1: conflict (optional log id); 2: higher vote |
//! | vote, pre-vote | vote, optional last log id, leadership transfer `u8` |
//! | vote's answer | vote, granted `u8`, optional last log id |
//! | transfer | vote of the leader, to `u64`, optional last log id |
//! | transfer's answer | 0: accepted; 1: vote changed (expected, actual); 2: log not flushed (two optional log ids) |
//! | snapshot header | vote, JSON of openraft's `SnapshotMeta` |
//! | snapshot's answer | vote |

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::codec::{corrupt, decode_entry, entry_len, get_log_id, get_vote, put_entry, put_log_id, put_vote};
use super::types::{LogId, SnapshotMeta, TypeConfig, Vote};
use crate::ids::{LogIndex, NodeId};

fn put_optional(to: &mut impl BufMut, id: Option<&LogId>) {
    match id {
        None => to.put_u8(0),
        Some(id) => {
            to.put_u8(1);
            put_log_id(to, id);
        }
    }
}

fn get_optional(from: &mut impl Buf) -> io::Result<Option<LogId>> {
    match from.try_get_u8() {
        Ok(0) => Ok(None),
        Ok(1) => get_log_id(from).map(Some),
        _ => Err(corrupt("optional log id")),
    }
}

fn get_bool(from: &mut impl Buf) -> io::Result<bool> {
    match from.try_get_u8() {
        Ok(0) => Ok(false),
        Ok(1) => Ok(true),
        _ => Err(corrupt("flag")),
    }
}

pub(crate) fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> io::Result<Bytes> {
    let size: usize = request.entries.iter().map(|entry| entry_len(entry) + 4).sum();
    let mut to = BytesMut::with_capacity(size + 64);
    put_vote(&mut to, &request.vote);
    put_optional(&mut to, request.prev_log_id.as_ref());
    put_optional(&mut to, request.leader_commit.as_ref());
    to.put_u64(request.entries.first().map_or(0, |entry| entry.log_id.index));
    to.put_u32(u32::try_from(request.entries.len()).map_err(|_| corrupt("append"))?);
    for entry in &request.entries {
        let at = to.len();
        to.put_u32(0);
        put_entry(&mut to, entry)?;
        let len = u32::try_from(to.len() - at - 4).map_err(|_| corrupt("append"))?;
        to[at..at + 4].copy_from_slice(&len.to_be_bytes());
    }
    Ok(to.freeze())
}

/// The batches of the entries share the given bytes.
pub(crate) fn decode_append(mut from: Bytes) -> io::Result<AppendEntriesRequest<TypeConfig>> {
    let vote = get_vote(&mut from)?;
    let prev_log_id = get_optional(&mut from)?;
    let leader_commit = get_optional(&mut from)?;
    let first = from.try_get_u64().map_err(|_| corrupt("append"))?;
    let count = from.try_get_u32().map_err(|_| corrupt("append"))?;
    // Never trust a count with memory: an entry takes at least its length and header.
    let mut entries = Vec::with_capacity((count as usize).min(from.len() / 8));
    for nth in 0..u64::from(count) {
        let len = from.try_get_u32().map_err(|_| corrupt("append"))? as usize;
        if from.len() < len {
            return Err(corrupt("append"));
        }
        let index = first.checked_add(nth).ok_or_else(|| corrupt("append"))?;
        entries.push(decode_entry(LogIndex(index), from.split_to(len))?);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(crate) fn encode_append_answer(answer: &StreamAppendResult<TypeConfig>) -> Bytes {
    let mut to = BytesMut::with_capacity(18);
    match answer {
        Ok(matching) => {
            to.put_u8(0);
            put_optional(&mut to, matching.as_ref());
        }
        Err(StreamAppendError::Conflict(at)) => {
            to.put_u8(1);
            put_optional(&mut to, Some(at));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            to.put_u8(2);
            put_vote(&mut to, vote);
        }
    }
    to.freeze()
}

/// `previous` is the request's previous log id: what a conflict without a log id is about.
pub(crate) fn decode_append_answer(
    mut from: Bytes,
    previous: Option<LogId>,
) -> io::Result<StreamAppendResult<TypeConfig>> {
    match from.try_get_u8() {
        Ok(0) => Ok(Ok(get_optional(&mut from)?)),
        Ok(1) => {
            let at = get_optional(&mut from)?.or(previous).ok_or_else(|| corrupt("append's answer"))?;
            Ok(Err(StreamAppendError::Conflict(at)))
        }
        Ok(2) => Ok(Err(StreamAppendError::HigherVote(get_vote(&mut from)?))),
        _ => Err(corrupt("append's answer")),
    }
}

/// The unary form of the same answer.
pub(crate) fn encode_append_response(answer: &AppendEntriesResponse<TypeConfig>) -> Bytes {
    let mut to = BytesMut::with_capacity(18);
    match answer {
        AppendEntriesResponse::Success => to.put_slice(&[0, 0]),
        AppendEntriesResponse::PartialSuccess(matching) => {
            to.put_u8(0);
            put_optional(&mut to, matching.as_ref());
        }
        AppendEntriesResponse::Conflict => to.put_slice(&[1, 0]),
        AppendEntriesResponse::HigherVote(vote) => {
            to.put_u8(2);
            put_vote(&mut to, vote);
        }
    }
    to.freeze()
}

pub(crate) fn decode_append_response(mut from: Bytes) -> io::Result<AppendEntriesResponse<TypeConfig>> {
    match from.try_get_u8() {
        Ok(0) => Ok(match get_optional(&mut from)? {
            None => AppendEntriesResponse::Success,
            Some(matching) => AppendEntriesResponse::PartialSuccess(Some(matching)),
        }),
        Ok(1) => Ok(AppendEntriesResponse::Conflict),
        Ok(2) => Ok(AppendEntriesResponse::HigherVote(get_vote(&mut from)?)),
        _ => Err(corrupt("append's answer")),
    }
}

pub(crate) fn encode_vote_request(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut to = BytesMut::with_capacity(36);
    put_vote(&mut to, &request.vote);
    put_optional(&mut to, request.last_log_id.as_ref());
    to.put_u8(request.leadership_transfer.into());
    to.freeze()
}

pub(crate) fn decode_vote_request(mut from: Bytes) -> io::Result<VoteRequest<TypeConfig>> {
    let mut request = VoteRequest::new(get_vote(&mut from)?, get_optional(&mut from)?);
    request.leadership_transfer = get_bool(&mut from)?;
    Ok(request)
}

pub(crate) fn encode_vote_response(response: &VoteResponse<TypeConfig>) -> Bytes {
    let mut to = BytesMut::with_capacity(36);
    put_vote(&mut to, &response.vote);
    to.put_u8(response.vote_granted.into());
    put_optional(&mut to, response.last_log_id.as_ref());
    to.freeze()
}

pub(crate) fn decode_vote_response(mut from: Bytes) -> io::Result<VoteResponse<TypeConfig>> {
    let vote = get_vote(&mut from)?;
    let granted = get_bool(&mut from)?;
    Ok(VoteResponse::new(vote, get_optional(&mut from)?, granted))
}

pub(crate) fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut to = BytesMut::with_capacity(42);
    put_vote(&mut to, request.from_leader());
    to.put_u64(request.to_node_id().get());
    put_optional(&mut to, request.last_log_id());
    to.freeze()
}

pub(crate) fn decode_transfer(mut from: Bytes) -> io::Result<TransferLeaderRequest<TypeConfig>> {
    let vote = get_vote(&mut from)?;
    let to = from.try_get_u64().map_err(|_| corrupt("transfer"))?;
    Ok(TransferLeaderRequest::new(vote, NodeId(to), get_optional(&mut from)?))
}

pub(crate) fn encode_transfer_response(response: &TransferLeaderResponse<TypeConfig>) -> Bytes {
    let mut to = BytesMut::with_capacity(36);
    match response {
        Ok(()) => to.put_u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            to.put_u8(1);
            put_vote(&mut to, expected);
            put_vote(&mut to, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            to.put_u8(2);
            put_optional(&mut to, expected.as_ref());
            put_optional(&mut to, actual.as_ref());
        }
    }
    to.freeze()
}

pub(crate) fn decode_transfer_response(mut from: Bytes) -> io::Result<TransferLeaderResponse<TypeConfig>> {
    match from.try_get_u8() {
        Ok(0) => Ok(Ok(())),
        Ok(1) => {
            let (expected, actual) = (get_vote(&mut from)?, get_vote(&mut from)?);
            Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
        }
        Ok(2) => {
            let (expected, actual) = (get_optional(&mut from)?, get_optional(&mut from)?);
            Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
        }
        _ => Err(corrupt("transfer's answer")),
    }
}

pub(crate) fn encode_snapshot_header(vote: &Vote, meta: &SnapshotMeta) -> io::Result<Bytes> {
    let mut to = BytesMut::with_capacity(256);
    put_vote(&mut to, vote);
    to.put_slice(&serde_json::to_vec(meta)?);
    Ok(to.freeze())
}

pub(crate) fn decode_snapshot_header(mut from: Bytes) -> io::Result<(Vote, SnapshotMeta)> {
    let vote = get_vote(&mut from)?;
    Ok((vote, serde_json::from_slice(&from).map_err(|_| corrupt("snapshot header"))?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::codec::tests::{any_log_id, any_payload, any_vote};
    use super::super::types::Entry;
    use super::*;

    proptest! {
        #[test]
        fn appends_come_back(
            vote in any_vote(),
            prev in proptest::option::of(any_log_id()),
            commit in proptest::option::of(any_log_id()),
            first in 0u64..1_000,
            payloads in proptest::collection::vec((1u64..9, any_payload()), 0..6),
        ) {
            let entry = |(nth, (term, payload))| Entry { log_id: LogId::new_term_index(term, first + nth), payload };
            let entries: Vec<_> = (0u64..).zip(payloads).map(entry).collect();
            let request = AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: commit };
            let back = decode_append(encode_append(&request).unwrap()).unwrap();
            prop_assert_eq!(back.vote, request.vote);
            prop_assert_eq!(back.prev_log_id, request.prev_log_id);
            prop_assert_eq!(back.leader_commit, request.leader_commit);
            prop_assert_eq!(back.entries, request.entries);
        }

        #[test]
        fn answers_come_back(vote in any_vote(), id in any_log_id(), other in proptest::option::of(any_log_id()), yes in any::<bool>()) {
            for answer in [Ok(other), Err(StreamAppendError::Conflict(id)), Err(StreamAppendError::HigherVote(vote))] {
                prop_assert_eq!(decode_append_answer(encode_append_answer(&answer), None).unwrap(), answer);
            }
            for answer in [AppendEntriesResponse::Success, AppendEntriesResponse::Conflict, AppendEntriesResponse::HigherVote(vote)] {
                prop_assert_eq!(decode_append_response(encode_append_response(&answer)).unwrap(), answer);
            }
            let mut request = VoteRequest::new(vote, other);
            request.leadership_transfer = yes;
            prop_assert_eq!(decode_vote_request(encode_vote_request(&request)).unwrap(), request);
            let response = VoteResponse::new(vote, other, yes);
            prop_assert_eq!(decode_vote_response(encode_vote_response(&response)).unwrap(), response);
            let transfer = TransferLeaderRequest::new(vote, NodeId(7), other);
            prop_assert_eq!(decode_transfer(encode_transfer(&transfer)).unwrap(), transfer);
            for response in [
                Ok(()),
                Err(TransferLeaderError::VoteChanged { expected: vote, actual: vote }),
                Err(TransferLeaderError::LogNotFlushed { expected: Some(id), actual: other }),
            ] {
                prop_assert_eq!(decode_transfer_response(encode_transfer_response(&response)).unwrap(), response);
            }
            let meta = SnapshotMeta { last_log_id: other, ..SnapshotMeta::default() };
            prop_assert_eq!(decode_snapshot_header(encode_snapshot_header(&vote, &meta).unwrap()).unwrap(), (vote, meta));
        }

        #[test]
        fn torn_bytes_are_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_append(bytes.clone());
            let _ = decode_append_answer(bytes.clone(), None);
            let _ = decode_vote_request(bytes.clone());
            let _ = decode_vote_response(bytes.clone());
            let _ = decode_transfer(bytes.clone());
            let _ = decode_transfer_response(bytes.clone());
            let _ = decode_snapshot_header(bytes);
        }
    }
}
