//! The TCP side of the one port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::net::{TcpListener, TcpStream};

use crate::tls::acceptor::{Acceptor, Current};
use crate::tls::stream::Stream;

/// Accepts connections that send at once, and that the kernel ends when their peer takes nothing for too long.
///
/// The latter is what ends a stalled reader on every transport: a session task that waits to write sees an error.
pub struct Tuned(Acceptor);

impl Tuned {
    pub fn new(listener: TcpListener, tls: Option<Current>, stall: Duration) -> Self {
        Self(Acceptor::new(listener, tls, move |stream| {
            let tuned = stream.set_nodelay(true).and_then(|()| set_stall_timeout(stream, stall));
            if let Err(error) = tuned {
                tracing::debug!(%error, "a connection's options could not be set");
            }
        }))
    }
}

impl Listener for Tuned {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        self.0.accept().await
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub IpAddr);

impl Connected<IncomingStream<'_, Tuned>> for PeerAddress {
    fn connect_info(stream: IncomingStream<'_, Tuned>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

/// Sent data that stays unacknowledged, or unsent before a closed window, for so long ends the connection.
#[cfg(target_os = "linux")]
fn set_stall_timeout(stream: &TcpStream, stall: Duration) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let ms = libc::c_uint::try_from(stall.as_millis()).unwrap_or(libc::c_uint::MAX);
    let size = size_of::<libc::c_uint>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and the option is one c_uint.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            std::ptr::from_ref(&ms).cast(),
            size,
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn set_stall_timeout(_stream: &TcpStream, _stall: Duration) -> std::io::Result<()> {
    Ok(())
}
