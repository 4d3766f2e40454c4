//! Connections as attackers use them: bytes, not protocols. Each is counted while it is open.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

/// Honest devices come from another one.
const STRANGERS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
const THIEVES: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 67);
const CONNECT: Duration = Duration::from_secs(2);
/// What the kernel keeps for a reader that does not read. Bytes.
const SMALL: u32 = 4 << 10;
/// How long the head of an answer may take.
const HEAD: Duration = Duration::from_secs(5);

/// What an attacker saw of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttackReply {
    pub bytes: u64,
    /// The node ended the connection.
    pub ended: bool,
}

pub(crate) struct AttackSocket {
    stream: TcpStream,
    open: Arc<AtomicU64>,
    seen: AttackReply,
}

impl Drop for AttackSocket {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttackOrigin {
    Stranger,
    Thief,
    /// With a small buffer, so that the node feels that nothing is read.
    ThiefWhoDoesNotRead,
}

impl AttackSocket {
    pub(crate) async fn connect(open: &Arc<AtomicU64>, from: AttackOrigin, to: SocketAddr) -> Option<Self> {
        let socket = TcpSocket::new_v4().ok()?;
        let address = if from == AttackOrigin::Stranger { STRANGERS } else { THIEVES };
        // Where loopback has one address only, all come from that one.
        let _ = socket.bind(SocketAddr::new(IpAddr::V4(address), 0));
        if from == AttackOrigin::ThiefWhoDoesNotRead {
            let _ = socket.set_recv_buffer_size(SMALL);
        }
        let stream = timeout(CONNECT, socket.connect(to)).await.ok()?.ok()?;
        open.fetch_add(1, Ordering::Relaxed);
        Some(Self { stream, open: open.clone(), seen: AttackReply::default() })
    }

    /// False if the node ended the connection, or takes nothing for too long.
    pub(crate) async fn send(&mut self, bytes: &[u8], within: Duration) -> bool {
        match timeout(within, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => true,
            Ok(Err(_)) => {
                self.seen.ended = true;
                false
            }
            Err(_) => false,
        }
    }

    /// Reads until the node ends the connection, or for so long.
    pub(crate) async fn hold(mut self, during: Duration) -> AttackReply {
        self.listen(during).await;
        self.seen
    }

    /// The same; false if the node has ended it.
    pub(crate) async fn listen(&mut self, during: Duration) -> bool {
        let until = Instant::now() + during;
        let mut buffer = vec![0_u8; 1 << 10];
        while !self.seen.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            match timeout(left, self.stream.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => self.seen.ended = true,
                Ok(Ok(read)) => self.seen.bytes += read as u64,
                Err(_) => return true,
            }
        }
        false
    }

    /// Reads a little, again and again.
    pub(crate) async fn read_slowly(mut self, during: Duration) -> AttackReply {
        let until = Instant::now() + during;
        let mut buffer = [0_u8; 512];
        while Instant::now() < until {
            match timeout(HEAD, self.stream.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => {
                    self.seen.ended = true;
                    break;
                }
                Ok(Ok(read)) => self.seen.bytes += read as u64,
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        self.seen
    }

    /// Reads the head of an answer and nothing of what follows but what came with it.
    pub(crate) async fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        let read = async {
            let mut buffer = vec![0_u8; 1 << 10];
            while head.len() < 16 << 10 && !head.windows(4).any(|four| four == b"\r\n\r\n") {
                match self.stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => return false,
                    Ok(read) => head.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                }
            }
            true
        };
        let whole = timeout(HEAD, read).await;
        self.seen.bytes += head.len() as u64;
        self.seen.ended |= whole == Ok(false);
        (whole == Ok(true)).then(|| String::from_utf8_lossy(&head).into_owned())
    }

    /// The whole answer, up to so many bytes, of a node that was asked to close.
    pub(crate) async fn answer(&mut self, most: usize) -> String {
        let mut answer = Vec::new();
        let mut some = (&mut self.stream).take(most as u64);
        let read = some.read_to_end(&mut answer);
        // What came until then is what is taken.
        let _ = timeout(HEAD, read).await;
        self.seen.bytes += answer.len() as u64;
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn seen(&self) -> AttackReply {
        self.seen
    }

    /// Sends as fast as the node takes it and reads all that comes back, for so long. `make` gives the next bytes.
    pub(crate) async fn flood(mut self, during: Duration, mut make: impl FnMut() -> Vec<u8>) -> AttackReply {
        let (mut read, mut write) = self.stream.split();
        let seen = &mut self.seen;
        let sending = async {
            loop {
                if write.write_all(&make()).await.is_err() {
                    return;
                }
                // All attackers share a thread.
                tokio::task::yield_now().await;
            }
        };
        let reading = async {
            let mut buffer = vec![0_u8; 16 << 10];
            loop {
                match read.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => seen.bytes += read as u64,
                }
            }
        };
        let ended = tokio::select! {
            () = sending => true,
            () = reading => true,
            () = tokio::time::sleep(during) => false,
        };
        self.seen.ended |= ended;
        self.seen
    }
}

/// A text frame as a client sends it, with a mask that changes nothing.
pub(super) fn frame(text: &str) -> Vec<u8> {
    let mut out = vec![0x81];
    match text.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(text.as_bytes());
    out
}

/// The request that opens a WebSocket.
pub(super) fn upgrade(path: &str, token: Option<&str>) -> String {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{token}\r\n"
    )
}

/// This process may open as many descriptors as it is allowed to; an error if `wanted` are too many.
pub(crate) fn raise_descriptors(wanted: u64) -> Result<(), String> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it is given a struct of its own to fill, and to read.
    let allowed = unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
                limit = raised;
            }
        }
        limit.rlim_cur
    };
    if allowed >= wanted {
        return Ok(());
    }
    Err(format!("{wanted} open files are needed here, and {allowed} are allowed: raise `ulimit -Hn`"))
}

/// This thread gives way to others.
pub(super) fn be_nice(by: i32) {
    // It is a matter of fairness only.
    #[cfg(target_os = "linux")]
    // SAFETY: it touches nothing but this thread's priority.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, by) };
    #[cfg(not(target_os = "linux"))]
    let _ = by;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_say_how_long_they_are() {
        assert_eq!(frame("ab"), [0x81, 0x82, 0, 0, 0, 0, b'a', b'b']);
        assert_eq!(frame(&"x".repeat(300))[..4], [0x81, 0xfe, 1, 44]);
        assert_eq!(frame(&"x".repeat(70_000))[..10], [0x81, 0xff, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
    }

    #[test]
    fn too_many_descriptors_are_an_error() {
        assert_eq!(raise_descriptors(16), Ok(()));
        assert!(raise_descriptors(u64::MAX).unwrap_err().contains("ulimit -Hn"));
    }
}
