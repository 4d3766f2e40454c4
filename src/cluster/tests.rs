//! Nodes elect, take writes and reads anywhere, and survive cuts and restarts.

use std::time::Duration;

use prost::Message;

use self::harness::{Cell, PATIENCE, changes, on_disk, online, seq, update, write};
use super::Cluster;
use super::boot::NodeConfig;
use crate::consensus::runtime::seeded;
use crate::consensus::types::EncodedBatch;
use crate::ids::NodeId;
use crate::model::error::Code;
use crate::proto::command::Intent;
use crate::proto::{Batch, Command, CommandId, DataUpdate};

mod clocks;
mod digests;
mod elections;
mod harness;
mod identity;
mod membership;
mod recovery;
mod room;
mod strangers;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_writes_and_reads() {
    let mut cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for id in [1, 2, 3] {
        assert_eq!(write(&cell.at(id), "till-1", id as i64).await, id);
        for reader in [1, 2, 3] {
            cell.at(reader).read_barrier().await.unwrap();
            assert_eq!(cell.at(reader).replica().state().meta().head_seq, id);
        }
    }
    // A refusal by the state machine comes back as an error, from followers too.
    for id in [1, 2, 3] {
        let refused = cell.at(id).propose(update("nobody", 1, "{}".into())).await.unwrap_err();
        assert_eq!(refused.code, Code::NotRegistered);
    }
    cell.converge().await;
    for node in cell.nodes.values_mut() {
        assert_eq!(changes(&mut node.effects, 3).await, [1, 2, 3]);
        assert_eq!(node.cluster.replica().state().meta().cluster_id, "cell");
        assert_ne!(node.cluster.replica().state().meta().epoch, 0);
    }
    cell.shutdown().await;
}

/// As many entries as an optimised build writes while a test changes members: nobody takes their effects, and apply would
/// wait for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_whose_effects_nobody_looks_at_goes_on() {
    let cell = Cell::new(1, |_| {}).await;
    cell.leader(&[1]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    for n in 0..5_000 {
        write(&cell.at(1), "till-1", n).await;
    }
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_made_in_order_are_applied_in_order() {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for id in [1, 2, 3] {
        let cluster = cell.at(id);
        let proposed: Vec<_> = (0..2_000).map(|n| cluster.propose(update("till-1", n, "{}".into()))).collect();
        let mut last = 0;
        for answer in proposed {
            let seq = seq(&answer.await.unwrap());
            assert!(seq > last);
            last = seq;
        }
    }
    cell.converge().await;
    cell.shutdown().await;
}

/// Whoever hears the leader follows it, however long its disk takes. A leader would stop its heartbeats after 300 ms without
/// an answer, and a read would wait for the disks.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_followers_disks_take_long_goes_on() {
    let cell = Cell::new(3, |config| config.request_timeout = Duration::from_secs(30)).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    cell.converge().await;
    let term = cell.nodes[&leader].cluster.node().leading().unwrap();
    let followers = [1, 2, 3].map(|id| (id != leader).then(|| &cell.disks[&id]));
    followers.iter().flatten().for_each(|disk| disk.hold());
    let cluster = cell.at(leader);
    let written = tokio::spawn(async move { write(&cluster, "till-1", 1).await });
    for disk in followers.iter().flatten() {
        disk.written().await;
    }
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(cell.nodes[&leader].cluster.node().leading(), Some(term));
        assert!(cell.at(leader).status().quorum);
    }
    tokio::time::timeout(Duration::from_secs(1), cell.at(leader).read_barrier()).await.unwrap().unwrap();
    assert!(!written.is_finished(), "no majority has it on its disks");
    followers.iter().flatten().for_each(|disk| disk.release());
    assert_eq!(written.await.unwrap(), 1);
    cell.shutdown().await;
}

/// A read changes nothing, so nobody has to wonder whether it arrived: without a quorum it is 2005, also while a
/// follower still takes a dead node for the leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_without_a_quorum_has_no_master() {
    let cell = Cell::new(3, |config| config.request_timeout = Duration::from_millis(20)).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    for id in [1, 2, 3] {
        cell.router.isolate(id);
    }
    for id in [1, 2, 3] {
        let error = cell.at(id).read_barrier().await.unwrap_err();
        assert_eq!(error.code, Code::NoMaster, "node {id}, the leader was {leader}: {error:?}");
    }
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_leader_is_cut_off() {
    let cell = Cell::new(3, |config| config.request_timeout = Duration::from_secs(10)).await;
    let old = cell.leader(&[1, 2, 3]).await;
    cell.at(old).propose(online("till-1")).await.unwrap();
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != old).collect();
    cell.router.isolate(old);
    // Not a word about who leads: the requests find out.
    for (n, id) in rest.iter().enumerate() {
        assert_eq!(write(&cell.at(*id), "till-1", 1).await, n as u64 + 1);
        cell.at(*id).read_barrier().await.unwrap();
    }
    let new = cell.leader(&rest).await;
    assert_ne!(new, old);
    // It notices when its lease is over, at the latest: the others do not wait for that.
    let noticed = async {
        while cell.at(old).status().quorum {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("the old leader believes in its quorum");
    // A read on the old leader must not be answered from its past. It is, once it can be answered.
    let read = cell.at(old).read_barrier();
    cell.router.heal();
    read.await.unwrap();
    assert_eq!(cell.at(old).replica().state().meta().head_seq, 2);
    assert_eq!(write(&cell.at(old), "till-1", 2).await, 3);
    cell.converge().await;
    cell.shutdown().await;
}

/// A till whose answers were lost with the leader sends its queue again, to whoever leads now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_goes_on_where_it_was_whoever_leads() {
    let mut cell = Cell::new(3, |config| config.request_timeout = Duration::from_secs(10)).await;
    let old = cell.leader(&[1, 2, 3]).await;
    cell.at(old).propose(online("till-1")).await.unwrap();
    let entry = |n: u64, after: u64, data: &str| {
        let Intent::DataUpdate(update) = update("till-1", n as i64, data.to_owned()) else { unreachable!() };
        let request_id = format!("sale-{n}");
        Intent::DataUpdate(DataUpdate { queue: "q".into(), n, after, request_id, ..update })
    };
    for n in 1..=3 {
        cell.at(old).propose(entry(n, n - 1, "{}")).await.unwrap();
    }
    cell.stop(old).await;
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != old).collect();
    let new = cell.leader(&rest).await;
    for id in &rest {
        for n in 1..=3 {
            let again = cell.at(*id).propose(entry(n, n - 1, "{}")).await.unwrap();
            assert!(again.repeated);
            assert_eq!(seq(&again), n);
        }
        let other = cell.at(*id).propose(entry(3, 2, r#"{"v":1}"#)).await.unwrap_err();
        assert_eq!((other.code, other.field(), other.last()), (Code::InvalidData, Some("n"), Some(3)));
        let gap = cell.at(*id).propose(entry(6, 5, "{}")).await.unwrap_err();
        assert_eq!((gap.code, gap.field(), gap.last()), (Code::InvalidData, Some("after"), Some(3)));
    }
    assert_eq!(seq(&cell.at(new).propose(entry(5, 3, "{}")).await.unwrap()), 4);
    cell.start(old).await;
    cell.leader(&[1, 2, 3]).await;
    assert!(cell.at(old).propose(entry(5, 3, "{}")).await.unwrap().repeated);
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_requests_fail_in_time() {
    let cell = Cell::new(3, |config| config.request_timeout = Duration::from_millis(600)).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for id in [1, 2, 3] {
        cell.router.isolate(id);
    }
    // On the leader it is in the log; whether it will stay there nobody knows.
    let error = cell.at(leader).propose(update("till-1", 1, "{}".into())).await.unwrap_err();
    assert!([Code::Timeout, Code::NoMaster].contains(&error.code), "{error:?}");
    let other = if leader == 1 { 2 } else { 1 };
    let error = cell.at(other).propose(update("till-1", 1, "{}".into())).await.unwrap_err();
    assert_eq!(error.code, Code::NoMaster);
    for id in [1, 2, 3] {
        assert!(cell.at(id).read_barrier().await.is_err());
    }
    cell.router.heal();
    cell.leader(&[1, 2, 3]).await;
    write(&cell.at(other), "till-1", 2).await;
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_catches_up_by_log() {
    let mut cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    cell.stop(leader).await;
    for n in 0..20 {
        write(&cell.at(rest[0]), "till-1", n).await;
    }
    cell.start(leader).await;
    cell.at(leader).read_barrier().await.unwrap();
    assert_eq!(cell.at(leader).replica().state().meta().head_seq, 20);
    cell.converge().await;
    // And all of them at once, from their disks.
    for id in [1, 2, 3] {
        cell.stop(id).await;
    }
    for id in [1, 2, 3] {
        cell.start(id).await;
    }
    cell.at(1).read_barrier().await.unwrap();
    assert_eq!(cell.at(1).replica().state().meta().head_seq, 20);
    assert_eq!(write(&cell.at(2), "till-1", 99).await, 21);
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_long_catches_up_by_snapshot() {
    let low = |config: &mut NodeConfig| (config.snapshot_every, config.keep_entries) = (50, 10);
    let mut cell = Cell::new(3, low).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    let away = if leader == 1 { 2 } else { 1 };
    cell.stop(away).await;
    let mut written = 0;
    while cell.nodes[&leader].log.bounds().purged.is_none() || written < 400 {
        write(&cell.at(leader), "till-1", written).await;
        written += 1;
        assert!(written < 100_000, "the log is never purged");
    }
    cell.start(away).await;
    cell.at(away).read_barrier().await.unwrap();
    assert_eq!(cell.at(away).replica().state().meta().head_seq, written as u64);
    assert_eq!(write(&cell.at(away), "till-1", 1).await, written as u64 + 1);
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_bounded_by_bytes_and_who_was_away_longer_gets_a_snapshot() {
    const LOG_BYTES: u64 = 200_000;
    let mut cell = Cell::new(3, |config| config.log_bytes = LOG_BYTES).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    let away = if leader == 1 { 2 } else { 1 };
    cell.stop(away).await;
    // One record, of which forty states are as much as the log may have; but a snapshot has the changes, too, and the log
    // may have half as much.
    let picture = "x".repeat(5_000);
    for n in 0..400 {
        let write = update("till-1", 1, format!("{{\"n\":{n},\"picture\":\"{picture}\"}}"));
        cell.at(leader).propose(write).await.unwrap();
    }
    let most = 400 * 5_200 / 2;
    let bounded = async {
        while cell.nodes.values().any(|node| node.log.bytes() > most) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, bounded).await.expect("the log is as large as it was");
    let kept = cell.nodes[&leader].log.bytes();
    assert!(kept > LOG_BYTES / 4, "nothing is left for who was away for a moment: {kept} bytes");
    cell.start(away).await;
    cell.at(away).read_barrier().await.unwrap();
    assert_eq!(cell.at(away).replica().state().meta().head_seq, 400);
    assert_eq!(write(&cell.at(away), "till-1", 1).await, 401);
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_while_leadership_moves() {
    let cell = Cell::new(3, |_| {}).await;
    let first = cell.leader(&[1, 2, 3]).await;
    cell.at(first).propose(online("till-1")).await.unwrap();
    let writers: Vec<_> = [1, 2, 3]
        .into_iter()
        .map(|id| {
            let cluster = cell.at(id);
            tokio::spawn(async move {
                let mut seqs = Vec::new();
                // Bursts of calls without waiting in between, as a session makes them.
                for burst in 0..60 {
                    let calls: Vec<_> =
                        (0..20).map(|n| cluster.propose(update("till-1", burst * 20 + n, "{}".into()))).collect();
                    for call in calls {
                        seqs.push(seq(&call.await.unwrap()));
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                seqs
            })
        })
        .collect();
    for turn in 1..=6 {
        let leader = cell.leader(&[1, 2, 3]).await;
        let to = (leader + turn % 2) % 3 + 1;
        if to != leader {
            let _ = cell.nodes[&leader].cluster.transfer_leader(NodeId(to), Duration::from_secs(2)).await;
        }
    }
    let mut all = Vec::new();
    for writer in writers {
        let seqs = writer.await.unwrap();
        assert!(seqs.is_sorted(), "a burst was applied out of order");
        all.extend(seqs);
    }
    all.sort_unstable();
    assert_eq!(all, (1..=3 * 60 * 20).collect::<Vec<u64>>());
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_over_grpc() {
    let mut cell = Cell::over_grpc().await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for id in [1, 2, 3] {
        let cluster = cell.at(id);
        let calls: Vec<_> = (0..500).map(|n| cluster.propose(update("till-1", n, "{}".into()))).collect();
        for call in calls {
            call.await.unwrap();
        }
        cluster.read_barrier().await.unwrap();
    }
    let to = leader % 3 + 1;
    cell.nodes[&leader].cluster.transfer_leader(NodeId(to), Duration::from_secs(5)).await.unwrap();
    write(&cell.at(leader), "till-1", 7).await;
    cell.converge().await;
    // The leader goes down; the others go on.
    cell.stop(to).await;
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != to).collect();
    for id in &rest {
        write(&cell.at(*id), "till-1", 8).await;
        cell.at(*id).read_barrier().await.unwrap();
    }
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_older_rows_serves_no_older_reads() {
    let mut cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for n in 0..10 {
        write(&cell.at(leader), "till-1", n).await;
    }
    for id in [1, 2, 3] {
        // The log stays, the rows since the last snapshot are gone, and so is the commit index.
        cell.disks[&id].crash();
        cell.nodes.remove(&id).unwrap().stopper.shutdown().await;
    }
    for id in [1, 2, 3] {
        cell.start(id).await;
    }
    for id in [1, 2, 3] {
        cell.at(id).read_barrier().await.unwrap();
        assert_eq!(cell.at(id).replica().state().meta().head_seq, 10);
    }
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_ahead_of_the_log_after_a_crash_come_with_a_snapshot_as_new() {
    let mut cell = Cell::new(3, |config| config.snapshot_every = 20).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    let follower = leader % 3 + 1;
    let disk = cell.disks[&follower].clone();
    let mut written = 0;
    while disk.snapshot_index().is_none() {
        written = write(&cell.at(leader), "till-1", 1).await;
    }
    disk.hold();
    for _ in 0..10 {
        written = write(&cell.at(leader), "till-1", 1).await;
    }
    // The follower applies what the two others have.
    let applied = cell.at(leader).replica().applied_index();
    tokio::time::timeout(PATIENCE, cell.at(follower).replica().wait_applied(applied)).await.unwrap();
    disk.crash_keeping(0, true);
    cell.nodes.remove(&follower).unwrap().stopper.shutdown().await;
    disk.release();
    cell.start(follower).await;
    assert!(disk.snapshot_index() >= Some(applied), "{:?} of {applied}", disk.snapshot_index());
    assert_eq!(cell.at(follower).replica().state().meta().head_seq, written);
    write(&cell.at(follower), "till-1", 2).await;
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_in_the_log_twice_is_applied_once() {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    let command = Command {
        origin: Some(CommandId { node: 9, boot: 77, number: 1 }),
        at_ms: 1,
        intent: Some(update("till-1", 1, "{}".into())),
        ..Command::default()
    };
    let batch = EncodedBatch(Batch { commands: vec![command] }.encode_to_vec().into());
    let raft = cell.nodes[&leader].cluster.node().raft().clone();
    let mut answers = Vec::new();
    for _ in 0..2 {
        answers.push(raft.client_write(batch.clone()).await.unwrap().data.0.remove(0));
    }
    assert_eq!([seq(&answers[0]), seq(&answers[1])], [1, 1]);
    assert_eq!([answers[0].repeated, answers[1].repeated], [false, true]);
    cell.converge().await;
    assert_eq!(cell.at(1).replica().state().meta().head_seq, 1);
    cell.shutdown().await;
}

/// What happened when, in simulated time.
async fn story(seed: u64) -> Vec<(Duration, u64, u64)> {
    seeded(seed, async {
        let began = tokio::time::Instant::now();
        let mut story = Vec::new();
        let cell = Cell::new(3, |_| {}).await;
        let mut among = vec![1, 2, 3];
        for turn in 0..4 {
            let leader = cell.leader(&among).await;
            story.push((began.elapsed(), leader, cell.at(leader).status().term.get()));
            if turn == 0 {
                cell.at(leader).propose(online("till-1")).await.unwrap();
            }
            let other = among.iter().copied().find(|id| *id != leader).unwrap();
            story.push((began.elapsed(), other, write(&cell.at(other), "till-1", turn).await));
            cell.router.heal();
            cell.converge().await;
            let leader = cell.leader(&[1, 2, 3]).await;
            story.push((began.elapsed(), leader, cell.at(leader).status().last_log_index.get()));
            cell.router.isolate(leader);
            among = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
        }
        cell.shutdown().await;
        story
    })
    .await
}

#[test]
fn a_seed_gives_the_same_story_every_time() {
    let tell = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(story(seed))
    };
    let first = tell(1);
    assert_eq!(first, tell(1));
    assert!((2..6).map(tell).any(|other| other != first), "the seed changes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = 0;
    for boot in 0..2 {
        let cell = Cell::on_stores(on_disk(dir.path())).await;
        let leader = cell.leader(&[1, 2, 3]).await;
        cell.at(leader).propose(online("till-1")).await.unwrap();
        for id in [1, 2, 3] {
            cell.at(id).read_barrier().await.unwrap();
            assert_eq!(cell.at(id).replica().state().meta().head_seq, written, "boot {boot}");
            let cluster = cell.at(id);
            let calls: Vec<_> = (0..200).map(|n| cluster.propose(update("till-1", n, "{}".into()))).collect();
            for call in calls {
                call.await.unwrap();
            }
            written += 200;
        }
        cell.converge().await;
        cell.shutdown().await;
    }
}
