//! Waiting for a cluster that cannot answer now: the operator is told so and for what, and it ends.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{CliResult, CommandError};
use crate::client::{ClientError, NodeUrl};

/// How long a command waits for a cluster from which nothing comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so long the operator is told. A change of leaders is over sooner.
const TOLD_AFTER: Duration = Duration::from_secs(2);
const BETWEEN_ROUNDS: Duration = Duration::from_millis(200);

/// The wait since the last answer.
pub(super) struct Waiting {
    patience: Duration,
    since: Option<Instant>,
    told: bool,
    /// Why each node of this round gave no answer.
    reasons: Vec<ClientError>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { patience: PATIENCE, since: None, told: false, reasons: Vec::new() }
    }
}

impl Waiting {
    /// One node's answer. An error that another node, or a later try, may not give is kept for [`Waiting::again`].
    pub(super) async fn ask<T>(
        &mut self,
        node: &NodeUrl,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Option<Result<T, ClientError>> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let mut call = pin!(call);
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut call => break answer,
                () = sleep_until(since + self.patience) => {
                    let why = format!("no answer within {} s", self.patience.as_secs_f32());
                    break Err(ClientError::Lost { node: node.clone(), why });
                }
                () = sleep_until(since + TOLD_AFTER), if !self.told => self.tell(&format!("{node} has not answered yet")),
            }
        };
        match answer {
            Err(error) if error.is_passing() => {
                self.reasons.push(error);
                None
            }
            answer => {
                *self = Self { patience: self.patience, ..Self::default() };
                Some(answer)
            }
        }
    }

    /// No node has answered in this round: waits for the next, or ends with every node's reason.
    pub(super) async fn again(&mut self) -> CliResult {
        let since = *self.since.get_or_insert_with(Instant::now);
        let reasons = self.reasons.drain(..).map(|why| why.to_string()).collect::<Vec<_>>().join("; ");
        if since.elapsed() >= self.patience {
            let waited = self.patience.as_secs_f32();
            return Err(CommandError::new(format!("the cluster has not answered for {waited} s: {reasons}")));
        }
        if since.elapsed() >= TOLD_AFTER && !self.told {
            self.tell(&reasons);
        }
        sleep(BETWEEN_ROUNDS).await;
        Ok(())
    }

    fn tell(&mut self, why: &str) {
        self.told = true;
        note!("waiting for the cluster, {} s at most: {why}", self.patience.as_secs());
    }
}

/// No node took it: every node's reason.
pub(super) fn nobody_answered(reasons: &[ClientError]) -> CommandError {
    let reasons = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    CommandError::new(if reasons.is_empty() { "no node was given".to_owned() } else { reasons })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(port: u16) -> Result<(), ClientError> {
        Err(ClientError::Lost { node: NodeUrl::plain(format!("h:{port}")), why: "refused".into() })
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_every_nodes_reason_and_an_answer_begins_it_anew() {
        let mut waiting = Waiting::default();
        let (one, two) = (NodeUrl::plain("h:1"), NodeUrl::plain("h:2"));
        let began = Instant::now();
        let ended = loop {
            assert!(waiting.ask(&one, async { lost(1) }).await.is_none());
            assert!(waiting.ask(&two, async { lost(2) }).await.is_none());
            if let Err(why) = waiting.again().await {
                break why;
            }
        };
        assert!(began.elapsed() >= PATIENCE && began.elapsed() < PATIENCE * 2);
        assert!(ended.message.contains("h:1") && ended.message.contains("h:2"), "{ended}");

        let mut waiting = Waiting::default();
        assert!(waiting.ask(&one, async { lost(1) }).await.is_none());
        sleep(PATIENCE).await;
        assert_eq!(waiting.ask(&two, async { Ok(7) }).await, Some(Ok(7)));
        assert!(waiting.ask(&one, async { lost(1) }).await.is_none());
        assert!(waiting.again().await.is_ok(), "the answer counts");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_says_nothing_is_waited_for_no_longer_than_the_cluster() {
        let mut waiting = Waiting::default();
        let (node, began) = (NodeUrl::plain("h:1"), Instant::now());
        assert!(waiting.ask(&node, std::future::pending::<Result<(), ClientError>>()).await.is_none());
        assert_eq!((began.elapsed(), waiting.told), (PATIENCE, true));
        assert!(waiting.again().await.is_err_and(|why| why.message.contains("no answer within 30 s")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_stays_ends_it_at_once() {
        let node = NodeUrl::plain("h:1");
        let refused = ClientError::Refused { node: node.clone(), code: Some(4001), message: "no".into() };
        let answer = Waiting::default().ask(&node, async { Err::<(), _>(refused.clone()) }).await;
        assert_eq!(answer, Some(Err(refused)));
    }
}
