//! As much of an HTTP client as asking a node takes: one request, one connection, one answer.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The greatest answer.
const MOST: u64 = 64 << 20;

/// Why there is no answer as wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody knows whether it was done.
    Lost(String),
    Refused(u16, String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(why) => f.write_str(why),
            Self::Refused(status, why) => write!(f, "HTTP {status}: {why}"),
        }
    }
}

/// A node's gateway, and who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct HttpClient<'a> {
    /// `host:port`
    pub authority: &'a str,
    pub token: &'a str,
    pub within: Duration,
}

impl HttpClient<'_> {
    pub(super) async fn get(&self, path: &str) -> Result<Vec<u8>, Refusal> {
        self.call("GET", path, None).await
    }

    pub(super) async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>, Refusal> {
        match timeout(self.within, self.ask(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Refusal::Lost(format!("no answer within {:?}", self.within))),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>, Refusal> {
        let lost = |error: std::io::Error| Refusal::Lost(error.to_string());
        let mut stream = TcpStream::connect(self.authority).await.map_err(lost)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let Self { authority, token, .. } = self;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.map_err(lost)?;
        let mut answer = Vec::new();
        stream.take(MOST).read_to_end(&mut answer).await.map_err(lost)?;
        parse(answer)
    }
}

/// The body of a whole answer with status 2xx.
fn parse(mut answer: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    let cut = || Refusal::Lost("the answer was cut off".into());
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(cut)?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    let status: u16 = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(cut)?;
    let chunked = head.contains("\r\ntransfer-encoding: chunked");
    let body = if chunked { joined(&body).ok_or_else(cut)? } else { body };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    if !chunked && length != Some(body.len()) {
        return Err(cut());
    }
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let why = serde_json::from_slice::<Value>(&body).ok();
    let why = why.and_then(|body| Some(format!("{} {}", body["error_code"].as_str()?, body["error"].as_str()?)));
    Err(Refusal::Refused(status, why.unwrap_or_else(|| String::from_utf8_lossy(&body).chars().take(200).collect())))
}

/// The chunks of a long answer; `None` if the last one is not there.
fn joined(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let line = body.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(body.get(..line)?).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(out);
        }
        let from = line + 2;
        let to = from.checked_add(size)?;
        out.extend_from_slice(body.get(from..to)?);
        body = body.get(to..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_answers_count() {
        let text = |text: &str| parse(text.as_bytes().to_vec());
        assert_eq!(text("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), Ok(b"{}".to_vec()));
        assert!(matches!(text("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}"), Err(Refusal::Lost(_))));
        assert!(matches!(text("HTTP/1.1 200 OK\r\nContent"), Err(Refusal::Lost(_))));
        let chunked = |rest: &str| text(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}"));
        assert_eq!(chunked("1\r\n{\r\n1;x\r\n}\r\n0\r\n\r\n"), Ok(b"{}".to_vec()));
        assert!(matches!(chunked("1\r\n{\r\n1\r\n}\r\n"), Err(Refusal::Lost(_))));
        assert!(matches!(chunked("ffffffffffffffff\r\n{"), Err(Refusal::Lost(_))));
        let body = "{\"error\":\"no\",\"error_code\":\"2005\"}";
        let refused = text(&format!("HTTP/1.1 503 No\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
        assert_eq!(refused, Err(Refusal::Refused(503, "2005 no".into())));
    }
}
