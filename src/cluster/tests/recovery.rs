//! Most of the voters' disks are lost: nobody founds a second cluster beside the survivor, and its folder goes on alone.

use std::time::Duration;

use super::harness::{Cell, PATIENCE, member, online, update, write};
use crate::cluster::MembershipChange;
use crate::consensus::recovery::StoppedNode;
use crate::ids::NodeId;
use crate::model::audit::AuditFilter;
use crate::proto::command::Intent;
use crate::proto::{NodeBooted, Principal};
use crate::storage::memory::MemoryDisk;

/// Three nodes that are known to have booted.
async fn three() -> Cell {
    let cell = Cell::new(3, |_| {}).await;
    cell.leader(&[1, 2, 3]).await;
    for id in 1..=3 {
        cell.at(id).propose(Intent::NodeBooted(NodeBooted::default())).await.unwrap();
    }
    cell.at(1).propose(online("till")).await.unwrap();
    cell
}

async fn change(cell: &Cell, at: u64, change: MembershipChange) {
    let by = Principal { sub: "boss".into(), jti: "t".into() };
    cell.at(at).change(change, by, PATIENCE).await.unwrap();
}

/// The survivor as the leader, who knows it is cut off after its lease only, and as a follower.
#[tokio::test]
async fn wiped_nodes_are_refused_by_a_survivor_that_has_no_quorum() {
    for survivor_leads in [true, false] {
        let mut cell = three().await;
        let leader = cell.leader(&[1, 2, 3]).await;
        if survivor_leads != (leader == 3) {
            change(
                &cell,
                leader,
                MembershipChange::Transfer { to: if survivor_leads { NodeId(3) } else { NodeId(1) } },
            )
            .await;
        }
        cell.converge().await;
        for id in [1, 2] {
            cell.stop(id).await;
            cell.disks.insert(id, MemoryDisk::default());
        }
        for id in [1, 2] {
            cell.start(id).await;
        }
        for id in [1, 2] {
            let why = cell.ended(id).await;
            assert!(why.contains("data folder is empty") && why.contains("new id"), "{why}");
            assert!(cell.nodes[&id].cluster.node().is_pristine().await.unwrap());
        }
        cell.shutdown().await;
    }
}

/// The folder of a stopped node.
async fn recover(cell: &Cell, id: u64, epoch: u64) {
    let stopped = StoppedNode::open(cell.disks[&id].open()).await.unwrap();
    assert_eq!(stopped.contents.voters, [1, 2, 3].map(NodeId).into());
    stopped.make_alone(NodeId(id), member(id), epoch).await.unwrap();
    stopped.close().await.unwrap();
}

#[tokio::test]
async fn one_folder_becomes_a_cluster_of_one_that_keeps_everything_and_grows() {
    let mut cell = three().await;
    for record in 0..20 {
        write(&cell.at(1), "till", record).await;
    }
    cell.converge().await;
    let before = cell.at(3).replica().state().meta().clone();
    for id in 1..=3 {
        cell.stop(id).await;
    }
    // The first try is interrupted, and made again.
    recover_half(&cell, 3, 70).await;
    recover(&cell, 3, 77).await;
    cell.start(3).await;
    assert_eq!(cell.leader(&[3]).await, 3);
    let served = async {
        while cell.at(3).read_barrier().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
    {
        let replica = cell.at(3).replica().clone();
        let state = replica.state();
        let meta = state.meta();
        assert_eq!((meta.epoch, meta.head_seq, &meta.removed_nodes[..]), (77, before.head_seq, &[1, 2][..]));
        let filter = AuditFilter { event_type: Some("cluster_recovered".into()), ..AuditFilter::default() };
        assert_eq!(state.audit_index().page(&filter, 10, 0).0, 1);
    }
    cell.at(3).propose(update("till", 7, "{\"after\":1}".into())).await.unwrap();
    // The others come back: they are another cluster, and neither side takes anything from the other.
    cell.start(1).await;
    cell.start(2).await;
    let other = cell.leader(&[1, 2]).await;
    assert_eq!(
        (cell.at(other).replica().state().meta().epoch, cell.at(3).status().voters),
        (before.epoch, vec![NodeId(3)])
    );
    write(&cell.at(other), "till", 500).await;
    let refused =
        cell.nodes[&1].cluster.identity.check_any(Some(&cell.nodes[&3].cluster.identity.handshake(NodeId(1))));
    assert!(refused.unwrap_err().to_string().contains("two clusters are named"));
    assert_eq!(cell.at(3).status().leader, Some(NodeId(3)));
    for id in [1, 2] {
        cell.stop(id).await;
    }
    // An empty machine is sent the whole log, in which the epoch is first the one before.
    for id in [4, 5] {
        cell.start_new(id).await;
        let add =
            MembershipChange::Add { node: NodeId(id), raft: format!("node-{id}"), gateway: format!("gateway-{id}") };
        change(&cell, 3, add).await;
    }
    cell.leader(&[3, 4, 5]).await;
    cell.converge().await;
    assert_eq!(cell.at(5).replica().state().meta().epoch, 77);
    // It knows so after a restart, too.
    cell.stop(5).await;
    cell.start(5).await;
    cell.leader(&[3, 4, 5]).await;
    write(&cell.at(5), "till", 8).await;
    cell.shutdown().await;
}

/// The mark is on the disk, the entry is not.
async fn recover_half(cell: &Cell, id: u64, epoch: u64) {
    let stores = cell.disks[&id].open();
    stores.starts.save_epoch(epoch).await.unwrap();
    stores.close.close().await.unwrap();
}

/// Its rows have what its log lost: after a crash they may be ahead.
#[tokio::test]
async fn rows_that_are_ahead_of_the_log_are_kept() {
    let mut cell = three().await;
    cell.converge().await;
    let leader = cell.leader(&[1, 2, 3]).await;
    let survivor = [1, 2, 3].into_iter().find(|id| *id != leader).unwrap();
    cell.disks[&survivor].hold();
    let mut head = 0;
    for record in 0..5 {
        head = write(&cell.at(leader), "till", record).await;
    }
    cell.converge().await;
    cell.disks[&survivor].crash_keeping(0, true);
    for id in 1..=3 {
        cell.stop(id).await;
    }
    cell.disks[&survivor].release();
    recover(&cell, survivor, 9).await;
    cell.start(survivor).await;
    assert_eq!(cell.leader(&[survivor]).await, survivor);
    let served = async {
        while cell.at(survivor).read_barrier().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
    assert_eq!(cell.at(survivor).replica().state().meta().head_seq, head);
    write(&cell.at(survivor), "till", 99).await;
    cell.shutdown().await;
}
