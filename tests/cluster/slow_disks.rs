//! Machines with an SD card, or a disk that is worn out: each flush takes 150 ms, and a vote needs one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::PATIENCE;
use crate::processes::Processes;

/// Writes a price by whichever of these nodes takes it first.
async fn written(nodes: &Processes, ids: &[u64], price: u32) {
    let (rest, end) = (nodes.rest(), Instant::now() + PATIENCE);
    let record = json!({ "device_id": "till-1", "new_data": { "price": price } });
    for id in ids.iter().cycle() {
        match rest.post::<Value>(&nodes.url(*id), "/data/stock/1", &record).await {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < end, "{error}\n{}", nodes.said(*id)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn nodes_on_slow_disks_agree_on_a_leader_after_a_power_cut_and_when_it_is_gone() {
    let mut nodes = Processes::found_on_faulty_disks(3).await;
    let device = json!({ "device_id": "till-1" });
    nodes.rest().post::<Value>(&nodes.url(1), "/device/register", &device).await.unwrap();
    (1..=3).for_each(|id| nodes.kill(id));
    nodes.slow_disks(150);
    (1..=3).for_each(|id| nodes.start(id));
    let leader = nodes.ready().await[0].leader.unwrap();
    written(&nodes, &[1, 2, 3], 1).await;
    let said = nodes.said(leader);
    assert!(said.contains("the disk takes long to flush"), "{said}");
    nodes.kill(leader);
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    written(&nodes, &others, 2).await;
}

/// It becomes slow when all is well, and the leader dies: the others start again with times in which they can elect one. That
/// a leader stays as long as it lives is held in simulated time (`a_leader_whose_followers_disks_take_long_goes_on`): here a
/// machine that is busy could cost it its place.
#[tokio::test]
async fn nodes_whose_disks_become_slow_find_another_leader() {
    let mut nodes = Processes::found_on_faulty_disks(3).await;
    let device = json!({ "device_id": "till-1" });
    let before = nodes.ready().await[0].clone();
    // The master is at home where the lead is: it need not move there on slow disks.
    let home = nodes.url(before.leader.unwrap());
    nodes.rest().post::<Value>(&home, "/device/register", &device).await.unwrap();
    nodes.slow_disks(400);
    for price in 0..8 {
        written(&nodes, &[1, 2, 3], price).await;
    }
    let leader = nodes.ready().await[0].leader.unwrap();
    nodes.kill(leader);
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    written(&nodes, &others, 1_000_000).await;
    assert!(others.iter().any(|id| nodes.said(*id).contains("starting again")), "{}", nodes.said(others[0]));
}
