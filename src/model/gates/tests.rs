use bytes::Bytes;

use super::*;
use crate::ids::LogIndex;
use crate::model::properties::{StateUnderTest, online, put, told, update};
use crate::model::tables::MemoryTables;
use crate::proto::command::Intent;
use crate::proto::{Compact, DataUpdate, DeviceOffline, DeviceOnline, Operation, QueuesForget, Role};

fn revoke(id: &str) -> Intent {
    Intent::DeviceRevoke(DeviceRevoke { device_id: id.into(), by: "boss".into() })
}

fn suspend(id: &str, suspended: bool) -> Intent {
    Intent::DeviceSuspend(DeviceSuspend { device_id: id.into(), suspended, by: "boss".into() })
}

fn forget(id: &str) -> Intent {
    Intent::DeviceForget(DeviceForget { device_id: id.into(), by: "boss".into() })
}

fn offline(id: &str) -> Intent {
    Intent::DeviceOffline(DeviceOffline { device_id: id.into(), ..DeviceOffline::default() })
}

fn entry(n: u64, after: u64) -> Intent {
    let sale = put("till", n as i64, Operation::Insert, r#"{"v":1}"#);
    Intent::DataUpdate(DataUpdate { queue: "q".into(), n, after, request_id: format!("r{n}"), ..sale })
}

/// The memory is what the rows say.
fn reloads(b: &StateUnderTest) {
    assert_eq!(told(&State::open(Box::new(b.tables.clone())).unwrap()), told(&b.state));
}

#[test]
fn a_revocation_refuses_what_was_issued_until_then_and_reports_what_came_of_the_device() {
    let mut b = StateUnderTest::new();
    let hello = DeviceOnline { device_id: "till".into(), unsent: Some(7), presence: 1, ..DeviceOnline::default() };
    b.ok(Intent::DeviceOnline(hello));
    b.ok(entry(1, 0));
    b.ok(entry(2, 1));
    let (_, effects) = b.run(revoke("till"));
    assert!(effects.contains(&Effect::DeviceKeptOut { device_id: "till".into() }));
    let Reply::DeviceReport(report) = b.ok(revoke("till")) else { panic!() };
    assert_eq!((report.changes, report.last_seq, report.registered), (2, 2, true));
    assert_eq!((report.unsent, report.queues.len()), (7, 1));
    assert_eq!((report.queues[0].queue.as_str(), report.queues[0].last), ("q", 2));
    assert!(!b.state.device("till").unwrap().is_active);
    // Twice in one second: a token that was issued between the two is refused as well.
    assert_eq!(report.not_before, b.now / 1_000 + 1);
    let code = |issued| b.state.refusal_of("till", issued).map(|error| error.code);
    let all = [code(0), code(report.not_before), code(report.not_before + 1)];
    assert_eq!(all, [Some(Code::Credentials), Some(Code::Credentials), None]);
    // What was under way is decided by its place in the log; but what was applied before is told again.
    let late = |n: u64, token_iat| {
        let Intent::DataUpdate(sale) = entry(n, n - 1) else { unreachable!() };
        Intent::DataUpdate(DataUpdate { token_iat, ..sale })
    };
    assert_eq!(b.code(late(3, 1)), Code::Credentials);
    b.ok(late(2, 1));
    let back = |token_iat| {
        Intent::DeviceOnline(DeviceOnline { device_id: "till".into(), token_iat, ..DeviceOnline::default() })
    };
    assert_eq!(b.code(back(1)), Code::Credentials);
    b.ok(late(3, report.not_before + 1));
    b.ok(back(report.not_before + 1));
    // A device that never registered has tokens, too.
    let Reply::DeviceReport(report) = b.ok(revoke("nobody")) else { panic!() };
    assert!(!report.registered && b.state.refusal_of("nobody", 1).is_some());
    assert_eq!(b.code(revoke("")), Code::InvalidData);
    reloads(&b);
}

#[test]
fn a_suspended_device_does_nothing_until_it_is_resumed_and_nobody_for_it() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 0, Role::Master));
    b.ok(online("spare", 0, Role::Client));
    b.ok(suspend("till", true));
    assert!(!b.state.device("till").unwrap().is_active);
    assert_ne!(b.state.meta().master, "till", "it is a master no longer");
    assert_eq!(b.state.refusal_of("till", u64::MAX - 1).unwrap().code, Code::Forbidden);
    assert_eq!(b.code(update("till", 1, "{}")), Code::Forbidden);
    assert_eq!(b.code(online("till", 0, Role::Client)), Code::Forbidden);
    let (_, effects) = b.run(suspend("till", true));
    assert!(effects.is_empty(), "it is suspended already");
    reloads(&b);
    b.ok(suspend("till", false));
    b.ok(online("till", 0, Role::Client));
    b.ok(update("till", 1, "{}"));
    assert!(b.state.refusal_of("till", 1).is_none());
}

#[test]
fn a_forgotten_device_makes_room_and_what_it_wrote_stays() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 0, Role::Client));
    b.ok(online("other", 0, Role::Client));
    b.ok(entry(1, 0));
    b.ok(entry(2, 1));
    assert_eq!(b.code(forget("till")), Code::RoleChange, "it is online");
    b.ok(offline("till"));
    let number = b.state.device("till").unwrap().number;
    b.ok(forget("till"));
    assert_eq!((b.state.device_count(), b.state.device("till")), (1, None));
    assert_eq!(b.code(update("till", 9, "{}")), Code::NotRegistered);
    assert_eq!(b.code(forget("till")), Code::NotRegistered);
    assert_eq!(b.state.device_name(DeviceNumber(number)), Some("till"), "of what it wrote");
    reloads(&b);
    // Nobody else gets its number.
    b.ok(online("new", 0, Role::Client));
    assert_ne!(b.state.device("new").unwrap().number, number);
    b.ok(online("till", 0, Role::Client));
    assert_eq!((b.state.device("till").unwrap().number, b.state.device_count()), (number, 3));
    assert!(b.state.sync_state("till").unwrap().last_sync_ms == 0);
    // Its old file sends again: nothing of it is taken for new, in whatever order.
    for again in [entry(1, 0), entry(2, 1), entry(3, 2)] {
        assert_eq!(b.code(again), Code::InvalidData);
    }
    assert_eq!(b.state.meta().head_seq, 2);
    reloads(&b);
    // What compaction drops later brings nothing of it back.
    for id in 0..200 {
        b.ok(update("other", id, r#"{"filler":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}"#));
    }
    let to = b.state.meta().head_seq;
    for _ in 0..3 {
        b.ok(Intent::Compact(Compact { changes_to: to, audit_to: u64::MAX, ..Compact::default() }));
    }
    b.ok(Intent::QueuesForget(QueuesForget {}));
    assert_eq!(b.code(entry(3, 2)), Code::InvalidData);
    reloads(&b);
}

#[test]
fn what_is_still_needed_is_not_forgotten() {
    let mut b = StateUnderTest::new();
    b.ok(online("boss", 50, Role::Master));
    // On another node than the leader's: its election takes more than one entry, and the master stays until then.
    b.run_at(2, online("spare", 0, Role::Client));
    b.ok(offline("boss"));
    assert_eq!(b.state.meta().master, "boss");
    assert_eq!(b.code(forget("boss")), Code::RoleChange);
    b.ok(online("a", 0, Role::Client));
    b.ok(online("b", 0, Role::Client));
    b.ok(update("a", 1, r#"{"v":1}"#));
    b.ok(Intent::DataUpdate(put("b", 1, Operation::Insert, r#"{"v":2}"#)));
    for id in ["a", "b"] {
        b.ok(offline(id));
        assert_eq!(b.code(forget(id)), Code::Conflict, "{id} has a sale that waits for a decision");
    }
}

#[test]
fn room_for_devices_comes_back_and_numbers_have_an_end() {
    use crate::model::tables::Tables;
    use prost::Message;
    let with = |devices, devices_forgotten| {
        let mut tables = MemoryTables::default();
        let meta = crate::proto::Meta { devices, devices_forgotten, ..Default::default() };
        tables.put(RowKey::Meta, Bytes::from(meta.encode_to_vec()));
        tables.commit(Default::default());
        State::open(Box::new(tables)).unwrap()
    };
    let online = |mut state: State| {
        let intent = Intent::DeviceOnline(DeviceOnline { device_id: "d".into(), ..DeviceOnline::default() });
        let batch = crate::proto::Batch {
            commands: vec![crate::proto::Command { at_ms: 1, intent: Some(intent), ..Default::default() }],
        };
        let at = crate::model::state::Position { index: LogIndex(1), ..Default::default() };
        let outcome = state.apply(at, Bytes::from(batch.encode_to_vec())).unwrap().outcomes.remove(0);
        crate::model::state::into_result(outcome).is_ok()
    };
    assert!(!online(with(limits::DEVICES, 0)) && online(with(limits::DEVICES, 1)));
    assert!(!online(with(limits::DEVICE_NUMBERS, limits::DEVICE_NUMBERS - 5)));
}

#[test]
fn a_forgotten_device_frees_the_share_of_whoever_registered_it() {
    let mut b = StateUnderTest::new();
    let brought = |id: &str| {
        let (device_id, asked_by) = (id.to_owned(), "manager".to_owned());
        let asker = crate::proto::Asker::Manager.into();
        Intent::DeviceOnline(DeviceOnline { device_id, asked_by, asker, ..DeviceOnline::default() })
    };
    b.ok(brought("one"));
    b.ok(brought("two"));
    let share = |b: &StateUnderTest| b.state.devices.registered_by("manager");
    for (id, left) in [("one", 1), ("two", 0)] {
        b.ok(offline(id));
        b.ok(forget(id));
        assert_eq!(share(&b), left);
        let again = State::open(Box::new(b.tables.clone())).unwrap();
        assert_eq!(again.devices.shares(), b.state.devices.shares());
    }
    b.ok(brought("one"));
    assert_eq!(share(&b), 1);
    reloads(&b);
}
