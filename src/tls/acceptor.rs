//! Takes connections on a port. Handshakes run beside each other, within a number and a time: whoever connects and
//! says nothing keeps nobody else waiting.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::explain;
use super::stream::Stream;
use crate::limits;

/// Gives the configuration of the next connection: it changes when the certificates do.
pub type Current = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Between two log lines about refused handshakes.
const REFUSED_EVERY: Duration = Duration::from_secs(10);
/// Rest after an accept that failed for want of files or memory.
const REST: Duration = Duration::from_millis(100);

pub struct Acceptor {
    listener: TcpListener,
    tls: Option<Current>,
    tune: Box<dyn Fn(&TcpStream) + Send + Sync>,
    handshakes: JoinSet<Result<(Stream, SocketAddr), (SocketAddr, String)>>,
    refused: Option<Instant>,
}

impl Acceptor {
    /// Without `tls`, connections are taken as they are. `tune` sets a connection's options.
    pub fn new(listener: TcpListener, tls: Option<Current>, tune: impl Fn(&TcpStream) + Send + Sync + 'static) -> Self {
        Self { listener, tls, tune: Box::new(tune), handshakes: JoinSet::new(), refused: None }
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection whose handshake is done. Cancel-safe: handshakes go on.
    pub async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            let room = self.handshakes.len() < limits::HANDSHAKES;
            tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Ok(connection)) => return connection,
                    Ok(Err((peer, why))) => self.tell_refused(peer, &why),
                    Err(error) => tracing::error!(%error, "a handshake panicked"),
                },
                accepted = self.listener.accept(), if room => match accepted {
                    Ok((stream, peer)) => {
                        (self.tune)(&stream);
                        let Some(tls) = &self.tls else { return (Stream::Plain(stream), peer) };
                        self.handshakes.spawn(handshake(TlsAcceptor::from(tls()), stream, peer));
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
) -> Result<(Stream, SocketAddr), (SocketAddr, String)> {
    match timeout(limits::HANDSHAKE_TIME, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Ok((Stream::Tls(Box::new(stream.into())), peer)),
        Ok(Err(error)) => Err((peer, explain(&error))),
        Err(_) => Err((peer, format!("not done within {} s", limits::HANDSHAKE_TIME.as_secs()))),
    }
}
