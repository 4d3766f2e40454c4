//! The cluster's version is raised, when every node has said that its program knows the next one.

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{ChangeRefused, ChangeResult, GREETING, MembershipManager, refuse, wrong_role};
use crate::consensus::identity::NodeStart;
use crate::consensus::types::MemberAddress;
use crate::ids::NodeId;
use crate::model::error::{Code, Error};
use crate::model::version;
use crate::proto::command::Intent;
use crate::proto::{ClusterFinalize, NodeBoot, Principal};

/// A node's program, as it told itself.
struct ToldProgram {
    node: NodeId,
    start: NodeBoot,
    knows: u32,
}

impl MembershipManager {
    /// To the newest version that all members know. For good: no node can go back to a program that does not know it.
    pub(super) async fn finalize(&self, by: &Principal, end: Instant) -> ChangeResult<NodeId> {
        let me = self.identity.node;
        let others: Vec<_> = self.node.members().into_iter().filter(|(id, _)| *id != me).collect();
        let told = others.iter().map(|(id, member)| self.ask_program(*id, member, end));
        let told: Vec<ToldProgram> = join_all(told).await.into_iter().collect::<ChangeResult<_>>()?;
        let NodeStart { boot, instance, .. } = self.identity.start();
        let start = NodeBoot { node: me.get(), boot, instance, ..NodeBoot::default() };
        let own = ToldProgram { node: me, start, knows: self.identity.build().newest() };
        let programs: Vec<ToldProgram> = told.into_iter().chain([own]).collect();
        let agreed = self.node.replica().state().cluster_version();
        let newest = programs.iter().map(|program| program.knows).max().unwrap_or(agreed);
        let version = programs.iter().map(|program| program.knows).min().unwrap_or(agreed);
        if version <= agreed && newest > agreed {
            let behind = programs.iter().filter(|program| program.knows <= agreed);
            let behind = behind.map(|program| program.node.to_string()).collect::<Vec<_>>().join(", ");
            return wrong_role(format!(
                "the cluster's version stays {agreed}: the program of node {behind} knows no newer one; install the program \
                 that knows version {newest} there first"
            ));
        }
        if version <= agreed {
            let why = format!("the cluster's version is {agreed} already, and no program of it knows a newer one");
            return Err(ChangeRefused::Already(Error::new(Code::RoleChange, why)));
        }
        let starts = programs.into_iter().map(|program| program.start).collect();
        let finalize = ClusterFinalize { version, programs: starts, by: by.sub.clone() };
        self.must_lead()?;
        match self.propose(by, Intent::ClusterFinalize(finalize)).await {
            Ok(_) => Ok(me),
            Err(error) if error.message == version::UNKNOWN => refuse(
                Code::Unavailable,
                "a node was started anew meanwhile: look whether it runs the new program, and ask again",
            ),
            Err(error) if error.code == Code::Timeout => refuse(
                Code::Timeout,
                "not confirmed by a quorum in time, and the version may be raised all the same: start no node with an older \
                 program until cluster status shows which version it is",
            ),
            Err(error) => Err(ChangeRefused::Refused(error)),
        }
    }

    async fn ask_program(&self, id: NodeId, member: &MemberAddress, end: Instant) -> ChangeResult<ToldProgram> {
        let status = match self.greet(id, member, end.min(Instant::now() + GREETING)).await {
            Ok(status) => status,
            Err(ChangeRefused::Refused(error)) => {
                let why =
                    format!("the cluster's version is raised when every node has told its program: {}", error.message);
                return refuse(error.code, why);
            }
            Err(other) => return Err(other),
        };
        let start = status.boots.iter().find(|boot| NodeId(boot.node) == id);
        let (boot, instance) = start.map_or((0, 0), |start| (start.boot, start.instance));
        let start = NodeBoot { node: id.get(), boot, instance, ..NodeBoot::default() };
        Ok(ToldProgram { node: id, start, knows: version::of_told(status.knows) })
    }
}
