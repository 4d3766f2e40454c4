//! Bodies of REST requests that no event has.

use super::decode::METHODS;
use super::fields::{BadPayload, Fields};
use crate::model::access::{OTHERS, Right};
use crate::model::policy::{decides_named, insert_policy_named, method_of};
use crate::proto::{AccessPut, PolicyPut, TableAccess};

const INSERT_POLICIES: &str = "keep_both, last_writer_wins, automatic or manual";

/// The body of `PUT /sync/policies/{table}`: one at least.
pub fn policy(f: &Fields<'_>) -> Result<PolicyPut, BadPayload> {
    let insert_policy = f.maybe_word("insert_policy", INSERT_POLICIES, insert_policy_named)?;
    let policy = f.maybe_word("policy", METHODS, method_of)?;
    let decides = f.maybe_word("decides", "owner or privileged", decides_named)?;
    if policy.is_none() && insert_policy.is_none() && decides.is_none() {
        return Err(BadPayload::field("policy", "insert_policy or decides is required"));
    }
    Ok(PolicyPut {
        policy: policy.unwrap_or_default().into(),
        insert_policy: insert_policy.unwrap_or_default().into(),
        decides: decides.unwrap_or_default().into(),
        ..PolicyPut::default()
    })
}

/// The body of `PUT /access/{class}`: rights by table, `*` for the others, and whether tables may be made.
pub fn access(f: &Fields<'_>) -> Result<AccessPut, BadPayload> {
    let tables = f.maybe_fields("tables")?.ok_or_else(|| BadPayload::field("tables", "is required"))?;
    let mut put = AccessPut { no_new_tables: !f.maybe_flag("create_tables")?.unwrap_or(true), ..AccessPut::default() };
    for name in tables.names() {
        let right = tables.maybe_word(name, "none, read or write", Right::named);
        let wrong = || BadPayload::field("tables", format_args!("must map {name:?} to none, read or write"));
        let right = right.ok().flatten().ok_or_else(wrong)?.row().into();
        if name == OTHERS {
            put.others = right;
        } else {
            put.tables.push(TableAccess { table_name: name.to_owned(), right });
        }
    }
    Ok(put)
}
