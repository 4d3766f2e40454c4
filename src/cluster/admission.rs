//! May a node with an empty data folder take part?
//!
//! It may be new, or it may have lost what it had. A node that lost its votes and its log must not come back under
//! its old id: it could vote a second time in a term, or for a leader that lacks what it had acknowledged. So it asks
//! before it votes or takes entries. A node whose folder holds something is not asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::raft_cluster::RaftCluster;
use crate::consensus::node::StartError;
use crate::consensus::service::Service;
use crate::consensus::transport::{ConnectionClass, PeerTransport};
use crate::consensus::types::MemberAddress;
use crate::model::error::{Code, Error};
use crate::proto::{StatusRequest, StatusResponse};

/// A fresh answer waits for a linearizable read.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Eq)]
enum AdmissionVerdict {
    /// The answers do not tell.
    Wait(String),
    /// There is no cluster yet: found it.
    Found,
    /// There is one, and it does not know this node: its leader will come.
    Join,
    Refuse(String),
}

/// `founders` is how many nodes found the cluster, this one included; 0 for a node that will be added.
fn judge(me: u64, founders: usize, answers: &[StatusResponse]) -> AdmissionVerdict {
    if answers.iter().any(|a| a.booted.contains(&me) || a.removed.contains(&me)) {
        return AdmissionVerdict::Refuse(format!(
            "the cluster knows node {me}, but this data folder is empty: a node that lost its data may have voted, so \
             it must come back under a new id (cluster remove {me}, then cluster add)"
        ));
    }
    if answers.iter().any(|a| a.fresh && !a.pristine) {
        return AdmissionVerdict::Join;
    }
    if let Some(formed) = answers.iter().find(|a| !a.pristine) {
        return AdmissionVerdict::Wait(format!(
            "node {} has no leader that could say whether this node is new",
            formed.node
        ));
    }
    match founders {
        0 => AdmissionVerdict::Wait("it has not reached a cluster at the addresses in join".into()),
        // A majority has to be there for a leader anyway.
        all if (answers.len() + 1) * 2 > all => AdmissionVerdict::Found,
        all => AdmissionVerdict::Wait(format!(
            "{} of the {all} founding nodes have answered, this one included",
            answers.len() + 1
        )),
    }
}

/// Where a node begins.
pub struct Beginning {
    pub members: BTreeMap<u64, MemberAddress>,
    /// Nodes of the cluster that this one waits to be added to; id 0 where it is not known.
    pub join: Vec<(u64, MemberAddress)>,
}

/// Lets the node take part as soon as it may. A node that may not is ended with the reason.
pub async fn admit(
    cluster: Arc<RaftCluster>,
    service: Arc<Service>,
    transport: Arc<dyn PeerTransport>,
    beginning: Beginning,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let me = cluster.identity.node;
    let founder = beginning.members.contains_key(&me);
    let founders = if founder { beginning.members.len() } else { 0 };
    let mut others = beginning.join;
    others.extend(beginning.members.iter().filter(|(id, _)| **id != me).map(|(id, member)| (*id, member.clone())));
    let mut pause = PAUSE_MIN;
    let mut told = String::new();
    loop {
        let answers = join_all(others.iter().map(|(id, member)| {
            let link = transport.link(*id, member, ConnectionClass::Control);
            let handshake = Some(cluster.identity.handshake(*id));
            let request = StatusRequest { handshake, fresh: true, ..StatusRequest::default() };
            async move { tokio::time::timeout(PATIENCE, link.status(request)).await.ok()?.ok() }
        }));
        let answers: Vec<StatusResponse> = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            answers = answers => answers.into_iter().flatten().collect(),
        };
        match judge(me, founders, &answers) {
            AdmissionVerdict::Found => {
                cluster.waits(String::new());
                service.open(&cluster.node, cluster.members.clone());
                return cluster.node.found(beginning.members).await;
            }
            AdmissionVerdict::Join => {
                tracing::info!("this node is new to the cluster");
                // Whoever answered belongs to it, and so do those it names: one of them will come as the leader.
                for answer in answers.iter().filter(|answer| answer.fresh) {
                    cluster.members.vouch(&answer.voters);
                }
                cluster.waits(String::new());
                service.open(&cluster.node, cluster.members.clone());
                return Ok(());
            }
            AdmissionVerdict::Refuse(why) => {
                cluster.end(Error::new(Code::Configuration, why));
                return Ok(());
            }
            AdmissionVerdict::Wait(why) => {
                if why != told && pause == PAUSE_MAX {
                    tracing::info!("waiting: {why}");
                    told.clone_from(&why);
                }
                cluster.waits(why);
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(node: u64, pristine: bool, fresh: bool, booted: &[u64]) -> StatusResponse {
        StatusResponse { node, pristine, fresh, booted: booted.to_vec(), ..StatusResponse::default() }
    }

    #[test]
    fn a_cluster_is_founded_by_a_majority_of_nodes_that_hold_nothing() {
        assert_eq!(judge(1, 1, &[]), AdmissionVerdict::Found);
        assert!(matches!(judge(1, 3, &[]), AdmissionVerdict::Wait(_)));
        assert_eq!(judge(1, 3, &[says(2, true, false, &[])]), AdmissionVerdict::Found);
        assert!(matches!(judge(1, 5, &[says(2, true, false, &[])]), AdmissionVerdict::Wait(_)));
    }

    #[test]
    fn a_late_founder_and_a_new_node_join_what_is_there() {
        for founders in [0, 3] {
            assert_eq!(judge(3, founders, &[says(1, false, true, &[1, 2])]), AdmissionVerdict::Join);
        }
        assert!(matches!(judge(4, 0, &[]), AdmissionVerdict::Wait(_)));
        assert!(
            matches!(judge(4, 0, &[says(1, true, false, &[])]), AdmissionVerdict::Wait(_)),
            "it cannot join nothing"
        );
    }

    #[test]
    fn a_node_that_lost_its_data_is_refused_as_soon_as_anybody_knows_it() {
        for fresh in [false, true] {
            let answers = [says(1, true, false, &[]), says(3, false, fresh, &[1, 2, 3])];
            assert!(matches!(judge(2, 3, &answers), AdmissionVerdict::Refuse(why) if why.contains("new id")));
        }
        let removed = StatusResponse { removed: vec![4], ..says(1, false, true, &[1]) };
        assert!(matches!(judge(4, 0, &[removed]), AdmissionVerdict::Refuse(_)));
    }

    /// An answer that may be old does not prove that the node is new.
    #[test]
    fn without_a_leader_to_ask_it_waits() {
        assert!(matches!(judge(2, 3, &[says(3, false, false, &[1, 3])]), AdmissionVerdict::Wait(_)));
    }
}
