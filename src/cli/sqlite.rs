//! SQLite files of the documented schema: `tillsync export` writes one, `tillsync import` takes one over.

use chrono::DateTime;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CliResult;
use super::waiting::Waiting;
use crate::client::rest::RestClient;
use crate::client::{ClientError, ClusterTarget, NodeUrl};

pub(crate) mod export;
pub(crate) mod import;
mod old;

/// The document's own statements, word for word.
const DOCUMENTED: &str = include_str!("sqlite/documented.sql");
/// Our tables beside them.
const OWN: &str = include_str!("sqlite/own.sql");

/// The cluster, whichever node answers.
struct ClusterNodes {
    rest: RestClient,
    nodes: Vec<NodeUrl>,
    /// The one that answered last.
    at: usize,
    /// What a node has is enough, without asking the others.
    stale: bool,
}

impl ClusterNodes {
    fn new(target: &ClusterTarget) -> CliResult<Self> {
        Ok(Self { rest: RestClient::new(&target.token)?, nodes: target.nodes.clone(), at: 0, stale: false })
    }

    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> CliResult<T> {
        let marked = format!("{path}&consistency=stale");
        let path: &str = if self.stale { &marked } else { path };
        self.ask(async |rest, node| rest.get(node, path).await).await
    }

    /// Only for requests that may be sent twice.
    async fn post<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> CliResult<T> {
        self.ask(async |rest, node| rest.post(node, path, body).await).await
    }

    async fn ask<T>(&mut self, call: impl AsyncFn(&RestClient, &NodeUrl) -> Result<T, ClientError>) -> CliResult<T> {
        let mut waiting = Waiting::default();
        loop {
            for _ in 0..self.nodes.len() {
                let node = &self.nodes[self.at];
                if let Some(answer) = waiting.ask(node, call(&self.rest, node)).await {
                    return Ok(answer?);
                }
                self.at = (self.at + 1) % self.nodes.len();
            }
            waiting.again().await?;
        }
    }
}

/// A time as the old server's library writes it; 0 stands for NULL.
fn sql_time(ms: u64) -> Option<String> {
    let time = i64::try_from(ms).ok().filter(|ms| *ms > 0).and_then(DateTime::from_timestamp_millis)?;
    Some(time.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UnixMs;

    #[test]
    fn times_are_written_as_they_are_read() {
        let ms = 1_795_341_600_007;
        assert_eq!(sql_time(ms).unwrap(), "2026-11-22 10:00:00.007000");
        assert_eq!(crate::model::time::parse_iso(&sql_time(ms).unwrap()), Some(UnixMs(ms)));
        assert_eq!(sql_time(0), None);
    }
}
