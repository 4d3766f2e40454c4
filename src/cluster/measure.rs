//! Figures, by hand: `cargo test --release --lib measure -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::SharedCluster;
use super::cell::{Cell, on_disk, online, update};

async fn load(clusters: &[SharedCluster], clients: usize, read: bool, seconds: u64) -> (f64, Histogram<u64>) {
    let started = Instant::now();
    let end = started + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let cluster = clusters[client % clusters.len()].clone();
            tokio::spawn(async move {
                let mut times = Histogram::<u64>::new(3).unwrap();
                let data = format!("{{\"client\":{client},\"pad\":\"{}\"}}", "x".repeat(220));
                let mut n = 0;
                while Instant::now() < end {
                    let since = Instant::now();
                    if read {
                        cluster.read_barrier().await.unwrap();
                    } else {
                        let record = client as i64 * 1_000 + n % 1_000;
                        cluster.propose(update("till-1", record, data.clone())).await.unwrap();
                    }
                    n += 1;
                    times.record(since.elapsed().as_micros() as u64).unwrap();
                }
                times
            })
        })
        .collect();
    let mut all = Histogram::new(3).unwrap();
    for task in tasks {
        all.add(task.await.unwrap()).unwrap();
    }
    (all.len() as f64 / started.elapsed().as_secs_f64(), all)
}

async fn measure(cell: Cell, name: &str) {
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    let follower = leader % 3 + 1;
    for (place, clusters) in [
        ("leader", vec![cell.at(leader)]),
        ("follower", vec![cell.at(follower)]),
        ("all", vec![cell.at(1), cell.at(2), cell.at(3)]),
    ] {
        for read in [false, true] {
            for clients in [1, 16, 256] {
                let (rate, times) = load(&clusters, clients, read, 3).await;
                let what = if read { "reads" } else { "writes" };
                let (p50, p99) = (times.value_at_quantile(0.5), times.value_at_quantile(0.99));
                println!("{name:8} {place:8} {what:6} {clients:4} clients: {rate:8.0}/s  p50 {p50} us  p99 {p99} us");
            }
        }
    }
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn measure_in_process() {
    let mut cell = Cell::new(3, |_| {}).await;
    cell.ignore_effects();
    measure(cell, "process").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn measure_over_grpc() {
    let mut cell = Cell::over_grpc().await;
    cell.ignore_effects();
    measure(cell, "grpc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn measure_on_disk() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut cell = Cell::on_stores(on_disk(dir.path())).await;
    cell.ignore_effects();
    measure(cell, "disk").await;
}
