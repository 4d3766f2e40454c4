//! Strangers who hold all the connections that they can get, at nodes with few files.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{Dev, NODES, PATIENCE};
use crate::retrying_clients::RetryingClients;

/// Files that each process may open, and connections that the strangers hold at each node: all of those and more.
const FILES: u64 = 200;
const HELD: usize = 300;

/// Opens half requests at every node, keeps them for as long as the node does, and counts them.
async fn open_and_hold(port: u16, opened: Arc<AtomicUsize>) {
    let mut held: [Vec<TcpStream>; NODES] = Default::default();
    loop {
        for (node, held) in held.iter_mut().enumerate() {
            if held.len() >= HELD {
                held.retain(|stream| stream.try_read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock));
                continue;
            }
            let connecting = TcpStream::connect(("127.0.0.1", port + node as u16));
            // A node that has just been killed takes none, nor one that is full.
            let Ok(Ok(mut stream)) = timeout(Duration::from_millis(200), connecting).await else { continue };
            if stream.write_all(b"GET / HTTP/1.1\r\nx: ").await.is_ok() {
                held.push(stream);
                opened.fetch_add(1, Ordering::Relaxed);
            }
        }
        // As fast as a burst, but not as fast as this machine can.
        sleep(Duration::from_millis(2)).await;
    }
}

async fn until(opened: &AtomicUsize, count: usize) {
    let end = Instant::now() + PATIENCE;
    while opened.load(Ordering::Relaxed) < count {
        assert!(Instant::now() < end, "the strangers opened {} only", opened.load(Ordering::Relaxed));
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_hold_connections_shut_out_neither_devices_nor_nodes() {
    let dev = Dev::start_limited(FILES);
    dev.ready().await;
    let writers = RetryingClients::start(4, dev.urls(), dev.token());
    writers.go_on(50).await;
    let opened = Arc::new(AtomicUsize::new(0));
    let strangers = AbortOnDropHandle::new(tokio::spawn(open_and_hold(dev.port, opened.clone())));
    until(&opened, HELD * NODES).await;
    // Nodes that go must find each other again, and devices a node, in the middle of it.
    for _ in 0..2 {
        writers.go_on(50).await;
        let leader = dev.ready().await[0].leader.unwrap();
        dev.kill(&[leader as usize]);
        writers.go_on(50).await;
        let before = opened.load(Ordering::Relaxed);
        until(&opened, before + HELD).await;
        dev.ready().await;
    }
    drop(strangers);
    assert!(!writers.finish().await.is_empty());
    dev.same_digest().await;
}
