//! What the corpora began with: all that is documented, and what the tests of the core make. `UPDATE_CORPUS=1 cargo test
//! --workspace --lib testkit::seeds` writes them to `fuzz/corpus/`.

use std::fs;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use prost::Message;
use serde_json::{Value, json};

use super::corpus::{folder, holds};
use super::{BETWEEN, frames, open, peer, rest};
use crate::consensus::types::{EncodedBatch, Entry, LogId, TypeConfig, Vote};
use crate::consensus::{codec, wire};
use crate::gateway::http::rest::routes::ENDPOINTS;
use crate::gateway::protocol::events::FROM_CLIENT;
use crate::gateway::protocol::schema::example;
use crate::ids::{LogIndex, NodeId};
use crate::model::properties::{StateUnderTest, any_commands, online, update};
use crate::model::tables::{RowKey, Tables};
use crate::proto::{
    Applied, Batch, ChangeRequest, Command, CommandId, NodeAdd, Proposal, ProposeRequest, RaftRequest, Role,
    StatusResponse, change_request,
};
use crate::storage::fuzz::{key_bytes, stored_applied, stored_entry, stored_row, through_a_snapshot};

/// They are written, if that is asked for, and hold.
fn keep(target: &str, run: fn(&[u8]), seeds: Vec<(String, Vec<u8>)>) {
    for (name, seed) in &seeds {
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            fs::create_dir_all(folder(target)).unwrap();
            fs::write(folder(target).join(name), seed).unwrap();
        }
    }
    let failed: Vec<_> = seeds.iter().filter(|(_, seed)| !holds(run, seed)).map(|(name, _)| name).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

fn joined(letter: u8, messages: &[Vec<u8>]) -> Vec<u8> {
    [&[letter], &messages.join(&BETWEEN)[..]].concat()
}

/// Messages behind their lengths.
fn counted(letter: u8, messages: &[Vec<u8>]) -> Vec<u8> {
    [vec![letter], lengths(messages)].concat()
}

fn lengths(messages: &[Vec<u8>]) -> Vec<u8> {
    messages.iter().flat_map(|m| [&(m.len() as u16).to_le_bytes()[..], m].concat()).collect()
}

fn framed(letter: u8, event: &str, data: &Value) -> Vec<u8> {
    match letter {
        b'w' => json!({"event": event, "data": data}).to_string().into_bytes(),
        b'q' => {
            let packet = format!("42{}", json!([event, data]));
            format!("{}:{packet}", packet.encode_utf16().count()).into_bytes()
        }
        _ => format!("421{}", json!([event, data])).into_bytes(),
    }
}

/// Rows of a real shop.
fn orders() -> Vec<Value> {
    let mut rows = csv::Reader::from_reader(&include_bytes!("../cli/demo/orders.csv")[..]);
    let names = rows.headers().unwrap().clone();
    rows.records()
        .take(8)
        .map(|row| names.iter().zip(row.unwrap().iter()).map(|(n, v)| (n.to_owned(), json!(v))).collect())
        .collect()
}

#[test]
fn documented_frames_hold() {
    let online = json!({"device_id": "till-1"});
    let mut seeds = Vec::new();
    for letter in [b'w', b'4', b'3', b'p', b'q'] {
        let carrier = letter as char;
        let first = framed(letter, "device_online", &online);
        for event in FROM_CLIENT {
            let message = framed(letter, event.name, &example(event.fields));
            seeds.push((format!("{carrier}-{}", event.name), joined(letter, &[first.clone(), message])));
        }
        let writes = orders().into_iter().zip(1..).map(|(order, id)| {
            let update = json!({"device_id": "till-1", "table_name": "orders", "record_id": id, "new_data": order});
            framed(letter, "data_update", &update)
        });
        let session: Vec<_> = std::iter::once(first).chain(writes).collect();
        seeds.push((format!("{carrier}-orders"), joined(letter, &session)));
    }
    let token = br#"40{"token":"x"}"#.to_vec();
    let binary = [&[0xFE][..], b"\x01\x02"].concat();
    for (name, letter, messages) in [
        ("connect-with-a-token", b'D', vec![token, b"40/shop,".to_vec(), b"41".to_vec(), b"3".to_vec()]),
        ("binary-event", b'4', vec![br#"451-["data_update",{"_placeholder":true,"num":0}]"#.to_vec(), binary.clone()]),
        ("binary-ack", b'3', vec![br#"461-7[{"_placeholder":true,"num":0}]"#.to_vec(), binary.clone()]),
        ("binary", b'w', vec![binary, b"\xFDping".to_vec(), b"[]".to_vec(), br#"{"event":1}"#.to_vec()]),
        ("nested", b'w', vec!["[".repeat(100).into_bytes(), br#"{"event":"heartbeat","data":"#.to_vec()]),
        ("packets", b'p', vec![b"2probe\x1e3\x1e6\x1e40/x,{}\x1e42[]\x1ebAQID".to_vec(), b"1".to_vec()]),
        ("counted", b'q', vec!["2:\u{e9}4\u{1}".as_bytes().to_vec(), b"\x01\x02\xFE".to_vec(), b"99:42".to_vec()]),
        ("raw", b'b', vec![b"\x81\x80\0\0\0\0\x01\x85\0\0\0\0[1,2]\x80\x80\0\0\0\0\x88\x82\0\0\0\0\x03\xe8".to_vec()]),
        ("raw-socketio", b'B', vec![b"\x81\x82\0\0\0\x0040\xc1\x80\0\0\0\0".to_vec()]),
        (
            "http",
            b'h',
            vec![b"GET /api/health HTTP/1.1\r\nhost: x\r\n\r\nPOST /socket.io/?EIO=4 HTTP/1.1\r\n".to_vec()],
        ),
        (
            "chunked",
            b'h',
            vec![b"POST /api/devices/pair HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_vec()],
        ),
    ] {
        seeds.push((format!("{}-{name}", letter as char), joined(letter, &messages)));
    }
    keep("frames", frames, seeds);
}

#[test]
fn documented_requests_hold() {
    let ask = |letter: char, method: &str, path: &str, body: Option<Value>| {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        format!("{letter}{method} {path}\ncontent-type: application/json\n\n{body}").into_bytes()
    };
    let register = ask('a', "POST", "/api/devices/register", Some(json!({"device_id": "till-1", "priority": 5})));
    let mut seeds = Vec::new();
    for (number, endpoint) in ENDPOINTS.iter().enumerate() {
        let mut path = endpoint.path.to_owned();
        for name in endpoint.in_path() {
            let value = if name.contains("id") && name != "device_id" { "1" } else { "till-1" };
            path = path.replace(&format!("{{{name}}}"), value);
        }
        let query: Vec<String> = endpoint
            .query
            .iter()
            .map(|field| match field.example() {
                Value::String(text) => format!("{}={}", field.name, text.replace(' ', "%20")),
                other => format!("{}={other}", field.name),
            })
            .collect();
        let with_query = if query.is_empty() { path.clone() } else { format!("{path}?{}", query.join("&")) };
        let letter = ['a', 'm', 's', 'n'][number % 4];
        let body = endpoint.body.map(example);
        let requests = [
            register.clone(),
            ask('a', endpoint.method, &path, body.clone()),
            ask(letter, endpoint.method, &with_query, body),
        ];
        seeds.push((endpoint.id(), requests.join(&BETWEEN)));
    }
    keep("rest", rest, seeds);
}

fn sampled(count: usize) -> Vec<Vec<Command>> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| any_commands().new_tree(&mut runner).unwrap().current()).collect()
}

#[test]
fn messages_of_peers_hold() {
    let mut seeds = Vec::new();
    for (number, commands) in sampled(40).into_iter().enumerate() {
        let commands: Vec<_> = commands.iter().take(40).map(Message::encode_to_vec).collect();
        let letter = if number % 4 == 0 { b'b' } else { b'a' };
        seeds.push((format!("{}-{number}", letter as char), counted(letter, &commands)));
    }
    let (candidate, leader) = (Vote::new(3, NodeId(2)), Vote::new_committed(3, NodeId(2)));
    let command = Command {
        origin: Some(CommandId { node: 2, boot: 1, number: 1 }),
        at_ms: super::NOW_MS,
        intent: Some(online("till-1", 1, Role::Client)),
        principal: None,
    };
    let batch = Bytes::from(Batch { commands: vec![command.clone()] }.encode_to_vec());
    let entry = |index, payload| Entry { log_id: LogId::new_term_index(3, index), payload };
    let append = |previous: Option<u64>, commit: Option<u64>, entries: Vec<Entry>| {
        let id = |index| LogId::new_term_index(3, index);
        let (prev_log_id, leader_commit) = (previous.map(id), commit.map(id));
        let request = AppendEntriesRequest::<TypeConfig> { vote: leader, prev_log_id, entries, leader_commit };
        wire::encode_append(&request).unwrap().to_vec()
    };
    let founded = LogId::new_term_index(0, 0);
    let mut vote = VoteRequest::<TypeConfig>::new(candidate, Some(founded));
    let plain = wire::encode_vote_request(&vote).to_vec();
    vote.leadership_transfer = true;
    let forced = wire::encode_vote_request(&vote).to_vec();
    let transfer = wire::encode_transfer(&TransferLeaderRequest::<TypeConfig>::new(leader, NodeId(1), None)).to_vec();
    let entries =
        vec![entry(1, openraft::EntryPayload::Blank), entry(2, openraft::EntryPayload::Normal(EncodedBatch(batch)))];
    let appended = append(None, Some(2), entries.clone());
    let holes = append(Some(9), Some(12), entries);
    let (_, snapshot) = snapshot();
    let meta = crate::consensus::types::SnapshotMeta { last_log_id: Some(founded), ..Default::default() };
    let header = wire::encode_snapshot_header(&leader, &meta).unwrap().to_vec();
    let change = ChangeRequest {
        by: "boss".into(),
        change: Some(change_request::Change::Add(NodeAdd { node: 3, raft: "h:1".into(), gateway: "h:2".into() })),
        ..ChangeRequest::default()
    };
    let of = |letter: u8, body: Vec<u8>| [vec![letter], body].concat();
    let calls = [
        ("vote", vec![of(b'V', plain.clone()), of(b'v', plain)]),
        ("forced-vote", vec![of(b'v', forced)]),
        ("append", vec![of(b'a', appended.clone()), of(b's', appended.clone()), of(b'r', Vec::new())]),
        ("holes", vec![of(b'a', appended), of(b's', holes)]),
        ("transfer", vec![of(b't', transfer), of(b'u', vec![1])]),
        ("snapshot", vec![of(b'i', lengths(&[header, snapshot.clone()]))]),
        ("propose", vec![of(b'o', lengths(&[command.encode_to_vec(), b"x".to_vec()]))]),
        ("change", vec![of(b'c', change.encode_to_vec())]),
    ];
    for (name, calls) in calls {
        let bodies: Vec<Vec<u8>> = calls.iter().map(|call| call[1..].to_vec()).collect();
        seeds.push((format!("m-{name}"), counted(b'm', &bodies)));
        seeds.push((format!("n-{name}"), counted(b'n', &calls)));
    }
    seeds.push(("s-snapshot".into(), of(b's', snapshot)));
    let request = ProposeRequest {
        handshake: None,
        proposals: vec![Proposal { id: 1, command: command.encode_to_vec().into() }],
    };
    let raft = RaftRequest { handshake: None, body: Bytes::from_static(b"x") };
    let status = StatusResponse { node: 1, term: 4, leader: Some(1), ..StatusResponse::default() };
    seeds.push((
        "m-messages".into(),
        counted(b'm', &[request.encode_to_vec(), raft.encode_to_vec(), status.encode_to_vec()]),
    ));
    keep("peer", peer, seeds);
}

/// A small state's rows, and the snapshot of it.
fn snapshot() -> (std::collections::BTreeMap<RowKey, Bytes>, Vec<u8>) {
    let mut bench = StateUnderTest::new();
    bench.ok(online("till-1", 1, Role::Client));
    bench.ok(update("till-1", 1, r#"{"price":1}"#));
    let rows = bench.tables.rows();
    through_a_snapshot(rows.clone(), &bench.tables.applied());
    let bytes = crate::storage::fuzz::write_snapshot(&rows, &bench.tables.applied());
    (rows, bytes)
}

#[test]
fn rows_and_logs_hold() {
    let mut seeds = Vec::new();
    let row = |key: &[u8], value: &[u8]| [&[key.len() as u8], key, value].concat();
    let mut kinds = std::collections::BTreeMap::<u8, Vec<Vec<u8>>>::new();
    for (number, commands) in sampled(40).into_iter().enumerate() {
        let mut bench = StateUnderTest::new();
        commands.iter().for_each(|command| drop(bench.send(command.clone())));
        let rows = bench.tables.rows();
        for (key, value) in &rows {
            let of_kind = kinds.entry(key_bytes(key)[0]).or_default();
            if of_kind.len() < 16 && value.len() < 1_000 {
                of_kind.push(row(&key_bytes(key), value));
            }
        }
        if number % 8 > 0 {
            continue;
        }
        let all: Vec<_> = rows.iter().map(|(key, value)| row(&key_bytes(key), value)).collect();
        seeds.push((format!("r-{number}"), counted(b'r', &all)));
        let put = |tree: u8, (key, value): (Vec<u8>, Vec<u8>)| [vec![tree], row(&key, &value)].concat();
        let mut disk: Vec<_> = rows.iter().map(|(key, value)| put(0, stored_row(key, value))).take(40).collect();
        disk.push(put(0, stored_applied(&bench.tables.applied().encode_to_vec())));
        seeds.push((format!("d-rows-{number}"), counted(b'd', &disk)));
        let mut log = Vec::new();
        for (index, command) in (1..).zip(&commands).take(40) {
            let batch = EncodedBatch(Batch { commands: vec![command.clone()] }.encode_to_vec().into());
            let payload = openraft::EntryPayload::Normal(batch);
            let entry = codec::encode_entry(&Entry { log_id: LogId::new_term_index(1, index), payload }).unwrap();
            log.push(put(1, stored_entry(LogIndex(index), &entry)));
        }
        log.push(put(2, (b"vote".to_vec(), codec::encode_vote(&Vote::new(1, NodeId(2))).to_vec())));
        log.push(put(
            2,
            (b"committed".to_vec(), [&[1][..], &codec::encode_log_id(&LogId::new_term_index(1, 3))].concat()),
        ));
        seeds.push((format!("d-log-{number}"), counted(b'd', &log)));
    }
    assert!(kinds.len() > 12, "{:?}", kinds.keys());
    for (kind, rows) in kinds {
        seeds.push((format!("r-kind-{kind}"), counted(b'r', &rows)));
    }
    let (rows, bytes) = snapshot();
    assert!(!rows.is_empty());
    seeds.push(("s-snapshot".into(), [vec![b's'], bytes].concat()));
    let text = "itillsync data folder\nformat 1\nnode 1\nstate ready\ncluster shop\n";
    seeds.push(("i-identity".into(), text.as_bytes().to_vec()));
    let applied = Applied { index: 7, ..Applied::default() };
    let (key, value) = stored_applied(&applied.encode_to_vec());
    seeds.push(("d-applied".into(), counted(b'd', &[[vec![0], row(&key, &value)].concat()])));
    keep("open", open, seeds);
}
