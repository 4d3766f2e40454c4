//! A TCP proxy between two nodes that can be cut, slowed down and narrowed while it runs.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::try_join;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::network::{LinkCut, Rule};
use crate::rng::Rng;

/// Connections of one proxy; more are reset.
const CONNECTIONS: usize = 256;
/// Bytes read at a time, and chunks under way in each direction.
const CHUNK: usize = 64 << 10;
const UNDER_WAY: usize = 64;
const AGAIN: Duration = Duration::from_millis(20);
const CONNECT: Duration = Duration::from_secs(1);

pub(super) struct Proxy {
    pub listen: SocketAddr,
    pub target: SocketAddr,
    /// The rule for what goes to the target, and for what comes back.
    pub out: watch::Receiver<Rule>,
    pub back: watch::Receiver<Rule>,
    pub seed: u64,
}

/// Whether anybody may be listening.
fn closed(out: &Rule, back: &Rule) -> bool {
    out.down || out.cut == LinkCut::Refused || back.cut == LinkCut::Refused
}

impl Proxy {
    pub(super) async fn run(mut self) {
        let mut rng = Rng::new(self.seed);
        loop {
            let Some(listener) = self.open().await else { return };
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    changed = self.out.changed() => if changed.is_err() { return },
                    changed = self.back.changed() => if changed.is_err() { return },
                    Some(_) = connections.join_next() => continue,
                    accepted = listener.accept() => {
                        let Ok((near, _)) = accepted else { continue };
                        if connections.len() >= CONNECTIONS {
                            reset(&near);
                            continue;
                        }
                        let (out, back) = (self.out.clone(), self.back.clone());
                        connections.spawn(relay(near, self.target, out, back, rng.fork()));
                        continue;
                    }
                }
                if closed(&self.out.borrow(), &self.back.borrow()) {
                    break;
                }
            }
            // Relays see the same change, and end by themselves.
            drop(listener);
            connections.detach_all();
        }
    }

    /// Listens as soon as somebody does at the target, and the link is whole.
    async fn open(&mut self) -> Option<TcpListener> {
        loop {
            if closed(&self.out.borrow(), &self.back.borrow()) {
                tokio::select! {
                    changed = self.out.changed() => changed.ok()?,
                    changed = self.back.changed() => changed.ok()?,
                }
                continue;
            }
            if let Ok(Ok(probe)) = timeout(CONNECT, TcpStream::connect(self.target)).await {
                drop(probe);
                if let Ok(listener) = TcpListener::bind(self.listen).await {
                    return Some(listener);
                }
            }
            sleep(AGAIN).await;
        }
    }
}

/// The connection ends with a reset when it is dropped.
fn reset(stream: &TcpStream) {
    // It may be gone already.
    let _ = stream.set_zero_linger();
}

/// Resolves when the links' connections are to be reset.
async fn broken(mut out: watch::Receiver<Rule>, mut back: watch::Receiver<Rule>) {
    let resets = (out.borrow().resets, back.borrow().resets);
    loop {
        let (a, b) = (*out.borrow_and_update(), *back.borrow_and_update());
        if a.cut == LinkCut::Refused || b.cut == LinkCut::Refused || resets != (a.resets, b.resets) {
            return;
        }
        let changed = tokio::select! {
            changed = out.changed() => changed,
            changed = back.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn relay(
    mut near: TcpStream,
    target: SocketAddr,
    out: watch::Receiver<Rule>,
    back: watch::Receiver<Rule>,
    mut rng: Rng,
) {
    let Ok(Ok(mut far)) = timeout(CONNECT, TcpStream::connect(target)).await else { return reset(&near) };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let whole = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let there = pump(near_read, far_write, out.clone(), rng.fork());
        let here = pump(far_read, near_write, back.clone(), rng.fork());
        tokio::select! {
            ended = try_join(there, here) => ended.is_ok(),
            () = broken(out, back) => false,
        }
    };
    if !whole {
        reset(&near);
        reset(&far);
    }
}

/// Waits until the direction is not silent.
async fn heard(rule: &mut watch::Receiver<Rule>) -> io::Result<()> {
    let whole = rule.wait_for(|rule| rule.cut == LinkCut::No).await;
    whole.map(drop).map_err(|_| io::ErrorKind::ConnectionAborted.into())
}

/// One direction, until its end. What is under way keeps its order.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    rule: watch::Receiver<Rule>,
    mut rng: Rng,
) -> io::Result<()> {
    let (queue, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let mut reading = rule.clone();
    let mut writing = rule;
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        let mut last = Instant::now();
        loop {
            heard(&mut reading).await?;
            let n = from.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            let Rule { latency, jitter, .. } = *reading.borrow();
            let late = latency + rng.micros(0, jitter.as_micros() as u64);
            last = last.max(Instant::now() + late);
            if queue.send((last, buffer.get(..n).unwrap_or_default().to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = arriving.recv().await {
            if due > Instant::now() {
                sleep_until(due).await;
            }
            heard(&mut writing).await?;
            let rate = writing.borrow().rate;
            if rate > 0 {
                sleep(Duration::from_secs_f64(bytes.len() as f64 / rate as f64)).await;
            }
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    try_join(read, write).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::task::AbortOnDropHandle;

    /// Sends back what it is sent.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    struct Rig {
        at: SocketAddr,
        out: watch::Sender<Rule>,
        back: watch::Sender<Rule>,
        _proxy: AbortOnDropHandle<()>,
    }

    async fn rig() -> Rig {
        let target = echo().await;
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = held.local_addr().unwrap();
        drop(held);
        let (out, back) = (watch::Sender::new(Rule::default()), watch::Sender::new(Rule::default()));
        let proxy = Proxy { listen, target, out: out.subscribe(), back: back.subscribe(), seed: 1 };
        Rig { at: listen, out, back, _proxy: AbortOnDropHandle::new(tokio::spawn(proxy.run())) }
    }

    impl Rig {
        async fn connect(&self) -> TcpStream {
            loop {
                if let Ok(stream) = TcpStream::connect(self.at).await {
                    return stream;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    async fn say(stream: &mut TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn hear(stream: &mut TcpStream, text: &str) {
        let mut got = vec![0; text.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), text);
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_the_end_as_well() {
        let rig = rig().await;
        let mut stream = rig.connect().await;
        say(&mut stream, "hello").await;
        hear(&mut stream, "hello").await;
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_silent_link_keeps_what_was_sent_for_later() {
        let rig = rig().await;
        let mut stream = rig.connect().await;
        say(&mut stream, "a").await;
        hear(&mut stream, "a").await;
        for side in [&rig.out, &rig.back] {
            side.send_modify(|rule| rule.cut = LinkCut::Silent);
            say(&mut stream, "b").await;
            let mut byte = [0; 1];
            let heard = timeout(Duration::from_millis(100), stream.read_exact(&mut byte)).await;
            assert!(heard.is_err(), "a silent link was heard");
            side.send_modify(|rule| rule.cut = LinkCut::No);
            hear(&mut stream, "b").await;
        }
    }

    #[tokio::test]
    async fn a_refused_link_ends_its_connections_and_takes_no_new_ones() {
        let rig = rig().await;
        let mut stream = rig.connect().await;
        say(&mut stream, "a").await;
        hear(&mut stream, "a").await;
        rig.back.send_modify(|rule| rule.cut = LinkCut::Refused);
        assert!(stream.read(&mut [0; 1]).await.is_err(), "it was not reset");
        while TcpStream::connect(rig.at).await.is_ok() {
            tokio::task::yield_now().await;
        }
        rig.back.send_modify(|rule| rule.cut = LinkCut::No);
        let mut stream = rig.connect().await;
        say(&mut stream, "b").await;
        hear(&mut stream, "b").await;
    }

    #[tokio::test]
    async fn a_reset_ends_connections_but_new_ones_are_taken() {
        let rig = rig().await;
        let mut stream = rig.connect().await;
        say(&mut stream, "a").await;
        hear(&mut stream, "a").await;
        rig.out.send_modify(|rule| rule.resets += 1);
        assert!(stream.read(&mut [0; 1]).await.is_err(), "it was not reset");
        let mut stream = rig.connect().await;
        say(&mut stream, "b").await;
        hear(&mut stream, "b").await;
    }

    #[tokio::test]
    async fn a_late_or_narrow_link_takes_its_time() {
        let rig = rig().await;
        let mut stream = rig.connect().await;
        rig.out.send_modify(|rule| rule.latency = Duration::from_millis(80));
        let began = Instant::now();
        say(&mut stream, "a").await;
        hear(&mut stream, "a").await;
        assert!(began.elapsed() >= Duration::from_millis(80));
        rig.out.send_replace(Rule { rate: 10_000, ..Rule::default() });
        let began = Instant::now();
        let text = "x".repeat(2_000);
        say(&mut stream, &text).await;
        hear(&mut stream, &text).await;
        assert!(began.elapsed() >= Duration::from_millis(200));
    }

    #[tokio::test]
    async fn nobody_listens_for_a_node_that_is_down() {
        let rig = rig().await;
        drop(rig.connect().await);
        rig.out.send_modify(|rule| rule.down = true);
        while TcpStream::connect(rig.at).await.is_ok() {
            tokio::task::yield_now().await;
        }
        rig.out.send_modify(|rule| rule.down = false);
        drop(rig.connect().await);
    }
}
