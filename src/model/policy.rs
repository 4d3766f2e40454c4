//! How conflicts in a table are decided: what is set, and its defaults.

use super::change::valid_table;
use super::error::Code;
use super::refusal::{ApplyResult, refuse};
use super::state::State;
use crate::ids::TableId;
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Asker, Decides, Empty, InsertPolicy, PolicyPut, ResolutionMethod, TableName};

impl State {
    pub(super) fn policy(&self, table: TableId) -> ResolutionMethod {
        self.table_of(table).map_or(ResolutionMethod::LastWriterWins, policy_of)
    }

    pub(super) fn insert_policy(&self, table: TableId) -> InsertPolicy {
        self.table_of(table).map_or(InsertPolicy::KeepBoth, insert_policy_of)
    }

    pub(super) fn policy_put(&mut self, c: PolicyPut) -> ApplyResult {
        if c.asker() == Asker::Device {
            return refuse(Code::Forbidden, "only admins and managers may set a conflict policy");
        }
        let nothing = c.policy() == ResolutionMethod::Unset && c.insert_policy() == InsertPolicy::Unset;
        if nothing && c.decides() == Decides::Unset {
            return refuse(Code::InvalidData, "policy, insert_policy or decides is required");
        }
        if !valid_table(&c.table_name) {
            return refuse(Code::InvalidData, "table_name is not a usable name");
        }
        self.must_write(c.class, &c.table_name)?;
        let number = self.number_of_table_for(&c.table_name, &c.by, limits::TABLES_OF_PRIVILEGED)?;
        let Some(mut row) = self.table_of(number).cloned() else {
            return refuse(Code::Internal, "the table has no number");
        };
        if c.policy() != ResolutionMethod::Unset {
            row.policy = c.policy;
            let details = format!("Conflict policy of {} is {}", c.table_name, method_name(c.policy()));
            self.audit("policy_change", "put", false, &c.by, details);
        }
        if c.insert_policy() != InsertPolicy::Unset {
            row.insert_policy = c.insert_policy;
            let details = format!("Insert policy of {} is {}", c.table_name, insert_policy_name(c.insert_policy()));
            self.audit("policy_change", "put", false, &c.by, details);
        }
        if c.decides() != Decides::Unset {
            row.decides = c.decides;
            let details = format!("Conflicts in {} are decided by: {}", c.table_name, decides_name(c.decides()));
            self.audit("policy_change", "put", false, &c.by, details);
        }
        self.save_table(number, row);
        Ok(Reply::Done(Empty {}))
    }
}

/// A table's policy for conflicts, by default the document's.
pub(crate) fn policy_of(table: &TableName) -> ResolutionMethod {
    match table.policy() {
        ResolutionMethod::Unset => ResolutionMethod::LastWriterWins,
        policy => policy,
    }
}

/// A table's policy for inserts that meet a live record.
pub(crate) fn insert_policy_of(table: &TableName) -> InsertPolicy {
    match table.insert_policy() {
        InsertPolicy::Unset => InsertPolicy::KeepBoth,
        policy => policy,
    }
}

/// Who decides conflicts in a table.
pub(crate) fn decides_of(table: &TableName) -> Decides {
    match table.decides() {
        Decides::Unset => Decides::Owner,
        decides => decides,
    }
}

/// Who decides, as it is set and shown.
pub(crate) fn decides_name(decides: Decides) -> &'static str {
    if decides == Decides::Privileged { "privileged" } else { "owner" }
}

/// Who decides, by its name.
pub(crate) fn decides_named(name: &str) -> Option<Decides> {
    [Decides::Owner, Decides::Privileged].into_iter().find(|d| decides_name(*d) == name)
}

/// An insert policy as it is set and shown.
pub(crate) fn insert_policy_name(policy: InsertPolicy) -> &'static str {
    match policy {
        InsertPolicy::KeepBoth | InsertPolicy::Unset => "keep_both",
        InsertPolicy::LastWriterWins => "last_writer_wins",
        InsertPolicy::Automatic => "automatic",
        InsertPolicy::Manual => "manual",
    }
}

/// The insert policy of a name.
pub(crate) fn insert_policy_named(name: &str) -> Option<InsertPolicy> {
    [InsertPolicy::KeepBoth, InsertPolicy::LastWriterWins, InsertPolicy::Automatic, InsertPolicy::Manual]
        .into_iter()
        .find(|p| insert_policy_name(*p) == name)
}

/// A resolution method as the document writes it.
pub(crate) fn method_name(method: ResolutionMethod) -> &'static str {
    match method {
        ResolutionMethod::Manual => "manual",
        ResolutionMethod::Automatic => "automatic",
        ResolutionMethod::LastWriterWins | ResolutionMethod::Unset => "last_writer_wins",
    }
}

/// The method of a documented name.
pub(crate) fn method_of(name: &str) -> Option<ResolutionMethod> {
    [ResolutionMethod::LastWriterWins, ResolutionMethod::Manual, ResolutionMethod::Automatic]
        .into_iter()
        .find(|m| method_name(*m) == name)
}
