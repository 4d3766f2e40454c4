//! What the commands share to talk to a cluster as any device would: REST, `/ws` and Socket.IO.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::CommandError;
use crate::model::error::Code;
use crate::model::value;

pub mod frame;
pub mod link;
pub mod rest;
pub mod socketio;
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

/// Where the cluster is and who asks: the flags of every command that talks to one.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// The nodes, e.g. https://10.0.0.1:5000; repeat it or separate by commas. Default: those of `tillsync dev`
    #[arg(long = "url", value_name = "URL", value_delimiter = ',', env = "TILLSYNC_URL")]
    pub urls: Vec<String>,
    /// The token. Default: the admin token that `tillsync dev` left in its data folder
    #[arg(long, value_name = "TOKEN", env = "TILLSYNC_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file that holds the token: other users of the machine do not see it, as they do the one in --token
    #[arg(long, value_name = "FILE", env = "TILLSYNC_TOKEN_FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// The CA of the nodes' certificates, for URLs with https (`certs init` makes a ca.crt)
    #[arg(long, value_name = "FILE", env = "TILLSYNC_CA")]
    pub ca: Option<PathBuf>,
    /// The data folder of `tillsync dev`, for its token
    #[arg(long, value_name = "DIR", default_value = "./tillsync-data")]
    pub data: PathBuf,
}

/// The nodes and the token, resolved.
#[derive(Clone)]
pub struct ClusterTarget {
    pub nodes: Vec<NodeUrl>,
    pub token: String,
}

impl TargetArgs {
    pub fn resolve(&self) -> Result<ClusterTarget, CommandError> {
        let trust = self.ca.as_deref().map(Trust::read).transpose()?;
        let mut nodes = Vec::new();
        for url in &self.urls {
            nodes.push(NodeUrl::trusting(url, trust.as_ref())?);
        }
        if nodes.is_empty() {
            for port in 5000..5003 {
                nodes.push(NodeUrl::plain(format!("127.0.0.1:{port}")));
            }
        }
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.trim().to_owned(),
            (None, Some(file)) => read_token(file)?,
            (None, None) => {
                let path = self.data.join("admin.token");
                std::fs::read_to_string(&path).map(|t| t.trim().to_owned()).map_err(|e| {
                    CommandError::new(format!(
                        "no --token-file or --token given, and {} cannot be read: {e}",
                        path.display()
                    ))
                })?
            }
        };
        Ok(ClusterTarget { nodes, token })
    }
}

/// The token in a file.
pub fn read_token(file: &Path) -> Result<String, CommandError> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| CommandError::usage(format!("the token file {} cannot be read: {e}", file.display())))?;
    match text.trim() {
        "" => Err(CommandError::usage(format!("the token file {} is empty", file.display()))),
        token => Ok(token.to_owned()),
    }
}

/// Asks one node after the other until one has answered: for what is the same done twice.
pub async fn ask_any<T: DeserializeOwned>(
    target: &ClusterTarget,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<T, CommandError> {
    let rest = rest::RestClient::new(&target.token)?;
    let mut last = CommandError::new("no node to ask");
    for node in &target.nodes {
        match rest.call(node, method.clone(), path, body).await {
            Ok(done) => return Ok(done),
            Err(error) if error.is_passing() => last = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
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

    pub fn parse(text: &str) -> Result<Self, CommandError> {
        Self::trusting(text, None)
    }

    /// Reads a URL; one with https is taken if it is known whom to trust.
    pub fn trusting(text: &str, trust: Option<&Trust>) -> Result<Self, CommandError> {
        let rest = text.trim().trim_end_matches('/');
        let (rest, trust) = match (rest.split_once("://"), trust) {
            (Some(("http" | "ws", rest)), _) => (rest, None),
            (Some(("https" | "wss", rest)), Some(trust)) => (rest, Some(trust.clone())),
            (Some(("https" | "wss", _)), None) => {
                return Err(CommandError::usage(format!(
                    "url {text}: --ca FILE is missing, the CA of its certificate"
                )));
            }
            (Some((scheme, _)), _) => {
                return Err(CommandError::usage(format!("url {text}: {scheme} is not supported, only http and https")));
            }
            (None, _) => (rest, None),
        };
        match rest.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !rest.contains('/') && port.parse::<u16>().is_ok() => {
                Ok(Self { authority: rest.to_owned(), trust })
            }
            _ => Err(CommandError::usage(format!("url {text}: expected http://HOST:PORT or https://HOST:PORT"))),
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
}

impl ClientError {
    /// The same request can succeed on another node or a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Refused { code, .. } => code.is_some_and(is_passing),
            Self::Strange { .. } => false,
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
    use serde_json::json;

    use super::link::event_of;
    use super::rest::FeedPage;
    use super::*;

    #[test]
    fn a_token_comes_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("till.token");
        let args = |token_file| TargetArgs {
            urls: vec!["h:1".into()],
            token: None,
            token_file: Some(token_file),
            ca: None,
            data: dir.path().to_owned(),
        };
        std::fs::write(&file, "  abc.def.ghi\n").unwrap();
        assert_eq!(args(file.clone()).resolve().ok().map(|target| target.token).as_deref(), Some("abc.def.ghi"));
        std::fs::write(&file, "\n").unwrap();
        assert!(args(file).resolve().err().is_some_and(|why| why.message.contains("is empty") && why.exit == 2));
        assert!(args(dir.path().join("none")).resolve().is_err());
    }

    #[test]
    fn urls_are_read_with_or_without_a_scheme() {
        for text in ["http://h:5000", "h:5000", "ws://h:5000/", " http://h:5000/ "] {
            assert_eq!(NodeUrl::parse(text).unwrap().authority, "h:5000");
        }
        assert_eq!(NodeUrl::parse("[::1]:5000").unwrap().to_string(), "http://[::1]:5000");
        let error = NodeUrl::parse("https://h:1").unwrap_err();
        assert!(error.message.contains("--ca"), "{error}");
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
