//! The HTTP connections of the one port: HTTP/1.1 only, each step of a request within its time, and little held for whom
//! nobody has vouched for.
//!
//! One task a connection. What may take long by its nature has no deadline here: a poll that waits, a stream of events, a
//! connection that became a WebSocket.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::limits;
use crate::tls::acceptor::{AcceptedConnection, Acceptor, CurrentTls};
use crate::tls::admission::{Admission, AdmissionSlot};
use crate::tls::stream::TlsOrTcp;
use crate::token::Claims;

/// How long each step of a request may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From the first byte of a request, or from the beginning of the connection, to the end of the headers.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// The same for a proxy of ours: its pool must not be closed under it.
    pub idle_proxy: Duration,
    /// For a body, and beyond that as long as it comes at this rate. Bytes a second.
    pub body: Duration,
    pub body_rate: u64,
    /// How long a client may take to see an answer that came before it had sent all.
    pub linger: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            idle_proxy: Duration::from_secs(75),
            body: Duration::from_secs(10),
            body_rate: 16 << 10,
            linger: Duration::from_secs(2),
        }
    }
}

/// What a client that sent no whole request in time is told.
const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// The connection that a request came over; among the extensions of every request.
#[derive(Clone)]
pub struct ClientAddress {
    slot: Arc<AdmissionSlot>,
    watch: Arc<RequestProgress>,
}

impl ClientAddress {
    pub fn of(parts: &Parts) -> Option<&Self> {
        parts.extensions.get()
    }

    /// A good token was seen on it.
    pub fn vouch(&self, claims: &Claims) {
        self.watch.authenticated.store(true, Ordering::Relaxed);
        self.slot.vouch(claims.class.is_privileged());
    }

    /// The client's address, for the log: what a proxy of ours says it is, or where the connection comes from.
    pub fn address(&self, headers: &HeaderMap) -> IpAddr {
        let own = self.slot.address();
        if !self.slot.is_trusted() {
            return own;
        }
        // Each proxy adds who it heard from at the end: the last one that is none of ours.
        let forwarded = headers.get_all("x-forwarded-for").iter().rev().filter_map(|value| value.to_str().ok());
        let mut addresses = forwarded.flat_map(|value| value.rsplit(',')).map_while(|text| text.trim().parse().ok());
        addresses.find(|address| !self.slot.trusts(*address)).unwrap_or(own)
    }
}

#[derive(Clone, Copy)]
enum ConnectionPhase {
    /// The headers of a request are awaited, or nothing: until then.
    Waits(Instant),
    /// A request is being answered.
    Answers,
}

/// How far the requests of a connection are.
struct RequestProgress {
    deadlines: Deadlines,
    /// Between requests.
    idle_for: Duration,
    phase: Mutex<ConnectionPhase>,
    /// The next byte begins a request.
    is_idle: AtomicBool,
    /// Some of the headers came, not all.
    in_head: AtomicBool,
    /// Of the body of the present request something was not taken.
    unread: AtomicBool,
    authenticated: AtomicBool,
    /// What came since the last request's headers, as long as nobody has said who it is.
    bytes: AtomicUsize,
}

impl RequestProgress {
    fn new(deadlines: Deadlines, is_proxy: bool) -> Self {
        Self {
            deadlines,
            idle_for: if is_proxy { deadlines.idle_proxy } else { deadlines.idle },
            phase: Mutex::new(ConnectionPhase::Waits(Instant::now() + deadlines.head)),
            is_idle: AtomicBool::new(true),
            in_head: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            authenticated: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match *self.phase.lock() {
            ConnectionPhase::Waits(until) => Some(until),
            ConnectionPhase::Answers => None,
        }
    }

    /// Bytes came. An error: more than is read of somebody who has not said who it is.
    fn came(&self, count: usize) -> io::Result<()> {
        if self.is_idle.load(Ordering::Relaxed) {
            self.is_idle.store(false, Ordering::Relaxed);
            self.in_head.store(true, Ordering::Relaxed);
            *self.phase.lock() = ConnectionPhase::Waits(Instant::now() + self.deadlines.head);
        }
        if !self.authenticated.load(Ordering::Relaxed)
            && self.bytes.fetch_add(count, Ordering::Relaxed) + count > limits::ANONYMOUS_READ
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too much before a token"));
        }
        Ok(())
    }

    /// A request begins: its headers are complete.
    fn asked(&self, has_body: bool) {
        *self.phase.lock() = ConnectionPhase::Answers;
        self.is_idle.store(false, Ordering::Relaxed);
        self.in_head.store(false, Ordering::Relaxed);
        self.unread.store(has_body, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    fn answered(&self) {
        *self.phase.lock() = ConnectionPhase::Waits(Instant::now() + self.idle_for);
        self.is_idle.store(true, Ordering::Relaxed);
    }
}

/// The bytes of a connection.
struct WatchedConnection {
    stream: TlsOrTcp,
    peer: ClientAddress,
}

impl WatchedConnection {
    fn check(&self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.peer.slot.poll_closed(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for WatchedConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        match buf.filled().len() - before {
            0 => Poll::Ready(Ok(())),
            count => Poll::Ready(this.peer.watch.came(count)),
        }
    }
}

impl AsyncWrite for WatchedConnection {
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

/// The body of a request, which must come fast enough. Time in which nobody wants more of it does not count.
struct Arriving {
    body: Incoming,
    watch: Arc<RequestProgress>,
    arrived: u64,
    waited: Duration,
    waits: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Arriving {
    fn end(&self) {
        self.watch.unread.store(false, Ordering::Relaxed);
    }

    fn late() -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, "the body comes too slowly")
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let Deadlines { body, body_rate, .. } = this.watch.deadlines;
                let (waited, arrived) = (this.waited, this.arrived);
                let (_, timer) = this.waits.get_or_insert_with(|| {
                    let now = Instant::now();
                    let allowed = body + Duration::from_secs_f64(arrived as f64 / body_rate.max(1) as f64);
                    (now, Box::pin(sleep_until(now + allowed.saturating_sub(waited))))
                });
                ready!(timer.as_mut().poll(cx));
                return Poll::Ready(Some(Err(Self::late().into())));
            }
        };
        if let Some((since, _)) = this.waits.take() {
            this.waited += since.elapsed();
        }
        match &frame {
            Some(Ok(frame)) => this.arrived += frame.data_ref().map_or(0, |data| data.len() as u64),
            None => this.end(),
            Some(Err(_)) => {}
        }
        if this.body.is_end_stream() {
            this.end();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer; the request is over when it is dropped.
struct Answering {
    body: Body,
    watch: Arc<RequestProgress>,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.watch.answered();
    }
}

/// Answers the requests of a connection.
struct ConnectionService {
    app: Router,
    peer: ClientAddress,
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<Answering>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let watch = self.peer.watch.clone();
        let has_body = !request.body().is_end_stream();
        watch.asked(has_body);
        request.extensions_mut().insert(self.peer.clone());
        let arriving = watch.clone();
        let request = request.map(|body| {
            if !has_body {
                return Body::empty();
            }
            Body::new(Arriving { body, watch: arriving, arrived: 0, waited: Duration::ZERO, waits: None })
        });
        let answer = self.app.clone().oneshot(request);
        Box::pin(async move {
            let Ok(mut answer) = answer.await;
            // What is left of the body would be read as the next request, so there is none.
            if watch.unread.load(Ordering::Relaxed) && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer.map(|body| Answering { body, watch }))
        })
    }
}

/// A port that takes connections which send at once, and which the kernel ends when their peer takes nothing for `stall`.
///
/// The latter is what ends a stalled reader on every transport: a session task that waits to write sees an error.
pub fn acceptor(
    listener: TcpListener,
    tls: Option<CurrentTls>,
    admission: Arc<Admission>,
    stall: Duration,
) -> Acceptor {
    Acceptor::new(listener, tls, admission, move |stream| {
        let tuned = stream.set_nodelay(true).and_then(|()| set_stall_timeout(stream, stall));
        if let Err(error) = tuned {
            tracing::debug!(%error, "a connection's options could not be set");
        }
    })
}

/// Sent data that stays unacknowledged, or unsent before a closed window, for so long ends the connection.
#[cfg(target_os = "linux")]
fn set_stall_timeout(stream: &TcpStream, stall: Duration) -> io::Result<()> {
    let ms = libc::c_int::try_from(stall.as_millis()).unwrap_or(libc::c_int::MAX);
    crate::tls::acceptor::set_option(stream, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, ms)
}

#[cfg(not(target_os = "linux"))]
fn set_stall_timeout(_stream: &TcpStream, _stall: Duration) -> io::Result<()> {
    Ok(())
}

/// Serves `app` until `stop`; returns when every request has been answered. Connections that became WebSockets are none
/// of its business.
pub async fn serve(mut acceptor: Acceptor, app: Router, deadlines: Deadlines, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = acceptor.accept() => accepted,
        };
        connections.spawn(connection(accepted, app.clone(), deadlines, stop.clone()));
    }
    drop(acceptor);
    connections.close();
    connections.wait().await;
}

/// Serves one connection whose other end is in this process, as [`serve`] does those of its port.
#[cfg(any(test, feature = "testkit"))]
pub async fn serve_memory(
    stream: tokio::io::DuplexStream,
    app: Router,
    admission: Arc<Admission>,
    deadlines: Deadlines,
) {
    let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let Some(slot) = admission.admit(peer.ip()) else { return };
    let accepted = AcceptedConnection { stream: TlsOrTcp::Memory(stream), peer, slot };
    connection(accepted, app, deadlines, CancellationToken::new()).await;
}

enum ConnectionEnd {
    Done(hyper::Result<()>),
    /// Not asked in time.
    Late,
    /// Its place was needed.
    Closed,
}

async fn connection(accepted: AcceptedConnection, app: Router, deadlines: Deadlines, stop: CancellationToken) {
    let AcceptedConnection { stream, slot, .. } = accepted;
    let watch = Arc::new(RequestProgress::new(deadlines, slot.is_trusted()));
    let peer = ClientAddress { slot: slot.clone(), watch: watch.clone() };
    let io = TokioIo::new(WatchedConnection { stream, peer: peer.clone() });
    let mut connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(limits::HTTP_HEAD)
        .max_buf_size(limits::HTTP_BUFFER)
        .serve_connection(io, ConnectionService { app, peer })
        .with_upgrades();
    let mut stopped = Some(Box::pin(stop.cancelled_owned()));
    let mut timer = Box::pin(sleep_until(Instant::now() + deadlines.head));
    let mut armed = true;
    let ended = poll_fn(|cx| {
        if stopped.as_mut().is_some_and(|stopped| stopped.as_mut().poll(cx).is_ready()) {
            stopped = None;
            Pin::new(&mut connection).graceful_shutdown();
        }
        if slot.poll_closed(cx).is_ready() {
            return Poll::Ready(ConnectionEnd::Closed);
        }
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(ConnectionEnd::Done(result));
        }
        // Most deadlines are met: the timer is moved only when it rings too early, or would ring too late.
        while let Some(deadline) = watch.deadline() {
            if !armed || deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
                armed = true;
            }
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(ConnectionEnd::Late);
            }
            armed = false;
        }
        Poll::Pending
    })
    .await;
    let refused = match &ended {
        ConnectionEnd::Done(Err(error)) => error.is_parse(),
        ConnectionEnd::Done(Ok(())) => watch.unread.load(Ordering::Relaxed),
        ConnectionEnd::Late => watch.in_head.load(Ordering::Relaxed),
        ConnectionEnd::Closed => return,
    };
    // One that became a WebSocket is somebody else's.
    let Some(parts) = connection.into_parts() else { return };
    if refused {
        let WatchedConnection { mut stream, .. } = parts.io.into_inner();
        let bye = async {
            if matches!(ended, ConnectionEnd::Late) {
                stream.write_all(LATE).await?;
            }
            linger(&mut stream).await
        };
        tokio::select! {
            _ = timeout(deadlines.linger, bye) => {}
            () = slot.closed() => {}
        }
    }
}

/// Takes some of what the client still sends: to close with that unread would throw away the answer on its way.
async fn linger(stream: &mut TlsOrTcp) -> io::Result<()> {
    stream.shutdown().await?;
    let (mut sink, mut left) = (vec![0; 8 << 10], limits::PACKET_READ);
    while left > 0 {
        match stream.read(&mut sink).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// That a body came too slowly.
pub fn came_late(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AddressRange;
    use crate::tls::admission::ConnectionCaps;

    #[tokio::test]
    async fn only_our_proxies_are_believed_about_addresses() {
        let caps = ConnectionCaps { total: 8, anonymous: 8, per_address: 8 };
        let trusted = ["10.0.0.1", "10.1.0.0/16"].iter().filter_map(|text| AddressRange::parse(text)).collect();
        let admission = Admission::new("test", caps, trusted);
        let from = |peer: &str, forwarded: &[&str]| {
            let slot = admission.admit(peer.parse().unwrap()).unwrap();
            let watch = Arc::new(RequestProgress::new(Deadlines::default(), slot.is_trusted()));
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", HeaderValue::from_str(value).unwrap());
            }
            ClientAddress { slot, watch }.address(&headers).to_string()
        };
        assert_eq!(from("9.9.9.9", &["1.2.3.4"]), "9.9.9.9");
        assert_eq!(from("10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(
            from("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.1.2.3"]),
            "1.2.3.4",
            "what stands before it is the client's"
        );
        assert_eq!(from("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.1.2.3"]), "1.2.3.4");
        assert_eq!(from("10.0.0.1", &["6.6.6.6, unknown"]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn a_proxy_keeps_its_idle_connections_longer_than_it_thinks() {
        let deadlines = Deadlines::default();
        // nginx closes those of its pool after 60 s.
        assert!(deadlines.idle_proxy > Duration::from_secs(60) && deadlines.idle <= Duration::from_secs(60));
    }
}
