//! Random triggers, crashes, cuts and transfers at three model nodes: the invariants hold after every entry, and when
//! nothing fails any more the cluster finds its master, and the leader with it.

use proptest::prelude::*;

use super::harness::{ElectionWorld, booted, online};
use crate::model::device::present_on;
use crate::proto::command::Intent;
use crate::proto::{
    DeviceOffline, DeviceOnline, DeviceShutdown, Elect, ElectionMethod, ElectionReason, Role, RoleChange,
};

#[derive(Clone, Debug)]
enum ElectionStep {
    Online {
        device: u8,
        node: u64,
        priority: u32,
        master: bool,
    },
    Offline(u8),
    Shutdown(u8),
    /// The session on this node is lost; the report may be an old one.
    Lost {
        device: u8,
        node: u64,
        old: bool,
    },
    /// A session that lived on brings its device back.
    Returns(u8, u64),
    Reload,
    Role(u8, bool),
    Elect(i32),
    Crash(u64),
    Cut(u64),
    Back(u64),
    Lead(u64),
    Transfers(bool),
    Lag(u64, u64),
    /// The leader takes this many steps and no more.
    Steps(u8),
    Pass(u64),
}

fn event() -> impl Strategy<Value = ElectionStep> {
    prop_oneof![
        4 => (0..4u8, 1..4u64, 0..3u32, any::<bool>())
            .prop_map(|(device, node, priority, master)| ElectionStep::Online { device, node, priority: priority * 20, master }),
        2 => (0..4u8).prop_map(ElectionStep::Offline),
        2 => (0..4u8).prop_map(ElectionStep::Shutdown),
        3 => (0..4u8, 1..4u64, any::<bool>()).prop_map(|(device, node, old)| ElectionStep::Lost { device, node, old }),
        1 => (0..4u8, 1..4u64).prop_map(|(device, node)| ElectionStep::Returns(device, node)),
        1 => Just(ElectionStep::Reload),
        2 => (0..4u8, any::<bool>()).prop_map(|(device, master)| ElectionStep::Role(device, master)),
        1 => (1..4i32).prop_map(ElectionStep::Elect),
        2 => (1..4u64).prop_map(ElectionStep::Crash),
        1 => (1..4u64).prop_map(ElectionStep::Cut),
        3 => (1..4u64).prop_map(ElectionStep::Back),
        4 => (1..4u64).prop_map(ElectionStep::Lead),
        1 => any::<bool>().prop_map(ElectionStep::Transfers),
        1 => (1..4u64, prop_oneof![Just(0u64), Just(5_000)]).prop_map(|(node, lag)| ElectionStep::Lag(node, lag)),
        6 => (0..4u8).prop_map(ElectionStep::Steps),
        2 => prop_oneof![Just(100u64), Just(1_000), Just(7_000), Just(31_000)].prop_map(ElectionStep::Pass),
    ]
}

fn happen(world: &mut ElectionWorld, event: ElectionStep) {
    let id = |device: u8| format!("till-{device}");
    let send = |world: &mut ElectionWorld, node: u64, intent: Intent| drop(world.send(node, intent));
    match event {
        ElectionStep::Online { device, node, priority, master } if world.is_up(node) => {
            let role = if master { Role::Master } else { Role::Client };
            send(world, node, online(&id(device), priority, role, None));
        }
        ElectionStep::Online { .. } => {}
        ElectionStep::Offline(device) => {
            send(world, 1, Intent::DeviceOffline(DeviceOffline { device_id: id(device), ..Default::default() }));
        }
        ElectionStep::Shutdown(device) => {
            let reason = String::new();
            send(world, 1, Intent::DeviceShutdown(DeviceShutdown { device_id: id(device), reason }));
        }
        ElectionStep::Lost { device, node, old } => {
            let found = world.state.device(&id(device)).and_then(|d| present_on(d).find(|there| there.node == node));
            let Some(there) = found else { return };
            send(
                world,
                node,
                Intent::DeviceOffline(DeviceOffline {
                    device_id: id(device),
                    session_lost: true,
                    home: node,
                    online_count: there.online_count - u64::from(old),
                    ..DeviceOffline::default()
                }),
            );
        }
        ElectionStep::Returns(device, node) if world.is_up(node) && world.state.device(&id(device)).is_some() => {
            let Intent::DeviceOnline(back) = online(&id(device), 0, Role::Client, None) else { return };
            send(world, node, Intent::DeviceOnline(DeviceOnline { returns: true, priority: None, ..back }));
        }
        ElectionStep::Returns(..) => {}
        ElectionStep::Reload => {
            let before = (world.state.active_devices(), world.state.nodes_with_devices().collect::<Vec<_>>());
            world.state.reload().unwrap();
            let after = (world.state.active_devices(), world.state.nodes_with_devices().collect::<Vec<_>>());
            assert_eq!(after, before, "the rows say where devices are");
        }
        ElectionStep::Role(device, master) => {
            let role = if master { Role::Master } else { Role::Client }.into();
            let change = RoleChange {
                device_id: id(device),
                role,
                reason: "test".into(),
                by: "admin".into(),
                ..RoleChange::default()
            };
            send(world, 1, Intent::RoleChange(change));
        }
        ElectionStep::Elect(reason) => {
            let method = ElectionMethod::Priority.into();
            send(world, 1, Intent::Elect(Elect { reason, method, ..Elect::default() }));
        }
        ElectionStep::Crash(node) if !world.down.contains_key(&node) => world.crash(node),
        ElectionStep::Cut(node) if !world.cut.contains_key(&node) => world.isolate(node),
        ElectionStep::Back(node) => {
            world.cut.remove(&node);
            if world.down.contains_key(&node) {
                world.restart(node);
                send(world, node, booted());
            }
        }
        ElectionStep::Lead(node) if world.is_up(node) && world.quorum() => world.lead(node),
        ElectionStep::Crash(_) | ElectionStep::Cut(_) | ElectionStep::Lead(_) => {}
        ElectionStep::Transfers(fail) => world.transfers_fail = fail,
        ElectionStep::Lag(node, lag) => drop(world.lag.insert(node, lag)),
        ElectionStep::Steps(count) => {
            for _ in 0..count {
                world.step();
            }
        }
        ElectionStep::Pass(ms) => world.pass(ms),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_there_is_one_master_and_the_leader_is_its_home(
        first in 1..4u64,
        last in 1..4u64,
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut world = ElectionWorld::new();
        world.lead(first);
        for event in events {
            happen(&mut world, event);
        }
        // Everything works again. What was begun may still have tries to make: then 5 s without a fault.
        world.cut.clear();
        world.lag.clear();
        world.transfers_fail = false;
        let back: Vec<u64> = world.down.keys().copied().collect();
        for node in &back {
            world.restart(*node);
        }
        if world.leader().is_none() {
            world.lead(last);
        }
        for node in back {
            world.send(node, booted());
        }
        world.pass(5_000);
        if world.state.meta().needs_manual_election {
            // It has said so: someone asks.
            let reason = ElectionReason::Manual.into();
            world.send(last, Intent::Elect(Elect { reason, method: 1, ..Elect::default() }));
            world.run();
        }
        world.check_quiet();
    }
}

/// The reasons that a client may give.
#[test]
fn reasons_are_those_of_the_document() {
    let names = [1, 2, 3].map(|n| super::reason_name(ElectionReason::try_from(n).unwrap()));
    assert_eq!(names, ["shutdown", "failure", "manual"]);
}
