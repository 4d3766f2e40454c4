//! Which rows of the audit log are evidence: they say who did what to whose rights, and outlive the others.
//!
//! Each kind is kept by a count of its own, so that neither changes, critical events and errors nor another kind of
//! evidence can push it out.

/// What a row is evidence of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EvidenceKind {
    /// Tokens, members, policies, rights, the time, and databases that were taken over.
    Rights,
    /// Masters and roles.
    Elections,
    /// Conflicts, and how they were decided.
    Conflicts,
}

impl EvidenceKind {
    pub(crate) const ALL: [Self; 3] = [Self::Rights, Self::Elections, Self::Conflicts];

    /// Of the rows of an event; `None`: they are none.
    pub(crate) fn of(event_type: &str) -> Option<Self> {
        Some(match event_type {
            "token_revoke" | "policy_change" | "node_added" | "node_removed" | "node_moved" | "cluster_recovered"
            | "cluster_finalized" | "import" | "table_remove" | "time_back" | "access_change" | "device_pair"
            | "device_revoke" | "device_suspend" | "device_forget" => Self::Rights,
            "master_elected" | "election_started" | "master_election" | "role_change" => Self::Elections,
            "sync_conflict" | "sync_conflict_resolved" => Self::Conflicts,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
