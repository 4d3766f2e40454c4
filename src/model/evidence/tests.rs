use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::EvidenceKind;
use crate::ids::{AuditId, NodeId, RaftTerm, UnixMs};
use crate::limits;
use crate::model::audit::{AuditFilter, read_rows};
use crate::model::background_tasks::{Retention, of_leader};
use crate::model::election::decide::{Action, LeaderView, Limits};
use crate::model::error::Code;
use crate::model::properties::{StateUnderTest, online, told, update};
use crate::model::state::State;
use crate::proto::command::Intent;
use crate::proto::{Audit, ConflictReport, CriticalEvent, DeviceOffline, Elect, Role, RoleChange, TokenRevoke};

/// Carries out what the leader has to drop, to the end.
fn compact(b: &mut StateUnderTest, retention: Retention) {
    for step in 0.. {
        assert!(step < 100, "compaction does not end");
        let nodes = BTreeMap::new();
        let view = LeaderView {
            state: &b.state,
            me: NodeId(1),
            term: RaftTerm(0),
            now_ms: UnixMs(b.now),
            leading_ms: 0,
            nodes: &nodes,
            tried: None,
            limits: Limits::default(),
        };
        let due = of_leader(&view, retention).into_iter().find_map(|action| match action {
            Action::Propose(intent @ Intent::Compact(_)) => Some(intent),
            _ => None,
        });
        let Some(due) = due else { return };
        let rows = b.tables.rows().len();
        b.ok(due);
        // Changes, audit rows, evidence: one step of each.
        assert!(rows - b.tables.rows().len() <= 3 * limits::COMPACT_STEP as usize);
    }
}

/// Every listed row, in pages; whatever the size of the page, each comes once.
fn listed(b: &StateUnderTest, filter: &AuditFilter) -> Vec<Audit> {
    let index = b.state.audit_index();
    let (total, _) = index.page(filter, 0, 0);
    let mut rows = Vec::new();
    while (rows.len() as u64) < total {
        let (same, page) = index.page(filter, 700, rows.len());
        assert_eq!(same, total);
        let read = read_rows(&b.tables, &page).unwrap();
        assert_eq!(read.len(), page.len(), "a listed row is there");
        assert!(!read.is_empty());
        rows.extend(read);
    }
    assert!(rows.is_sorted_by(|a, b| a.id > b.id), "newest first");
    if let Some(row) = rows.get(rows.len() / 2) {
        let (rest, page) = index.page(&AuditFilter { before_id: Some(AuditId(row.id)), ..filter.clone() }, 1, 0);
        assert_eq!(rest as usize, rows.len() - rows.len() / 2 - 1);
        assert_eq!(page.first().map(|p| p.id), rows.get(rows.len() / 2 + 1).map(|r| AuditId(r.id)));
    }
    rows
}

fn critical(n: u64) -> Intent {
    Intent::CriticalEvent(CriticalEvent {
        device_id: "thief".into(),
        event_type: format!("e{n}"),
        payload: "{}".into(),
        timestamp_ms: None,
    })
}

fn report(n: u64) -> Intent {
    Intent::ConflictReport(ConflictReport {
        device_id: "thief".into(),
        table_name: "stock".into(),
        record_id: n as i64,
        conflict_type: 1,
        local_version: "{}".into(),
        remote_version: "{}".into(),
        timestamp_ms: None,
        class: 0,
    })
}

fn revoke(n: u64) -> Intent {
    Intent::TokenRevoke(TokenRevoke { jti: format!("t{n}"), exp_ms: u64::MAX, by: "office".into() })
}

const SMALL: Retention = Retention {
    changes: 100,
    change_bytes: limits::CHANGE_BYTES,
    audit_rows: 100,
    evidence_rows: 50,
    conflicts: limits::CONFLICTS,
    elections: limits::ELECTIONS,
};

#[test]
fn a_flood_of_events_and_changes_leaves_the_evidence() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 20, Role::Master));
    b.ok(online("thief", 20, Role::Client));
    b.ok(revoke(1));
    let role = RoleChange { device_id: "thief".into(), role: Role::Master.into(), ..RoleChange::default() };
    b.ok(Intent::RoleChange(role));
    let evidence: Vec<Audit> =
        listed(&b, &AuditFilter::default()).into_iter().filter(|r| EvidenceKind::of(&r.event_type).is_some()).collect();
    assert_eq!(evidence.len(), 6, "two elections, three changes of a role, a token: {evidence:#?}");
    for n in 0..3_000 {
        b.ok(critical(n));
        b.ok(update("thief", 1, "{}"));
    }
    compact(&mut b, SMALL);
    assert!(b.state.meta().audit_compacted > 4_000);
    let rows = listed(&b, &AuditFilter::default());
    assert!(rows.len() < 100 + limits::COMPACT_STEP as usize + evidence.len() + 1);
    assert_eq!(rows[rows.len() - 6..], evidence[..]);
    let of = |event: &str| {
        let filter = AuditFilter { event_type: Some(event.into()), ..AuditFilter::default() };
        listed(&b, &filter).len()
    };
    assert_eq!(["token_revoke", "master_elected", "role_change"].map(of), [1, 2, 3]);
    let filter = AuditFilter { device_id: Some("till".into()), to_ms: Some(UnixMs(b.now)), ..AuditFilter::default() };
    assert_eq!(listed(&b, &filter).len(), 3, "made master, and no longer");
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    assert_eq!(told(&again), told(&b.state));
}

/// Orders that change nothing, as fast as they come, and elections that find nobody: none of them is evidence.
#[test]
fn elections_that_change_nothing_push_out_none_that_did() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 20, Role::Master));
    b.ok(online("other", 30, Role::Master));
    let order = |device: &str, role: Role| {
        Intent::RoleChange(RoleChange { device_id: device.into(), role: role.into(), ..RoleChange::default() })
    };
    b.ok(order("till", Role::Master));
    let evidence: Vec<Audit> =
        listed(&b, &AuditFilter::default()).into_iter().filter(|r| EvidenceKind::of(&r.event_type).is_some()).collect();
    assert_eq!(evidence.len(), 8, "three elections, and a role or two of each: {evidence:#?}");
    b.ok(Intent::DeviceOffline(DeviceOffline { device_id: "other".into(), ..DeviceOffline::default() }));
    let elect = |except: &str| Intent::Elect(Elect { reason: 3, method: 1, except: except.into(), ..Elect::default() });
    for _ in 0..1_000 {
        b.ok(elect(""));
        b.ok(order("till", Role::Master));
        b.ok(order("other", Role::Client));
        assert_eq!(b.code(elect("till")), Code::Election);
    }
    compact(&mut b, SMALL);
    assert!(b.state.meta().audit_compacted > 2_000);
    let rows = listed(&b, &AuditFilter::default());
    assert_eq!(rows[rows.len() - evidence.len()..], evidence[..]);
    assert!(rows.len() < 100 + limits::COMPACT_STEP as usize + evidence.len() + 1, "{}", rows.len());
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    assert_eq!(told(&again), told(&b.state));
    b.ok(order("till", Role::Master));
}

#[test]
fn one_kind_of_evidence_does_not_push_out_another() {
    let mut b = StateUnderTest::new();
    b.ok(online("thief", 20, Role::Master));
    b.ok(revoke(1));
    // Each is decided at once, and so two rows.
    for n in 0..2_000 {
        b.ok(report(n));
    }
    compact(&mut b, SMALL);
    let rows = listed(&b, &AuditFilter::default());
    assert!(rows.len() < 100 + 50 + 2 * limits::COMPACT_STEP as usize + 10, "{}", rows.len());
    let revoked = AuditFilter { event_type: Some("token_revoke".into()), ..AuditFilter::default() };
    assert_eq!(listed(&b, &revoked).len(), 1);
    // What is not listed any more has no row.
    let stored = b.tables.rows().keys().filter(|k| matches!(k, crate::model::tables::RowKey::Audit(_))).count();
    let changes = rows.iter().filter(|row| row.event_type == "data_update").count();
    assert_eq!((stored, changes), (rows.len(), 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Of each kind of evidence at least the newest `evidence_rows` are there, whatever comes beside them.
    #[test]
    fn the_newest_evidence_of_each_kind_is_always_there(
        bursts in prop::collection::vec((0..4u8, 1..1_500u64), 1..8),
        restart in any::<bool>(),
    ) {
        let mut b = StateUnderTest::new();
        b.ok(online("till", 20, Role::Client));
        b.ok(online("thief", 20, Role::Master));
        let (mut n, mut all) = (0, BTreeMap::<&str, BTreeSet<u64>>::new());
        for (kind, count) in bursts {
            for _ in 0..count {
                n += 1;
                match kind {
                    0 => drop(b.ok(critical(n))),
                    1 => drop(b.ok(update("thief", 1, "{}"))),
                    2 => {
                        b.ok(revoke(n));
                        all.entry("token_revoke").or_default().insert(b.state.meta().audit_head);
                    }
                    _ => {
                        // Of the two the one that is not: an election, and two changed roles.
                        let device_id = if b.state.meta().master == "thief" { "till" } else { "thief" }.to_owned();
                        let role = Role::Master.into();
                        b.ok(Intent::RoleChange(RoleChange { device_id, role, ..RoleChange::default() }));
                        all.entry("master_elected").or_default().insert(b.state.meta().audit_head - 2);
                    }
                }
            }
            compact(&mut b, SMALL);
            if restart {
                b.state.reload().unwrap();
            }
        }
        let rows = listed(&b, &AuditFilter::default());
        for (event, ids) in &all {
            let there: BTreeSet<u64> = rows.iter().filter(|r| r.event_type == **event).map(|r| r.id).collect();
            // An election is three rows of its kind.
            let kept = SMALL.evidence_rows as usize / if *event == "master_elected" { 3 } else { 1 };
            for id in ids.iter().rev().take(kept) {
                prop_assert!(there.contains(id), "{} {}", event, id);
            }
        }
        let bound = SMALL.audit_rows + 3 * SMALL.evidence_rows + 4 * limits::COMPACT_STEP;
        prop_assert!((rows.len() as u64) < bound, "{}", rows.len());
    }
}
