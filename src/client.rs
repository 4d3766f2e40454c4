//! A client of the documented API, as any device is one: REST, `/ws` and Socket.IO. The commands, the demo and the
//! benchmarks talk to a cluster by it.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::model::error::Code;
use crate::model::value;

pub mod frame;
pub mod link;
mod polling;
pub mod rest;
pub(crate) mod socketio;
mod trust;
pub mod ws;

pub use trust::Trust;

/// Reads JSON that a client may have written before Tillsync refused what strict readers cannot take: such data must
/// stop none of its own commands.
pub fn read_json<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|error| {
        // Only what is refused for its data: the error of other JSON is the one that is told.
        serde_json::from_slice(&value::readable(json)).map_err(|_| error)
    })
}

/// Silence after which a node is taken for lost: it pings every 2 s.
pub const SILENCE: Duration = Duration::from_secs(6);
/// How long a connection may take to be made.
pub const CONNECT: Duration = Duration::from_secs(3);

/// The nodes and the token, resolved.
#[derive(Clone)]
pub struct ClusterTarget {
    pub nodes: Vec<NodeUrl>,
    pub token: String,
}

/// A node's address as a client has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeUrl {
    /// `host:port`
    pub authority: String,
    /// With it the node is spoken with over TLS.
    pub trust: Option<Trust>,
}

impl NodeUrl {
    /// A node that speaks plain text at `host:port`.
    pub fn plain(authority: impl Into<String>) -> Self {
        Self { authority: authority.into(), trust: None }
    }

    pub fn parse(text: &str) -> Result<Self, ClientError> {
        Self::trusting(text, None)
    }

    /// Reads a URL; one with https is taken if it is known whom to trust.
    pub fn trusting(text: &str, trust: Option<&Trust>) -> Result<Self, ClientError> {
        let rest = text.trim().trim_end_matches('/');
        let (rest, trust) = match (rest.split_once("://"), trust) {
            (Some(("http" | "ws", rest)), _) => (rest, None),
            (Some(("https" | "wss", rest)), Some(trust)) => (rest, Some(trust.clone())),
            (Some(("https" | "wss", _)), None) => {
                return Err(ClientError::Unusable(format!(
                    "url {text}: --ca FILE is missing, the CA of its certificate"
                )));
            }
            (Some((scheme, _)), _) => {
                return Err(ClientError::Unusable(format!(
                    "url {text}: {scheme} is not supported, only http and https"
                )));
            }
            (None, _) => (rest, None),
        };
        match rest.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !rest.contains('/') && port.parse::<u16>().is_ok() => {
                Ok(Self { authority: rest.to_owned(), trust })
            }
            _ => Err(ClientError::Unusable(format!("url {text}: expected http://HOST:PORT or https://HOST:PORT"))),
        }
    }
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.trust.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

/// Why a call or a connection did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server said no, with a documented code where it gave one.
    #[error("{node} refused it: {}{message}", code.map(|c| format!("{c}: ")).unwrap_or_default())]
    Refused { node: NodeUrl, code: Option<u32>, message: String },
    /// The node cannot be reached or the connection ended: it may have been done or not.
    #[error("{node} cannot be reached: {why}")]
    Lost { node: NodeUrl, why: String },
    /// What came is not what the API says.
    #[error("{node} sent something unexpected: {why}")]
    Strange { node: NodeUrl, why: String },
    /// The caller gave a URL or a CA that cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made: {0}")]
    Setup(String),
}

impl ClientError {
    /// The same request can succeed on another node or a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Refused { code, .. } => code.is_some_and(is_passing),
            Self::Strange { .. } | Self::Unusable(_) | Self::Setup(_) => false,
        }
    }
}

/// Codes of a cluster that is between leaders, busy or stopping.
pub fn is_passing(code: u32) -> bool {
    [Code::Timeout, Code::PeerUnreachable, Code::SocketClosed, Code::NoMaster, Code::Unavailable]
        .iter()
        .any(|c| c.number() == code)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::link::event_of;
    use super::rest::FeedPage;
    use super::*;

    #[test]
    fn urls_are_read_with_or_without_a_scheme() {
        for text in ["http://h:5000", "h:5000", "ws://h:5000/", " http://h:5000/ "] {
            assert_eq!(NodeUrl::parse(text).unwrap().authority, "h:5000");
        }
        assert_eq!(NodeUrl::parse("[::1]:5000").unwrap().to_string(), "http://[::1]:5000");
        let error = NodeUrl::parse("https://h:1").unwrap_err();
        assert!(error.to_string().contains("--ca"), "{error}");
        for bad in ["", "h", "https://h:1", "h:x", "h:1/path", ":5000"] {
            assert!(NodeUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_stored_before_it_was_refused_stops_no_command() {
        let stored = r#"{"a":"cut \ud83d","\ude00":1e999,"b":[-1e400,2]}"#;
        let read = json!({"a": "cut \u{fffd}", "\u{fffd}": "1e999", "b": ["-1e400", 2]});
        let page = format!(
            r#"{{"changes":[{{"seq":1,"table_name":"t","record_id":7,"operation":"insert","data":{stored}}}],"cursor":"c","has_more":false}}"#
        );
        let page: FeedPage = read_json(page.as_bytes()).unwrap();
        assert_eq!(page.changes[0].data, read);
        let frame = format!(r#"{{"event":"data_update","data":{{"seq":1,"new_data":{stored}}}}}"#);
        assert_eq!(event_of(&frame).unwrap().data["new_data"], read);
        // What is no JSON stays none.
        assert!(read_json::<Value>(b"{\"a\":").is_err());
    }
}
