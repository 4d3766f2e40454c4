//! The REST calls that the commands make.

use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CONNECT, ClientError, NodeUrl, Trust, read_json};
use crate::ids::{MasterTerm, RaftTerm};

/// How long a long answer may take in all, to begin, and between two pieces.
const DOWNLOAD: Duration = Duration::from_secs(4 * 3_600);
const DOWNLOAD_BEGINS: Duration = Duration::from_secs(660);
const DOWNLOAD_PIECE: Duration = Duration::from_secs(60);
/// A page of the change feed.
pub const PAGE: usize = 1_000;

/// A client of one or many nodes; connections are kept.
#[derive(Clone)]
pub struct RestClient {
    http: reqwest::Client,
    token: String,
}

/// A committed change, as `GET /sync/changes` gives it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct FeedChange {
    pub seq: u64,
    pub table_name: String,
    pub record_id: i64,
    pub operation: String,
    #[serde(default)]
    pub data: Value,
    #[serde(default)]
    pub device_id: Option<String>,
    #[serde(default)]
    pub timestamp: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct FeedPage {
    pub changes: Vec<FeedChange>,
    pub cursor: String,
    pub has_more: bool,
}

/// A node, as `GET /system/cluster` on it tells. Every field must be there: a default would be compared as if it
/// had been measured.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
pub struct NodeStatus {
    pub node: u64,
    pub leader: Option<u64>,
    pub term: RaftTerm,
    pub applied_index: u64,
    pub digest: String,
    /// The index that the digest belongs to.
    pub digest_index: u64,
    pub master: Option<String>,
    pub master_term: MasterTerm,
    pub head_seq: u64,
    pub sessions: u64,
    pub peers: Vec<PeerStatus>,
    pub quorum: bool,
    pub voters: Vec<u64>,
    pub nodes: Vec<MemberStatus>,
    /// Why nothing may be written there: nodes differ, and nobody can tell which is right.
    pub digest_verdict: Option<String>,
    /// Why less is written there: the disks of some nodes have little room.
    #[serde(default)]
    pub disk_verdict: Option<String>,
    /// What the cluster's log may hold; `None`: a program of before there were versions.
    #[serde(default)]
    pub cluster_version: Option<u32>,
    pub version: String,
}

/// How the backups go that a cluster takes by itself, as a member says it.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
pub struct ScheduledBackups {
    /// What was written until then is in a backup.
    pub covered_until: Option<String>,
    /// When one was proved to be restorable last.
    pub proved_at: Option<String>,
    /// It is this member that takes them.
    pub on_duty: bool,
    /// Why the last attempt came to nothing.
    pub failed: Option<String>,
}

/// A member, as the node that was asked sees it; what it said of itself is missing if it never answered.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
pub struct MemberStatus {
    pub node: u64,
    pub role: String,
    pub raft: String,
    pub gateway: String,
    pub reachable: bool,
    pub latency_ms: Option<f64>,
    pub last_heard: Option<String>,
    pub term: Option<RaftTerm>,
    pub applied_index: Option<u64>,
    pub lag: Option<u64>,
    pub digest: Option<String>,
    /// The log index since which its data differs from that of the node that was asked.
    pub differs_from: Option<u64>,
    /// How far its clock is ahead of most nodes'.
    pub clock_ahead_ms: Option<i64>,
    /// Bytes that are free on its disk, and what they are: plenty, low or full.
    #[serde(default)]
    pub disk_free: Option<u64>,
    #[serde(default)]
    pub disk: Option<String>,
    /// What it knows of the backups that its settings ask for, if they do.
    #[serde(default)]
    pub backup: Option<ScheduledBackups>,
    pub master: Option<String>,
    pub sessions: Option<u64>,
    pub version: Option<String>,
    /// The newest cluster version that its program knows.
    #[serde(default)]
    pub knows_version: Option<u32>,
}

/// What a change of the members came to.
#[derive(Clone, Debug, Deserialize)]
pub struct MembersChangedAnswer {
    pub node: u64,
    pub voters: Vec<u64>,
}

/// What the cluster's version was raised to.
#[derive(Clone, Debug, Deserialize)]
pub struct FinalizedAnswer {
    pub cluster_version: u32,
}

#[derive(Clone, Debug, Deserialize, serde::Serialize)]
pub struct PeerStatus {
    pub node: u64,
    pub reachable: bool,
    pub latency_ms: Option<f64>,
    pub silent_ms: Option<f64>,
}

impl RestClient {
    pub fn new(token: &str) -> Result<Self, ClientError> {
        // It is never asked for https: a node that speaks that brings its own client.
        Ok(Self { http: http(None)?, token: token.to_owned() })
    }

    /// The client for a node: over TLS it is the one that trusts its CA.
    fn http<'a>(&'a self, node: &'a NodeUrl) -> &'a reqwest::Client {
        node.trust.as_ref().map_or(&self.http, Trust::http)
    }

    pub async fn get<T: DeserializeOwned>(&self, node: &NodeUrl, path: &str) -> Result<T, ClientError> {
        self.take(node, &format!("GET {path}"), self.http(node).get(format!("{node}{path}"))).await
    }

    /// What a node's clock says, in whole seconds (Unix milliseconds); `None`: it does not answer, or does not say.
    pub async fn clock(&self, node: &NodeUrl) -> Option<u64> {
        let answer = self.http(node).get(format!("{node}/healthz")).send().await.ok()?;
        let said = answer.headers().get(reqwest::header::DATE)?.to_str().ok()?;
        u64::try_from(chrono::DateTime::parse_from_rfc2822(said).ok()?.timestamp_millis()).ok()
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        node: &NodeUrl,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.take(node, &format!("POST {path}"), self.http(node).post(format!("{node}{path}")).json(body)).await
    }

    /// Any request whose answer is JSON.
    pub async fn call<T: DeserializeOwned>(
        &self,
        node: &NodeUrl,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, ClientError> {
        let request = self.http(node).request(method.clone(), format!("{node}{path}"));
        let request = if let Some(body) = body { request.json(body) } else { request };
        self.take(node, &format!("{method} {path}"), request).await
    }

    /// Brings the cluster's time back; the time from now on.
    pub async fn time_back(&self, node: &NodeUrl) -> Result<String, ClientError> {
        #[derive(Deserialize)]
        struct TimeBackAnswer {
            timestamp: String,
        }
        let done: TimeBackAnswer = self.post(node, "/system/time/back", &serde_json::json!({})).await?;
        Ok(done.timestamp)
    }

    /// A change of the members: the node answers when it is done.
    pub async fn change_members<T: DeserializeOwned>(
        &self,
        node: &NodeUrl,
        method: Method,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<T, ClientError> {
        let request = self.http(node).request(method.clone(), format!("{node}{path}"));
        let request = request.timeout(within + Duration::from_secs(5));
        let request = if let Some(body) = body { request.json(body) } else { request };
        self.take(node, &format!("{method} {path}"), request).await
    }

    /// A long answer, handed to `each` as it comes. A node from which nothing comes for a while is lost.
    pub async fn download(
        &self,
        node: &NodeUrl,
        path: &str,
        mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), ClientError> {
        let lost = |why: String| ClientError::Lost { node: node.clone(), why };
        let slow = |_| lost(format!("nothing came for {} s", DOWNLOAD_BEGINS.as_secs()));
        let request = self.http(node).get(format!("{node}{path}")).timeout(DOWNLOAD).bearer_auth(&self.token);
        let answer = tokio::time::timeout(DOWNLOAD_BEGINS, request.send()).await.map_err(slow)?;
        let mut response = answer.map_err(|error| lost(cause(&error)))?;
        let status = response.status();
        if !status.is_success() {
            let body = response.bytes().await.map_err(|error| lost(cause(&error)))?;
            return Err(refusal(node, status.as_u16(), &body));
        }
        loop {
            let piece = tokio::time::timeout(DOWNLOAD_PIECE, response.chunk()).await;
            let piece = piece.map_err(|_| lost(format!("nothing came for {} s", DOWNLOAD_PIECE.as_secs())))?;
            match piece.map_err(|error| lost(cause(&error)))? {
                Some(piece) => each(&piece).map_err(|error| ClientError::Setup(error.to_string()))?,
                None => return Ok(()),
            }
        }
    }

    async fn take<T: DeserializeOwned>(
        &self,
        node: &NodeUrl,
        what: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ClientError> {
        let lost = |e: reqwest::Error| ClientError::Lost { node: node.clone(), why: cause(&e) };
        let response = request.bearer_auth(&self.token).send().await.map_err(lost)?;
        let status = response.status();
        let body = response.bytes().await.map_err(lost)?;
        if !status.is_success() {
            return Err(refusal(node, status.as_u16(), &body));
        }
        read_json(&body)
            .map_err(|e| ClientError::Strange { node: node.clone(), why: format!("the answer to {what}: {e}") })
    }

    pub async fn status(&self, node: &NodeUrl) -> Result<NodeStatus, ClientError> {
        self.get(node, "/system/cluster").await
    }

    /// One page of the change feed after `cursor` (`None`: from the beginning), of these tables (none: all).
    pub async fn changes(
        &self,
        node: &NodeUrl,
        cursor: Option<&str>,
        tables: &[&str],
    ) -> Result<FeedPage, ClientError> {
        let mut path = format!("/sync/changes?limit={PAGE}");
        if let Some(cursor) = cursor {
            path += &format!("&cursor={}", percent(cursor));
        }
        if !tables.is_empty() {
            path += &format!("&tables={}", percent(&tables.join(",")));
        }
        self.get(node, &path).await
    }

    /// Hands every change to `each`, page after page.
    pub async fn each_change(
        &self,
        node: &NodeUrl,
        tables: &[&str],
        mut each: impl FnMut(FeedChange),
    ) -> Result<(), ClientError> {
        let mut cursor: Option<String> = None;
        loop {
            let page = self.changes(node, cursor.as_deref(), tables).await?;
            page.changes.into_iter().for_each(&mut each);
            if !page.has_more {
                return Ok(());
            }
            if cursor.as_deref() == Some(page.cursor.as_str()) {
                return Err(ClientError::Strange { node: node.clone(), why: "the change feed does not go on".into() });
            }
            cursor = Some(page.cursor);
        }
    }
}

/// A client that trusts what `tls` does, and nothing without it.
pub fn http(tls: Option<rustls::ClientConfig>) -> Result<reqwest::Client, ClientError> {
    let tls = match tls {
        Some(tls) => tls,
        None => crate::tls::files::nobody().map_err(|e| ClientError::Setup(e.to_string()))?,
    };
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .timeout(Duration::from_secs(10))
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(|e| ClientError::Setup(e.to_string()))
}

/// What a body with a documented error says, or that of `/readyz`, which has a reason.
pub fn refusal(node: &NodeUrl, status: u16, body: &[u8]) -> ClientError {
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let code = body.get("error_code").and_then(Value::as_str).and_then(|c| c.parse().ok());
    let message = match body.get("error").or(body.get("reason")).and_then(Value::as_str) {
        Some(words) => words.to_owned(),
        None => format!("HTTP status {status}"),
    };
    ClientError::Refused { node: node.clone(), code, message }
}

/// The innermost cause: reqwest's own words do not say it.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// A value of a query or a segment of a path.
pub fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(percent("order lines,é"), "order%20lines%2C%C3%A9");
    }

    #[test]
    fn a_refusal_carries_the_documented_code() {
        let node = NodeUrl::plain("h:1");
        let body = br#"{"success":false,"error":"no","error_code":"2005"}"#;
        assert_eq!(refusal(&node, 503, body).to_string(), "http://h:1 refused it: 2005: no");
        assert!(refusal(&node, 503, body).is_passing());
        let body = br#"{"status":"not ready","reason":"this node knows no leader"}"#;
        assert_eq!(refusal(&node, 503, body).to_string(), "http://h:1 refused it: this node knows no leader");
        assert_eq!(refusal(&node, 404, b"<html>").to_string(), "http://h:1 refused it: HTTP status 404");
    }
}
