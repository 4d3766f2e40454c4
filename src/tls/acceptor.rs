//! Takes connections on a port. Handshakes run beside each other, within a share an address and a time: whoever connects
//! and says nothing keeps nobody else waiting.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::admission::{Admission, AdmissionSlot};
use super::explain;
use super::stream::TlsOrTcp;
use crate::limits;

/// Gives the configuration of the next connection: it changes when the certificates do.
pub(crate) type CurrentTls = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Between two log lines about refused handshakes.
const REFUSED_EVERY: Duration = Duration::from_secs(10);
/// Rest after an accept that failed for want of files or memory.
const REST: Duration = Duration::from_millis(100);

/// A connection, and its place among those of its port.
pub struct AcceptedConnection {
    pub stream: TlsOrTcp,
    pub peer: SocketAddr,
    pub slot: Arc<AdmissionSlot>,
}

pub struct Acceptor {
    listener: TcpListener,
    tls: Option<CurrentTls>,
    admission: Arc<Admission>,
    tune: Box<dyn Fn(&TcpStream) + Send + Sync>,
    handshakes: JoinSet<Result<AcceptedConnection, (SocketAddr, String)>>,
    refused: Option<Instant>,
}

impl Acceptor {
    /// Without `tls`, connections are taken as they are. `tune` sets a connection's options.
    pub fn new(
        listener: TcpListener,
        tls: Option<CurrentTls>,
        admission: Arc<Admission>,
        tune: impl Fn(&TcpStream) + Send + Sync + 'static,
    ) -> Self {
        Self { listener, tls, admission, tune: Box::new(tune), handshakes: JoinSet::new(), refused: None }
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection whose handshake is done. Cancel-safe: handshakes go on.
    pub async fn accept(&mut self) -> AcceptedConnection {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Ok(accepted)) => return accepted,
                    Ok(Err((peer, why))) => self.tell_refused(peer, &why),
                    Err(error) => tracing::error!(%error, "a handshake panicked"),
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let Some(slot) = self.admission.admit(peer.ip()) else {
                            // Those that were told to close get their turn.
                            tokio::task::yield_now().await;
                            continue;
                        };
                        (self.tune)(&stream);
                        if let Err(error) = probe_when_idle(&stream) {
                            tracing::debug!(%error, "a connection's options could not be set");
                        }
                        let Some(tls) = &self.tls else {
                            return AcceptedConnection { stream: TlsOrTcp::Plain(stream), peer, slot };
                        };
                        self.handshakes.spawn(handshake(TlsAcceptor::from(tls()), stream, peer, slot));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        sleep(REST).await;
                    }
                },
            }
        }
    }

    fn tell_refused(&mut self, peer: SocketAddr, why: &str) {
        if self.refused.is_none_or(|at| at.elapsed() >= REFUSED_EVERY) {
            self.refused = Some(Instant::now());
            tracing::warn!(%peer, why, "a connection was refused in the TLS handshake");
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    slot: Arc<AdmissionSlot>,
) -> Result<AcceptedConnection, (SocketAddr, String)> {
    let shaken = async {
        // Who means it speaks at once. Only then does the handshake take memory.
        match timeout(limits::HANDSHAKE_SILENCE, stream.peek(&mut [0])).await {
            Ok(Ok(0)) => return Err("it said nothing".to_owned()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("it said nothing within {} s", limits::HANDSHAKE_SILENCE.as_secs())),
        }
        acceptor.accept(stream).await.map_err(|error| explain(&error))
    };
    tokio::select! {
        shaken = timeout(limits::HANDSHAKE_TIME, shaken) => match shaken {
            Ok(Ok(stream)) => Ok(AcceptedConnection { stream: TlsOrTcp::Tls(Box::new(stream.into())), peer, slot }),
            Ok(Err(why)) => Err((peer, why)),
            Err(_) => Err((peer, format!("not done within {} s", limits::HANDSHAKE_TIME.as_secs()))),
        },
        () = slot.closed() => Err((peer, "its place was needed".to_owned())),
    }
}

/// A peer that vanished, such as a device that left the Wi-Fi, is found out by the kernel's own probes: else an idle
/// connection would stay for ever.
#[cfg(target_os = "linux")]
fn probe_when_idle(stream: &TcpStream) -> io::Result<()> {
    set_option(stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    let seconds = |time: Duration| libc::c_int::try_from(time.as_secs()).unwrap_or(libc::c_int::MAX);
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(limits::PROBE_AFTER))?;
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(limits::PROBE_EVERY))?;
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, limits::PROBES)
}

#[cfg(not(target_os = "linux"))]
fn probe_when_idle(_stream: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// Sets an option of a connection that is a number.
#[cfg(target_os = "linux")]
pub(crate) fn set_option(
    stream: &TcpStream,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and the option is one c_int.
    let done = unsafe { libc::setsockopt(stream.as_raw_fd(), level, option, std::ptr::from_ref(&value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl AsyncRead for AcceptedConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for AcceptedConnection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
