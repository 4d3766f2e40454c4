//! Who may be master, who ranks first, and what calls for an election.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use crate::ids::PendingElectionId;
use crate::model::device::NO_MASTER;
use crate::proto::{Device, Election, ElectionMethod, ElectionReason, Presence, Principal};

pub(super) const NOBODY: &str = "no device can be master: a manual election is needed";

/// May this device become master at all?
pub(crate) fn is_candidate(device: &Device) -> bool {
    device.is_active && !device.capabilities.iter().any(|c| c == NO_MASTER)
}

/// The better candidate first: higher priority, a client's device before a node's, then the id's byte order.
pub(super) fn rank(a: &Device, b: &Device) -> Ordering {
    let key = |d: &Device| (Reverse(d.priority), d.presence() == Presence::Node);
    key(a).cmp(&key(b)).then_with(|| a.device_id.as_bytes().cmp(b.device_id.as_bytes()))
}

/// What calls for an election.
#[derive(Clone, Debug, Default)]
pub(super) struct Trigger {
    pub reason: ElectionReason,
    pub method: ElectionMethod,
    /// An order: this device and no other.
    pub named: String,
    /// Never this one.
    pub except: String,
    /// What `role_change` and the audit log say.
    pub why: String,
    pub by: String,
    /// The role was asked for when coming online: all hear of it by `role_change`. `master_elected` is not sent, as
    /// clients written for the document take it for an election that was triggered.
    pub quiet: bool,
    /// Whose token it was, if the command that began it is another one than this.
    pub principal: Option<Principal>,
}

pub(super) enum Triggered {
    Elected(Arc<Election>),
    /// It is under way.
    Open(PendingElectionId),
    Failed(PendingElectionId),
}

/// A reason as the document writes it.
pub(crate) fn reason_name(reason: ElectionReason) -> &'static str {
    match reason {
        ElectionReason::Shutdown => "shutdown",
        ElectionReason::Failure => "failure",
        ElectionReason::Manual | ElectionReason::Unset => "manual",
    }
}

/// A method as the document writes it.
pub(crate) fn method_name(method: ElectionMethod) -> &'static str {
    match method {
        ElectionMethod::Priority => "priority",
        ElectionMethod::Manual => "manual",
        ElectionMethod::Automatic | ElectionMethod::Unset => "automatic",
    }
}
