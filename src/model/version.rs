//! The cluster's version: what its log may hold.
//!
//! While a cluster is upgraded, programs of two releases run side by side, and each must make the same of every entry. So
//! what only the newer one can write or read stays unused until every node has said that its program knows it, and an
//! operator has said so for good ([`ClusterFinalize`]). Before that each node can go back to the program it had. A new
//! cluster, whose nodes have run no other program, begins with the newest.
//!
//! Version 1 is what programs know that tell none. Version 2: deleted records go with their last change.

use self::key::KEY;
use super::error::{Code, Error};
use super::refusal::{ApplyResult, refuse};
use super::state::State;
use super::tables::TablesError;
use crate::ids::NodeId;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Reply;
use crate::proto::{ClusterFinalize, Compact, Empty, NodeBoot};

pub(super) mod key;

/// What programs know that tell no version.
const FIRST: u32 = 1;
/// From this one on there are versions, and deleted records go with their last change.
const DELETED_GO: u32 = 2;
/// What is said to a command that the program does not know. Older programs say it of those that came after them, and
/// answers are rows: it has to be the same text in every release.
pub(crate) const UNKNOWN: &str = "no command, or one of a newer version";

/// A program, by the newest version that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Build(u32);

impl Build {
    pub const THIS: Self = Self(DELETED_GO);
    /// As programs were before there were versions.
    #[cfg(any(test, feature = "testkit"))]
    pub const BEFORE: Self = Self(FIRST);
    /// A program that does not exist yet.
    #[cfg(any(test, feature = "testkit"))]
    pub const NEXT: Self = Self(Self::THIS.0 + 1);

    pub fn newest(self) -> u32 {
        self.0
    }

    /// As it is told to others: a program of before there were versions tells nothing.
    pub fn told(self) -> u32 {
        if self.0 < DELETED_GO { 0 } else { self.0 }
    }
}

/// What a program knows that told `knows`, and the version of a cluster that has `knows` written down.
pub fn of_told(knows: u32) -> u32 {
    knows.max(FIRST)
}

/// The version that a command needs.
fn needed(intent: &Intent) -> u32 {
    match intent {
        Intent::Compact(Compact { deleted: true, .. }) => DELETED_GO,
        _ => FIRST,
    }
}

/// Not every program of a cluster may know it.
pub(crate) fn needs_agreement(intent: &Intent) -> bool {
    needed(intent) > FIRST
}

impl State {
    pub fn cluster_version(&self) -> u32 {
        of_told(self.meta.cluster_version)
    }

    /// Programs of before there were versions cannot go on with it.
    pub fn has_versions(&self) -> bool {
        self.cluster_version() > FIRST
    }

    /// The program that this state is run by.
    pub fn build(&self) -> Build {
        self.build
    }

    /// Commands that came before their version was agreed, since the start: each is a fault of whoever proposed it.
    pub fn ungated(&self) -> u64 {
        self.ungated
    }

    /// Error 5003 (with the way) if the cluster has not agreed on the version that the command needs.
    pub(crate) fn must_be_agreed(&self, intent: &Intent) -> Result<(), Error> {
        let (needed, agreed) = (needed(intent), self.cluster_version());
        if needed <= agreed {
            return Ok(());
        }
        let why =
            format!("this needs cluster version {needed}, and the cluster has {agreed}: tillsync cluster finalize");
        Err(Error::new(Code::Unavailable, why))
    }

    /// What every program of the cluster makes of a command at this version; `None`: it knows none such.
    pub(super) fn as_agreed(&mut self, intent: Intent) -> Option<Intent> {
        if matches!(intent, Intent::ClusterFinalize(_)) && self.build.told() == 0 {
            return None;
        }
        if needed(&intent) <= self.cluster_version().min(self.build.newest()) {
            return Some(intent);
        }
        if self.build.told() != 0 {
            self.ungated += 1;
            tracing::error!(version = self.cluster_version(), "a command came before its version was agreed on");
        }
        match intent {
            // Programs before do not see the field.
            Intent::Compact(c) => Some(Intent::Compact(Compact { deleted: false, ..c })),
            _ => None,
        }
    }

    pub(super) fn deleted_records_go(&self) -> bool {
        self.cluster_version() >= DELETED_GO
    }

    /// The starts that the command names are still those that run: a node that was started anew may have another program.
    /// The one that proposed it, `leader`, is among them.
    pub(super) fn cluster_finalize(&mut self, leader: NodeId, c: &ClusterFinalize) -> ApplyResult {
        if c.version <= self.cluster_version() {
            return Ok(Reply::Done(Empty {}));
        }
        let is_newest = |told: &NodeBoot| {
            let known = self.boot_of(NodeId(told.node)).map_or((0, 0), |known| (known.boot, known.instance));
            known == (told.boot, told.instance)
        };
        let named = c.programs.iter().any(|told| NodeId(told.node) == leader);
        if !named || !c.programs.iter().all(is_newest) {
            // A program that does not know the command has to answer the same.
            return refuse(Code::Internal, UNKNOWN);
        }
        if c.version > self.build.newest() {
            return Err(TablesError::NewerVersion { found: c.version, known: self.build.newest() }.into());
        }
        let before = self.cluster_version();
        *self.meta.version(KEY).cluster_version = c.version;
        if !c.by.is_empty() {
            let details = format!("Cluster version {before} became {} by {}", c.version, c.by);
            self.audit("cluster_finalized", "finalize", false, "", details);
        }
        self.notify_coordinator();
        Ok(Reply::Done(Empty {}))
    }
}

#[cfg(test)]
mod tests;
