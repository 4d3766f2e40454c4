//! Waiting for an election: who asked for one is answered when it is decided.

use std::time::Duration;

use super::SharedCluster;
use crate::ids::ElectionId;
use crate::model::error::{Code, Error};
use crate::model::tables::{RowKey, get_row};
use crate::proto::outcome::Result as Given;
use crate::proto::{Election, ElectionOutcome, Outcome};

pub(crate) mod bridge;
pub mod coordinator;
pub(crate) mod fast_failover;

/// The outcome of a command that began or joined an election, once that is over: with the election, the role, or
/// error 4003. Other outcomes come back as they are.
pub async fn settled(cluster: SharedCluster, outcome: Outcome, within: Duration) -> Result<Outcome, Error> {
    if outcome.pending_election == 0 {
        return Ok(outcome);
    }
    let mut coordinator_epoch = cluster.replica().watch_coordinator_epoch();
    let ended = async {
        loop {
            let settled = cluster.replica().state().meta().settled.clone();
            // A later one ended after this one did.
            if let Some(settled) = settled.filter(|settled| settled.pending_election >= outcome.pending_election) {
                return Ok(settled);
            }
            if coordinator_epoch.changed().await.is_err() {
                return Err(Error::new(Code::Unavailable, "the node is shutting down"));
            }
        }
    };
    let Ok(ended) = tokio::time::timeout(within, ended).await else {
        if has_gone(&outcome) {
            return Ok(outcome);
        }
        return Err(Error::new(Code::Timeout, "the election was not decided in time"));
    };
    told(&cluster, outcome, ended?).await
}

/// A device that went offline is offline, whoever follows it; that nobody does is told to all.
fn has_gone(outcome: &Outcome) -> bool {
    matches!(&outcome.result, Some(Given::Device(device)) if !device.is_active)
}

async fn told(cluster: &SharedCluster, mut outcome: Outcome, settled: ElectionOutcome) -> Result<Outcome, Error> {
    let device = |id: &str| cluster.replica().state().device(id).map(|d| crate::proto::Device::clone(d));
    if settled.election == 0 {
        match outcome.result {
            _ if has_gone(&outcome) => return Ok(outcome),
            Some(Given::Online(_)) => {}
            _ => return Err(Error::new(Code::Election, settled.why)),
        }
    }
    outcome.result = match outcome.result {
        // It is online, whoever is master.
        Some(Given::Online(mut online)) => {
            online.device = online.device.map(|before| device(&before.device_id).unwrap_or(before));
            let state = cluster.replica().state();
            online.master.clone_from(&state.meta().master);
            online.term = state.meta().master_term().get();
            Some(Given::Online(online))
        }
        Some(Given::Device(before)) => Some(Given::Device(device(&before.device_id).unwrap_or(before))),
        _ => {
            let key = RowKey::Election(ElectionId(settled.election));
            let row = cluster.replica().read_rows(move |rows| get_row::<Election>(rows, &key)).await?;
            row.map(Given::Election)
        }
    };
    Ok(outcome)
}
