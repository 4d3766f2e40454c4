use proptest::prelude::*;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::super::properties::{StateUnderTest, any_commands, online, put, update};
use super::super::version::Build;
use super::*;
use crate::ids::{LogIndex, RaftTerm, UnixMs};
use crate::model::state::{Position, State, into_result};
use crate::model::tables::Tables;
use crate::proto::*;

/// Every intent that there is, empty, by its field in `Command`.
fn all_intents() -> Vec<(u32, Intent)> {
    (3..1_000u32)
        .filter_map(|field| {
            let mut bytes = Vec::new();
            encode_key(field, WireType::LengthDelimited, &mut bytes);
            encode_varint(0, &mut bytes);
            Some((field, Command::decode(&bytes[..]).unwrap().intent?))
        })
        .collect()
}

#[test]
fn what_is_a_leaders_is_seen_in_the_bytes() {
    let origin = CommandId { node: 2, boot: 3, number: 4 };
    let all = all_intents();
    assert!(all.len() >= 33, "{}", all.len());
    for (field, intent) in all {
        let expected = CommandHeader { origin, at_ms: UnixMs(5), proposer: proposer(&intent) };
        let command = Command { origin: Some(origin), at_ms: 5, intent: Some(intent), principal: None };
        assert_eq!(look(&command.encode_to_vec().into()), Some(expected), "field {field}");
    }
}

#[test]
fn a_command_says_who_and_when_exactly_once() {
    let command = |node, at_ms| Command {
        origin: Some(CommandId { node, boot: 1, number: 1 }),
        at_ms,
        intent: None,
        principal: None,
    };
    let twice = [command(1, 5).encode_to_vec(), command(2, 5).encode_to_vec()].concat();
    assert_eq!(look(&twice.into()), None);
    // Protobuf leaves out a zero; nobody's clock says 1970.
    assert_eq!(look(&command(1, 0).encode_to_vec().into()), None);
    assert_eq!(look(&Command { origin: None, ..command(1, 5) }.encode_to_vec().into()), None);
    assert_eq!(look(&Bytes::from_static(b"\x0a\xff")), None);
    // A leader's command hidden behind a node's: the later one counts when it is decoded.
    let mut hidden = Command { intent: Some(online("d", 0, Role::Client)), ..command(1, 5) }.encode_to_vec();
    let lost =
        Command { origin: None, at_ms: 0, intent: Some(Intent::NodeLost(NodeLost { node: 3 })), principal: None };
    hidden.extend(lost.encode_to_vec());
    assert_eq!(look(&hidden.into()).map(|seen| seen.proposer), Some(CommandSource::Leader));
}

/// Each of these once took a node down, or broke those who read what it wrote.
#[test]
fn what_a_stranger_put_into_the_log_is_applied_as_a_refusal() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    let long = "x".repeat(limits::IMPORT_BYTES + 1);
    let data =
        |json: &str| DataUpdate { data: Bytes::copy_from_slice(json.as_bytes()), ..put("d", 1, Operation::Update, "") };
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(limits::JSON_DEPTH), "]".repeat(limits::JSON_DEPTH));
    let row = |base| ImportRows {
        devices: vec![ImportDevice {
            device: Some(Device { device_id: "old".into(), ..Device::default() }),
            sync: Some(SyncState { base, ..SyncState::default() }),
        }],
        ..ImportRows::default()
    };
    let online_as = |id: &str| DeviceOnline { device_id: id.into(), ..Default::default() };
    let seen = |unsent| DevicesSeen { unsent, ..Default::default() };
    let right = |right| TableAccess { table_name: "stock".into(), right };
    let ask = || PairAsk { code: "AAAAAA22".into(), secret_hash: vec![0; 32].into(), ..Default::default() };
    let hostile: Vec<(&str, Intent)> = vec![
        ("new_data", Intent::DataUpdate(data("[1]"))),
        ("new_data", Intent::DataUpdate(data("7"))),
        ("new_data", Intent::DataUpdate(data("{\"a\":"))),
        ("new_data", Intent::DataUpdate(data(&deep))),
        ("new_data", Intent::DataUpdate(DataUpdate { data: Bytes::from_static(b"\xff\xfe"), ..data("") })),
        ("new_data", Intent::DataUpdate(data(&format!("{{\"a\":\"{}\"}}", "x".repeat(limits::RECORD_DATA))))),
        ("operation", Intent::DataUpdate(DataUpdate { operation: 9, ..data("{}") })),
        ("table_name", Intent::DataUpdate(DataUpdate { table_name: "a\nb".into(), ..data("{}") })),
        (
            "payload",
            Intent::CriticalEvent(CriticalEvent {
                payload: Bytes::from_static(b"[]"),
                device_id: "d".into(),
                event_type: "e".into(),
                ..Default::default()
            }),
        ),
        (
            "pending_changes_count",
            Intent::SyncStatePut(SyncStatePut {
                device_id: "d".into(),
                pending_changes_count: Some(u64::MAX),
                ..Default::default()
            }),
        ),
        (
            "sync_status",
            Intent::SyncStatePut(SyncStatePut { device_id: "d".into(), sync_status: Some(77), ..Default::default() }),
        ),
        ("audit_rows", Intent::ImportBegin(ImportBegin { import_id: 1, audit_rows: u64::MAX, ..Default::default() })),
        (
            "election_rows",
            Intent::ImportBegin(ImportBegin { import_id: 1, election_rows: u64::MAX, ..Default::default() }),
        ),
        ("pending_changes_count", Intent::ImportRows(row(u64::MAX))),
        ("node", Intent::MembersChanged(MembersChanged { node: 0, removed: true, ..Default::default() })),
        ("policy", Intent::PolicyPut(PolicyPut { table_name: "t".into(), policy: 9, ..Default::default() })),
        ("jti", Intent::TokenRevoke(TokenRevoke { jti: String::new(), ..Default::default() })),
        ("details", Intent::AuditNote(AuditNote { event_type: "e".into(), details: long, ..Default::default() })),
        (
            "capabilities",
            Intent::DeviceOnline(DeviceOnline {
                device_id: "d".into(),
                capabilities: Some(Capabilities { names: vec![String::new(); limits::CAPABILITIES + 1] }),
                ..Default::default()
            }),
        ),
        ("presence", Intent::DeviceOnline(DeviceOnline { device_id: "d".into(), presence: 9, ..Default::default() })),
        ("role", Intent::RoleChange(RoleChange { device_id: "d".into(), role: 9, ..Default::default() })),
        ("asker", Intent::DeviceOnline(DeviceOnline { device_id: "e".into(), asker: 9, ..Default::default() })),
        ("asker", Intent::TableRemove(TableRemove { table_name: "stock".into(), asker: 9, ..Default::default() })),
        ("unsent", Intent::DeviceOnline(DeviceOnline { unsent: Some(u64::MAX), ..online_as("e") })),
        ("unsent", Intent::DevicesSeen(seen(vec![Unsent { device_id: "d".into(), count: u64::MAX }]))),
        ("unsent", Intent::DevicesSeen(seen(vec![Unsent::default(); limits::DEVICES_SEEN + 1]))),
        ("device_id", Intent::DevicesSeen(seen(vec![Unsent::default()]))),
        ("class", Intent::AccessPut(AccessPut { class: 9, ..Default::default() })),
        ("others", Intent::AccessPut(AccessPut { class: 1, others: 9, ..Default::default() })),
        ("tables", Intent::AccessPut(AccessPut { class: 1, tables: vec![right(9)], ..Default::default() })),
        ("tables", Intent::AccessPut(AccessPut { class: 1, tables: vec![right(1); 300], ..Default::default() })),
        ("device_id", Intent::DeviceRevoke(DeviceRevoke { device_id: "x".repeat(300), by: String::new() })),
        ("by", Intent::DeviceRevoke(DeviceRevoke { device_id: "d".into(), by: "x".repeat(300) })),
        ("device_id", Intent::DeviceSuspend(DeviceSuspend { suspended: true, ..Default::default() })),
        ("device_id", Intent::DeviceForget(DeviceForget::default())),
        ("code", Intent::PairAsk(PairAsk { code: "AAAA\n2AA".into(), ..ask() })),
        ("secret_hash", Intent::PairAsk(PairAsk { secret_hash: Bytes::from_static(b"x"), ..ask() })),
        ("name", Intent::PairAsk(PairAsk { name: "x".repeat(limits::PAIR_NAME + 1), ..ask() })),
        ("name", Intent::PairAsk(PairAsk { name: "a\u{202e}b".into(), ..ask() })),
        ("address", Intent::PairAsk(PairAsk { address: "x".repeat(limits::ADDRESS + 1), ..ask() })),
        ("device_id", Intent::PairAsk(PairAsk { device_id: "x".repeat(300), ..ask() })),
        ("asker", Intent::PairDecide(PairDecide { code: ask().code, asker: 9, ..Default::default() })),
        ("class", Intent::PairDecide(PairDecide { code: ask().code, class: 9, ..Default::default() })),
        ("secret_hash", Intent::PairClaim(PairClaim { code: ask().code, ..Default::default() })),
        ("epoch", Intent::ClusterRecovered(ClusterRecovered { epoch: 0 })),
        ("epoch", Intent::ClusterInit(ClusterInit { cluster_id: "c".into(), epoch: 0 })),
    ];
    for (field, intent) in hostile {
        let before = (b.state.meta().head_seq, b.state.meta().audit_head, b.state.devices().count());
        let error = into_result(b.run(intent).0).unwrap_err();
        assert_eq!(error.field(), Some(field), "{error}");
        assert_eq!((b.state.meta().head_seq, b.state.meta().audit_head, b.state.devices().count()), before);
    }
    b.ok(update("d", 1, "{\"a\":1}"));
}

/// One command that does not decode once stopped every node that applied it, and again after each restart.
#[test]
fn bytes_that_are_no_command_are_refused_and_what_stands_beside_them_is_applied() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    let good = Command { origin: None, at_ms: 2_000_000, intent: Some(update("d", 1, "{\"a\":1}")), principal: None }
        .encode_to_vec();
    let mut broken = good.clone();
    broken.truncate(good.len() - 3);
    let mut batch = Vec::new();
    for command in [&broken, &good, &b"\xff\xff\xff".to_vec()] {
        prost::encoding::bytes::encode(1, command, &mut batch);
    }
    let index = b.state.applied().index + 1;
    let done = b
        .state
        .apply(Position { index: LogIndex(index), log_id: Bytes::new(), term: RaftTerm(0) }, batch.into())
        .unwrap();
    let accepted: Vec<bool> = done.outcomes.into_iter().map(|outcome| into_result(outcome).is_ok()).collect();
    assert_eq!(accepted, [false, true, false]);
    // What is no batch at all is an entry without commands.
    let done = b
        .state
        .apply(
            Position { index: LogIndex(index + 1), log_id: Bytes::new(), term: RaftTerm(0) },
            Bytes::from_static(b"\x0a\xff"),
        )
        .unwrap();
    assert!(done.outcomes.is_empty());
    assert_eq!((b.state.applied().index, b.state.meta().head_seq), (index + 1, 1));
}

/// Changes some bytes of an encoded command.
fn spoil(command: &Command, hits: &[(u16, u8)]) -> Vec<u8> {
    let mut bytes = command.encode_to_vec();
    for (at, value) in hits {
        let at = *at as usize % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = *value;
        }
    }
    bytes
}

fn raises_beyond(command: &[u8]) -> bool {
    let intent = Command::decode(command).ok().and_then(|command| command.intent);
    matches!(intent, Some(Intent::ClusterFinalize(c)) if c.version > Build::THIS.newest())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever stands in the log: no panic, the same on every node, and what was written can be read anew.
    #[test]
    fn spoiled_commands_never_panic_and_leave_a_state_that_can_be_read(
        commands in any_commands(),
        hits in prop::collection::vec(prop::collection::vec((any::<u16>(), any::<u8>()), 0..4), 80),
        raw in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8),
    ) {
        let (mut one, mut two) = (StateUnderTest::new(), StateUnderTest::new());
        let spoiled = commands.iter().zip(hits.iter().cycle()).map(|(command, hits)| spoil(command, hits));
        // A version that the program does not know stops its node, as it has to.
        for (bytes, n) in spoiled.chain(raw).filter(|bytes| !raises_beyond(bytes)).zip(1..) {
            let mut batch = Vec::new();
            prost::encoding::bytes::encode(1, &bytes, &mut batch);
            for b in [&mut one, &mut two] {
                let index = b.state.applied().index + 1;
                let at = Position { index: LogIndex(index), log_id: Bytes::new(), term: RaftTerm(n % 2) };
                prop_assert_eq!(b.state.apply(at, batch.clone().into()).unwrap().outcomes.len(), 1);
            }
        }
        prop_assert_eq!(one.state.digest(), two.state.digest());
        let mut again = State::open(Box::new(one.tables.clone())).unwrap();
        for device in one.state.devices() {
            let sync = again.sync_state(&device.device_id).unwrap();
            prop_assert_eq!(again.pending_changes(sync), one.state.pending_changes(sync));
        }
        prop_assert_eq!(again.digest(), one.state.digest());
        let _ = again.reload();
        let _ = one.tables.applied();
    }
}
