//! What is still written when the disks run full: at the gateway's door, before a command takes room in the log.

use super::Gateway;
use crate::limits;
use crate::model::error::{Code, Error};
use crate::proto::Operation;
use crate::proto::command::Intent;
use crate::storage::room::RoomState;

/// The room in which a command is refused, if there is one: what frees room, keeps somebody out, moves the master or is
/// an operator's order is never refused for it.
fn refused_in(intent: &Intent) -> Option<RoomState> {
    match intent {
        Intent::ImportBegin(_) | Intent::ImportRows(_) => Some(RoomState::Low),
        Intent::DataUpdate(update) if update.operation() == Operation::Delete => None,
        Intent::DataUpdate(update) if update.bulk => Some(RoomState::Low),
        Intent::DataUpdate(_) | Intent::CriticalEvent(_) | Intent::ConflictReport(_) => Some(RoomState::Full),
        Intent::DeviceOnline(_)
        | Intent::DeviceOffline(_)
        | Intent::DevicesSeen(_)
        | Intent::DeviceShutdown(_)
        | Intent::DeviceRevoke(_)
        | Intent::DeviceSuspend(_)
        | Intent::DeviceForget(_)
        | Intent::NodeBooted(_)
        | Intent::NodeLost(_)
        | Intent::MoveHome(_)
        | Intent::SyncBegin(_)
        | Intent::SyncComplete(_)
        | Intent::SyncStatePut(_)
        | Intent::SyncErrorReport(_)
        | Intent::Delivered(_)
        | Intent::Elect(_)
        | Intent::RoleChange(_)
        | Intent::LeaderAnnounced(_)
        | Intent::ElectionStarted(_)
        | Intent::MasterElected(_)
        | Intent::ElectionFailed(_)
        | Intent::LeaderTransferBack(_)
        | Intent::ConflictResolve(_)
        | Intent::PolicyPut(_)
        | Intent::TokenRevoke(_)
        | Intent::ClusterInit(_)
        | Intent::ClusterRecovered(_)
        | Intent::ClusterFinalize(_)
        | Intent::Compact(_)
        | Intent::AuditNote(_)
        | Intent::MembersChanged(_)
        | Intent::ImportFinish(_)
        | Intent::QueuesForget(_)
        | Intent::AccessPut(_)
        | Intent::PairAsk(_)
        | Intent::PairDecide(_)
        | Intent::PairClaim(_)
        | Intent::TableRemove(_)
        | Intent::TimeBack(_) => None,
    }
}

impl Gateway {
    /// 5003 if the disks have no room for the command.
    pub(super) fn must_have_room(&self, intent: &Intent) -> Result<(), Error> {
        let room = self.cluster.room();
        if room == RoomState::Plenty || refused_in(intent).is_none_or(|refused| room < refused) {
            return Ok(());
        }
        let mut refusal = Error::new(Code::Unavailable, self.cluster.room_reason().unwrap_or_default());
        refusal.retry_after_ms = Some(limits::ROOM_RETRY_MS);
        Err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::gateway::GatewaySettings;
    use crate::proto::{DataUpdate, DeviceOnline, Elect, ImportFinish, ImportRows, TableRemove, TokenRevoke};
    use crate::storage::room::{DiskRoom, RoomThresholds};
    use crate::testkit::local_cluster::LocalCluster;
    use crate::token::{Class, KeyRing};

    fn update(operation: Operation, bulk: bool) -> Intent {
        Intent::DataUpdate(DataUpdate {
            device_id: "till".into(),
            table_name: "sales".into(),
            record_id: 1,
            operation: operation.into(),
            data: if operation == Operation::Delete { "".into() } else { "{}".into() },
            bulk,
            ..DataUpdate::default()
        })
    }

    #[tokio::test]
    async fn a_threshold_that_is_passed_counts_from_the_next_command_on_and_so_does_room_that_comes_back() {
        let free = Arc::new(AtomicU64::new(5_000));
        let source = free.clone();
        let thresholds = RoomThresholds { low: 1_000, min: 100 };
        let room = DiskRoom::measured("d".into(), thresholds, Box::new(move || Ok(source.load(Ordering::Relaxed))));
        let (cluster, _effects) = LocalCluster::in_room(Arc::new(SystemClock), room.clone()).await.unwrap();
        let keys = KeyRing::parse(&"5a".repeat(32)).unwrap();
        let (_, claims) = keys.issue("till", Class::SalesAssistant, SystemClock.now_ms(), 60).unwrap();
        let gateway = Gateway::new(cluster, GatewaySettings::default(), keys);
        let online = Intent::DeviceOnline(DeviceOnline { device_id: "till".into(), ..DeviceOnline::default() });
        gateway.propose_for(&claims, online.clone()).await.unwrap();
        let (sale, line) = (|| update(Operation::Update, false), || update(Operation::Update, true));
        for (bytes, sale_goes, line_goes) in
            [(5_000, true, true), (900, true, false), (90, false, false), (500, true, false), (5_000, true, true)]
        {
            free.store(bytes, Ordering::Relaxed);
            room.measure();
            for (intent, goes) in [(sale(), sale_goes), (line(), line_goes)] {
                let answer = gateway.propose_for(&claims, intent).await;
                assert_eq!(answer.is_ok(), goes, "{bytes}: {answer:?}");
                if let Err(refused) = answer {
                    assert_eq!(refused.code, Code::Unavailable);
                    assert_eq!(refused.retry_after_ms, Some(limits::ROOM_RETRY_MS));
                    assert!(refused.message.contains("node 1 has 0 MiB left"), "{refused}");
                }
            }
            gateway.propose_for(&claims, update(Operation::Delete, true)).await.unwrap();
            gateway.propose_for(&claims, online.clone()).await.unwrap();
        }
    }

    #[test]
    fn what_frees_room_or_orders_is_never_refused() {
        for (intent, refused) in [
            (update(Operation::Insert, false), Some(RoomState::Full)),
            (update(Operation::Insert, true), Some(RoomState::Low)),
            (update(Operation::Update, false), Some(RoomState::Full)),
            (update(Operation::Update, true), Some(RoomState::Low)),
            (update(Operation::Delete, false), None),
            (update(Operation::Delete, true), None),
            (Intent::ImportRows(ImportRows::default()), Some(RoomState::Low)),
            (Intent::ImportFinish(ImportFinish::default()), None),
            (Intent::TableRemove(TableRemove::default()), None),
            (Intent::TokenRevoke(TokenRevoke::default()), None),
            (Intent::Elect(Elect::default()), None),
        ] {
            assert_eq!(refused_in(&intent), refused, "{intent:?}");
        }
    }
}
