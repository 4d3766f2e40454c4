//! May a node take part?
//!
//! One with an empty data folder may be new, or it may have lost what it had. A node that lost its votes and its log must
//! not come back under its old id: it could vote a second time in a term, or for a leader that lacks what it had
//! acknowledged. So it asks before it votes or takes entries. Founders agree on who they are before they found a cluster.
//!
//! A node whose folder holds something may have an older copy of it. It takes part as soon as most of the voters, itself
//! among them, have told which start of it they know, and none knows a newer one ([`crate::consensus::identity`]): first it
//! only asks, then it claims its number from them. A cluster that was powered off starts so, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::addresses::to_member;
use super::founding::{FounderClaims, disagreement};
use crate::cluster::raft_cluster::RaftCluster;
use crate::consensus::group::RaftGroup;
use crate::consensus::node::StartError;
use crate::consensus::service::Service;
use crate::consensus::transport::{ConnectionClass, LinkError, PeerTransport};
use crate::consensus::types::MemberAddress;
use crate::ids::{LogIndex, NodeId};
use crate::limits;
use crate::model::error::{Code, Error};
use crate::proto::{NodeAdd, StatusRequest, StatusResponse};
use crate::storage::{StartMark, StartMarks};

/// A fresh answer waits for a linearizable read.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The same for a founder, and how long founders listen for one that disagrees: longer than between two of its questions.
const FOUNDER_PAUSE: Duration = Duration::from_millis(200);
pub(in crate::cluster) const SETTLE: Duration = Duration::from_millis(250);
/// How long one that is asked about this node's starts may take, and the longest pause between two rounds.
const CONFIRM: Duration = Duration::from_millis(500);
const CONFIRM_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, PartialEq, Eq)]
enum AdmissionVerdict {
    /// The answers do not tell.
    Wait(String),
    /// There is no cluster yet: found it.
    Found,
    /// There is one, and it does not know this node: its leader will come.
    Join,
    /// The founders' settings name different members.
    Disagree(String),
    Refuse(String),
}

/// `founders` are the nodes that found the cluster, this one included; empty for a node that will be added. `claims`:
/// what nodes that asked this one name as the founders.
fn judge(me: NodeId, founders: &[NodeAdd], answers: &[StatusResponse], claims: &FounderClaims) -> AdmissionVerdict {
    if answers.iter().any(|a| a.booted.contains(&me.get()) || a.removed.contains(&me.get())) {
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
    if let Some(why) = disagreement(founders, answers, claims) {
        return AdmissionVerdict::Disagree(why);
    }
    match founders.len() {
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
pub(crate) struct Beginning {
    pub members: BTreeMap<NodeId, MemberAddress>,
    /// Nodes of the cluster that this one waits to be added to; id 0 where it is not known.
    pub join: Vec<(NodeId, MemberAddress)>,
}

/// Lets the node take part as soon as it may. A node that may not is ended with the reason.
pub(crate) async fn admit(
    cluster: Arc<RaftCluster>,
    service: Arc<Service>,
    transport: Arc<dyn PeerTransport>,
    beginning: Option<Beginning>,
    (starts, took_part): (Arc<dyn StartMarks>, StartMark),
    stop: CancellationToken,
) -> Result<(), StartError> {
    let admitted = match &beginning {
        Some(beginning) => begin(&cluster, &transport, beginning, stop).await,
        None => confirm(&cluster, &transport, stop).await,
    };
    let Some(founds) = admitted else { return Ok(()) };
    // What it is sent first may be of an earlier epoch of the cluster.
    let epoch = cluster.identity.epoch();
    if beginning.is_some() && epoch != 0 {
        starts.save_epoch(epoch).await?;
    }
    // From here on it may vote and acknowledge, and its next start is another one.
    starts.save(took_part).await?;
    service.open(&cluster.node, cluster.members.clone());
    cluster.node.stand(true);
    match beginning {
        Some(beginning) if founds => cluster.node.found(beginning.members).await,
        _ => Ok(()),
    }
}

/// Asks the other members until most of the voters have told what they know of this node. `None`: it may not take
/// part; true: it is to found a cluster.
async fn confirm(cluster: &RaftCluster, transport: &Arc<dyn PeerTransport>, stop: CancellationToken) -> Option<bool> {
    let me = cluster.identity.node;
    let mut pause = PAUSE_MIN;
    // The members may be others by now: from the second round on, whoever can surely say so is asked, and those are, too.
    let mut surely = Vec::new();
    let mut split = false;
    loop {
        let group = cluster.node.group();
        let mut others = group.members.clone();
        others.remove(&me);
        let asked = join(
            ask(cluster, transport, others.clone().into_iter().collect(), false, CONFIRM),
            ask(cluster, transport, surely, true, CONFIRM),
        );
        let (mut answers, mut fresh) = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            answers = asked => answers,
        };
        fresh.iter().for_each(|answer| cluster.identity.learn(answer));
        answers.iter().for_each(|answer| cluster.identity.learn(answer));
        cluster.identity.refresh();
        if cluster.identity.is_outdated().is_some() {
            return None;
        }
        // An older copy that took part while this node was away learns by the question that it is one, and is no witness.
        answers.retain(|answer| cluster.identity.may_be_newest(answer));
        fresh.retain(|answer| cluster.identity.may_be_newest(answer));
        let other = other_history(cluster, answers.iter().chain(&fresh)).await;
        for answer in fresh.iter().filter(|answer| answer.fresh) {
            others.extend(
                answer.members.iter().take(limits::NODES).map(|member| (NodeId(member.node), to_member(member))),
            );
        }
        others.remove(&me);
        let elsewhere = cluster.configured.iter().filter(|(id, _)| !others.contains_key(id)).cloned();
        surely = elsewhere.chain(others.clone()).collect();
        let (told, voters) = told(me, &group, &answers, &fresh);
        let mut why = format!(
            "{told} of {voters} voters have told whether this is the newest start of node {me}, this one included"
        );
        if let Some(other) = other {
            if !split {
                tracing::error!("{other}");
            }
            split = true;
            why = other;
        } else if told * 2 > voters {
            if cluster.identity.claims() {
                cluster.lifecycle.takes_part();
                return Some(false);
            }
            // Whoever hears it now remembers it, so of two copies that ask at once, one is refused.
            cluster.identity.claim();
            continue;
        }
        cluster.lifecycle.waits(why);
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(CONFIRM_PAUSE),
        }
    }
}

/// Why one of them is of another history than this node, if one is.
async fn other_history(
    cluster: &RaftCluster,
    answers: impl Iterator<Item = &StatusResponse> + Clone,
) -> Option<String> {
    if let Some(why) = answers.clone().find_map(|answer| cluster.identity.other_history(answer)) {
        return Some(why);
    }
    for answer in answers {
        if let Some(why) = cluster.identity.other_entry(answer).await {
            return Some(why);
        }
    }
    None
}

/// How many of the voters have told what they know of this node, itself among them, and how many voters there are. The
/// voters are those of the newest answer that is surely true: this node's own log may name others that are long gone.
fn told(me: NodeId, group: &RaftGroup, answers: &[StatusResponse], fresh: &[StatusResponse]) -> (usize, usize) {
    let heard: BTreeSet<NodeId> = answers.iter().chain(fresh).map(|answer| NodeId(answer.node)).chain([me]).collect();
    let formed = fresh.iter().filter(|answer| answer.fresh && !answer.pristine);
    match formed.max_by_key(|answer| (answer.term, answer.last_log_index)) {
        // An older version does not tell where they are: who can say what is the newest knows as much as most of them.
        Some(newest) if newest.members.is_empty() => (1, 1),
        Some(newest) => {
            let voters: BTreeSet<NodeId> = newest.voters.iter().copied().map(NodeId).collect();
            (heard.intersection(&voters).count(), voters.len())
        }
        // It has no vote, as far as it knows: one that knows more says so.
        None if !group.voters.contains(&me) => (usize::from(!heard.is_disjoint(&group.voters)), 1),
        None => (heard.intersection(&group.voters).count(), group.voters.len()),
    }
}

/// What these nodes say, as far as they answer.
async fn ask(
    cluster: &RaftCluster,
    transport: &Arc<dyn PeerTransport>,
    others: Vec<(NodeId, MemberAddress)>,
    fresh: bool,
    patience: Duration,
) -> Vec<StatusResponse> {
    let founders =
        if cluster.node.view().last_log_index == LogIndex(0) { cluster.founding.own.clone() } else { Vec::new() };
    let answers = others.into_iter().map(|(id, member)| {
        let link = transport.link(id, &member, ConnectionClass::Control);
        let request = StatusRequest {
            handshake: Some(cluster.identity.handshake(id)),
            fresh,
            founders: founders.clone(),
            applied_index: Some(cluster.node.replica().applied_index().get()),
            ..StatusRequest::default()
        };
        let request = cluster.addresses.tell(cluster.identity.node, request);
        async move {
            let since = Instant::now();
            match tokio::time::timeout(patience, link.status(request)).await.ok()? {
                Ok(status) => {
                    cluster.stats.answered(NodeId(status.node), since);
                    Some(status)
                }
                Err(error) => {
                    if let LinkError::Refused(why) = error {
                        cluster.stats.refused(id, &why);
                    }
                    None
                }
            }
        }
    });
    join_all(answers).await.into_iter().flatten().collect()
}

/// A node with an empty folder; the same.
async fn begin(
    cluster: &RaftCluster,
    transport: &Arc<dyn PeerTransport>,
    beginning: &Beginning,
    stop: CancellationToken,
) -> Option<bool> {
    let me = cluster.identity.node;
    let founder = beginning.members.contains_key(&me);
    let founders = if founder { cluster.founding.own.clone() } else { Vec::new() };
    let pause_max = if founder { FOUNDER_PAUSE } else { PAUSE_MAX };
    let mut agreed: Option<Instant> = None;
    let mut others = beginning.join.clone();
    others.extend(beginning.members.iter().filter(|(id, _)| **id != me).map(|(id, member)| (*id, member.clone())));
    let mut pause = PAUSE_MIN;
    let mut told = String::new();
    loop {
        let answers = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            answers = ask(cluster, transport, others.clone(), true, PATIENCE) => answers,
        };
        let verdict = judge(me, &founders, &answers, &cluster.founding.claims());
        // One whose settings differ may not have spoken yet.
        let soon = founders.len() > 1 && agreed.is_none_or(|at| at.elapsed() < SETTLE);
        agreed = if verdict == AdmissionVerdict::Found { agreed.or_else(|| Some(Instant::now())) } else { None };
        match verdict {
            AdmissionVerdict::Found if soon => {}
            AdmissionVerdict::Found => {
                cluster.lifecycle.takes_part();
                return Some(true);
            }
            AdmissionVerdict::Join => {
                tracing::info!("this node is new to the cluster");
                // Whoever answered belongs to it, and so do those it names: one of them will come as the leader.
                for answer in answers.iter().filter(|answer| answer.fresh) {
                    cluster.members.vouch(answer.voters.iter().copied().map(NodeId));
                }
                answers.iter().for_each(|answer| cluster.identity.learn(answer));
                if let Some(formed) = answers.iter().find(|answer| answer.fresh && !answer.pristine) {
                    cluster.identity.belong_to(formed.epoch);
                }
                match founded_without(me, founder, &answers) {
                    Some(why) => cluster.lifecycle.waits(why),
                    None => cluster.lifecycle.takes_part(),
                }
                return Some(false);
            }
            AdmissionVerdict::Disagree(why) => {
                if why != told {
                    tracing::error!("no cluster is founded: {why}");
                    told.clone_from(&why);
                }
                cluster.lifecycle.waits(why);
            }
            AdmissionVerdict::Refuse(why) => {
                cluster.end(Error::new(Code::Configuration, why));
                return None;
            }
            AdmissionVerdict::Wait(why) => {
                if why != told && pause == pause_max {
                    tracing::info!("waiting: {why}");
                    told.clone_from(&why);
                }
                cluster.lifecycle.waits(why);
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(pause_max),
        }
    }
}

/// What a founder has to say that the cluster does not have among its voters.
fn founded_without(me: NodeId, founder: bool, answers: &[StatusResponse]) -> Option<String> {
    let formed: Vec<&StatusResponse> = answers.iter().filter(|answer| answer.fresh && !answer.pristine).collect();
    let first = formed.first()?;
    if !founder || formed.iter().any(|answer| answer.voters.contains(&me.get())) {
        return None;
    }
    let voters = first.voters.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let why = format!(
        "the settings name node {me} as a founder, but node {} is of a cluster that was founded without it (voters: \
         {voters}): correct `members`, or add this node with `cluster add`",
        first.node
    );
    tracing::error!("no cluster is founded: {why}");
    Some(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Founders 1 to `all`, and none of them disagrees.
    fn judge(me: u64, all: u64, answers: &[StatusResponse]) -> AdmissionVerdict {
        super::judge(NodeId(me), &founders(all), answers, &FounderClaims::new())
    }

    fn founders(all: u64) -> Vec<NodeAdd> {
        (1..=all).map(|node| NodeAdd { node, raft: format!("node-{node}"), ..NodeAdd::default() }).collect()
    }

    fn founds(node: u64, all: u64) -> StatusResponse {
        StatusResponse { founders: founders(all), ..says(node, true, false, &[]) }
    }

    fn says(node: u64, pristine: bool, fresh: bool, booted: &[u64]) -> StatusResponse {
        StatusResponse { node, pristine, fresh, booted: booted.to_vec(), ..StatusResponse::default() }
    }

    #[test]
    fn a_cluster_is_founded_by_a_majority_of_nodes_that_hold_nothing() {
        assert_eq!(judge(1, 1, &[]), AdmissionVerdict::Found);
        assert!(matches!(judge(1, 3, &[]), AdmissionVerdict::Wait(_)));
        assert_eq!(judge(1, 3, &[founds(2, 3)]), AdmissionVerdict::Found);
        assert!(matches!(judge(1, 5, &[founds(2, 5)]), AdmissionVerdict::Wait(_)));
    }

    #[test]
    fn founders_that_name_other_members_found_nothing_and_say_who_and_how() {
        for answer in [founds(2, 2), founds(2, 4), says(2, true, false, &[])] {
            let verdict = judge(1, 3, &[answer, founds(3, 3)]);
            let AdmissionVerdict::Disagree(why) = verdict else { panic!("{verdict:?}") };
            assert!(why.contains("node 2") && why.contains("3 at node-3"), "{why}");
        }
        let claims = FounderClaims::from([(NodeId(1), founders(3))]);
        let two: Vec<NodeAdd> = founders(3).split_off(1);
        let answer = StatusResponse { founders: two.clone(), ..says(3, true, false, &[]) };
        let verdict = super::judge(NodeId(2), &two, &[answer], &claims);
        assert!(matches!(verdict, AdmissionVerdict::Disagree(why) if why.contains("node 1")));
    }

    #[test]
    fn a_founder_of_a_cluster_that_is_there_without_it_says_so() {
        let formed = |voters: &[u64]| [StatusResponse { voters: voters.to_vec(), ..says(1, false, true, &[1]) }];
        assert!(founded_without(NodeId(3), true, &formed(&[1, 2])).unwrap().contains("voters: 1, 2"));
        assert_eq!(founded_without(NodeId(3), true, &formed(&[1, 2, 3])), None);
        assert_eq!(founded_without(NodeId(3), false, &formed(&[1, 2])), None, "it waits to be added");
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

    fn group(voters: &[u64]) -> RaftGroup {
        RaftGroup { voters: voters.iter().copied().map(NodeId).collect(), ..RaftGroup::default() }
    }

    /// A node that can surely say who the voters are, and where.
    fn surely(node: u64, last_log_index: u64, voters: &[u64]) -> StatusResponse {
        let members = voters.iter().map(|node| NodeAdd { node: *node, ..NodeAdd::default() }).collect();
        StatusResponse { voters: voters.to_vec(), members, last_log_index, ..says(node, false, true, &[]) }
    }

    #[test]
    fn most_of_the_voters_have_to_tell_what_they_know_of_a_start() {
        let old = |node| says(node, false, false, &[]);
        assert_eq!(told(NodeId(1), &group(&[1, 2, 3]), &[], &[]), (1, 3));
        assert_eq!(told(NodeId(1), &group(&[1, 2, 3]), &[old(2), old(2)], &[]), (2, 3));
        assert_eq!(told(NodeId(1), &group(&[2, 3]), &[], &[]), (0, 1), "no vote, and nobody answers");
        assert_eq!(told(NodeId(1), &group(&[2, 3]), &[old(3)], &[]), (1, 1));
    }

    /// Two copies of a folder that ask at once, each another node: one answer is not enough, however sure it is.
    #[test]
    fn one_sure_answer_names_the_voters_and_is_one_of_them() {
        let five = [1, 2, 3, 4, 5];
        assert_eq!(told(NodeId(1), &group(&five), &[], &[surely(2, 9, &five)]), (2, 5));
        // The folder is from before the others were replaced.
        assert_eq!(told(NodeId(1), &group(&[1, 2, 3]), &[], &[surely(4, 9, &[1, 4, 5])]), (2, 3));
        assert_eq!(
            told(NodeId(1), &group(&[1, 2, 3]), &[says(2, false, false, &[])], &[surely(4, 9, &[4, 5, 6])]),
            (1, 3)
        );
        let (before, now) = (surely(2, 5, &[1, 2]), surely(4, 9, &[1, 4, 5, 6]));
        assert_eq!(told(NodeId(1), &group(&[1, 2]), &[], &[before, now]), (2, 4));
        let older_version = StatusResponse { members: Vec::new(), ..surely(4, 9, &[1, 4, 5]) };
        assert_eq!(told(NodeId(1), &group(&[1, 2, 3]), &[], &[older_version]), (1, 1));
        let holds_nothing = StatusResponse { pristine: true, ..surely(4, 0, &[4]) };
        assert_eq!(told(NodeId(1), &group(&[1, 2, 3]), &[], &[holds_nothing]), (1, 3));
    }

    /// An answer that may be old does not prove that the node is new.
    #[test]
    fn without_a_leader_to_ask_it_waits() {
        assert!(matches!(judge(2, 3, &[says(3, false, false, &[1, 3])]), AdmissionVerdict::Wait(_)));
    }
}
