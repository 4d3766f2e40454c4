//! What the REST endpoints take and answer.

use crate::gateway::protocol::payloads::{
    ACKNOWLEDGED, AFTER_N, BASE, CHANGE, CLASS_RIGHTS, CLOCK_AHEAD, CONFLICT, CONFLICT_RESOLVED, DATA_RESPONSE,
    DECIDED_ON, ELECTED_BY, ERROR_TAIL, INITIATED_BY, MASTER_ELECTED, N, NEW_RECORD, ONLINE, QUEUE, REQUEST_ID,
    TIME_TAKEN, TOKEN_RENEWED, UPDATE,
};
use crate::gateway::protocol::schema::{
    ANY_COUNT, CLASS, CURSOR, DEVICE_ID, ELECTION_REASON, FieldDescription, FieldKind, METHOD, OPERATION, REASON,
    RIGHTS, ROLE, TABLE_NAME, WORDS, may, more, must, plus,
};
use crate::limits;
use crate::model::pairing::CODE_LENGTH;

/// Where a node without a quorum may answer from what it has.
pub(crate) const STALE_QUERY: FieldDescription = more(
    "consistency",
    FieldKind::Word(&["linearizable", "stale"]),
    "`stale`: what this node has, without asking the others; it may be old. Default: linearizable.",
);
const STALE: FieldDescription =
    more("consistency", FieldKind::Word(&["stale"]), "It was asked for: the answer may be old.");

const SUCCESS: FieldDescription = must("success", FieldKind::Flag, "");
const WHO: FieldDescription = must("device_id", DEVICE_ID, "");
const SENT_AT: FieldDescription = may("timestamp", FieldKind::Time, "The client's time.");
const SYNC_STATUS: FieldKind = FieldKind::Word(&["pending", "syncing", "synced", "error"]);

/// How an endpoint refuses.
pub(crate) const REFUSED: &[FieldDescription] = &[
    SUCCESS,
    must("error", WORDS, "What is wrong, in English."),
    ERROR_TAIL[0],
    ERROR_TAIL[1],
    ERROR_TAIL[2],
    ERROR_TAIL[3],
    ERROR_TAIL[4],
    ERROR_TAIL[5],
    more("conflict_id", ANY_COUNT, "The conflict that waits for a decision."),
];

/// As `device_online`, whose own time is documented.
pub(crate) const REGISTER: &[FieldDescription] = &[
    ONLINE[0],
    ONLINE[1],
    ONLINE[2],
    ONLINE[3],
    more("timestamp", FieldKind::Time, "The client's time."),
    ONLINE[5],
    ONLINE[6],
    ONLINE[7],
];
pub(crate) const REGISTERED: &[FieldDescription] = &[
    SUCCESS,
    WHO,
    must("role", ROLE, ""),
    must("master_device_id", FieldKind::OrNull(&DEVICE_ID), ""),
    must("sync_status", FieldKind::Word(&["connected", "disconnected", "error"]), ""),
    plus("registered", FieldKind::Flag, "It was the first time."),
    plus("term", ANY_COUNT, ""),
];

pub(crate) const DEVICE: &[FieldDescription] = &[
    WHO,
    must("role", ROLE, ""),
    must("priority", FieldKind::Count(limits::PRIORITY as u64), ""),
    must("last_seen", FieldKind::Time, ""),
    must("is_active", FieldKind::Flag, ""),
    plus("home", ANY_COUNT, "The node that it connected to last; as the master, it is led from there."),
    plus("nodes", FieldKind::Counts, "All nodes that it is connected to. It is active while there is one."),
    CLOCK_AHEAD,
    plus("capabilities", FieldKind::Texts(limits::CAPABILITIES, limits::CAPABILITY), ""),
    STALE,
];
pub(crate) const DEVICES: &[FieldDescription] = &[
    must("devices", FieldKind::List(DEVICE), ""),
    more("pagination", PAGINATION.kind, "Of a page."),
    more("has_more", FieldKind::Flag, "Of a page."),
    more("next_after", DEVICE_ID, "Ask with it as `after` for the next page."),
    STALE,
];

pub(crate) const ROLE_ASKED: &[FieldDescription] = &[must("role", ROLE, ""), must("reason", REASON, ""), SENT_AT];
pub(crate) const ROLE_CHANGED: &[FieldDescription] =
    &[SUCCESS, WHO, must("new_role", ROLE, ""), must("reason", REASON, "")];

pub(crate) const SYNC_STATE: &[FieldDescription] = &[
    WHO,
    must("sync_status", SYNC_STATUS, ""),
    must("pending_changes_count", ANY_COUNT, ""),
    must("last_sync_timestamp", FieldKind::OrNull(&FieldKind::Time), "Null until the first sync."),
    must("last_error_message", FieldKind::OrNull(&WORDS), ""),
    plus("cursor", CURSOR, "Up to where the device has completed its syncs."),
    must("updated_at", FieldKind::Time, ""),
    STALE,
];
pub(crate) const SYNC_STATE_ASKED: &[FieldDescription] = &[
    may("sync_status", SYNC_STATUS, ""),
    may("pending_changes_count", FieldKind::Count(1_000_000_000_000), ""),
    may("last_error_message", FieldKind::Text(limits::ERROR_MESSAGE), ""),
];
pub(crate) const SYNC_STATE_SET: &[FieldDescription] =
    &[SUCCESS, must("sync_state", FieldKind::Object(SYNC_STATE), "")];

const PAGINATION: FieldDescription = must(
    "pagination",
    FieldKind::Object(&[must("limit", ANY_COUNT, ""), must("offset", ANY_COUNT, ""), must("total", ANY_COUNT, "")]),
    "",
);

/// Of an election.
const ELECTION_ROW: &[FieldDescription] = &[
    must("id", ANY_COUNT, ""),
    must("previous_master_id", FieldKind::OrNull(&DEVICE_ID), ""),
    must("new_master_id", DEVICE_ID, ""),
    must("election_reason", ELECTION_REASON, ""),
    must("election_timestamp", FieldKind::Time, ""),
    must("devices_participating", ANY_COUNT, ""),
    plus("election_method", FieldKind::Word(&["priority", "manual", "automatic"]), ""),
    plus("term", ANY_COUNT, ""),
    INITIATED_BY,
    ELECTED_BY,
];
pub(crate) const ELECTIONS: &[FieldDescription] =
    &[must("logs", FieldKind::List(ELECTION_ROW), "Newest first."), PAGINATION, STALE];

const AUDIT_ROW: &[FieldDescription] = &[
    must("id", ANY_COUNT, ""),
    must("event_type", WORDS, ""),
    must("operation", WORDS, ""),
    must("status", FieldKind::Word(&["success", "error"]), ""),
    must("device_id", FieldKind::Text(limits::DEVICE_ID), ""),
    must("details", WORDS, ""),
    must("timestamp", FieldKind::Time, ""),
    more("by", FieldKind::Text(limits::DEVICE_ID), "Whose token asked for it (its `sub`), if not the device's own."),
    more("jti", FieldKind::Text(limits::TOKEN_ID), "The token's name."),
];
pub(crate) const AUDIT: &[FieldDescription] =
    &[must("logs", FieldKind::List(AUDIT_ROW), "Newest first."), PAGINATION, STALE];

pub(crate) const CHANGES: &[FieldDescription] = &[
    must("changes", FieldKind::List(CHANGE), "In order."),
    must("cursor", CURSOR, "Ask with it for what comes next."),
    must("has_more", FieldKind::Flag, ""),
    STALE,
];

const LISTED_CONFLICT: &[FieldDescription] = &[
    CONFLICT[0],
    CONFLICT[1],
    CONFLICT[2],
    CONFLICT[3],
    CONFLICT[4],
    CONFLICT[5],
    CONFLICT[6],
    CONFLICT[7],
    CONFLICT[8],
    plus("deleted_here", FieldKind::Flag, "The record was deleted."),
    plus("deleted_there", FieldKind::Flag, "The device deleted it."),
    plus("status", FieldKind::Word(&["open", "resolved"]), ""),
    more("resolution", FieldKind::Object(RESOLUTION), "What became of the record, once it is resolved."),
    more("record_version", ANY_COUNT, "The record's version now: what a decision is made on. In the list only."),
];
const RESOLUTION: &[FieldDescription] = &[
    CONFLICT_RESOLVED[0],
    CONFLICT_RESOLVED[1],
    CONFLICT_RESOLVED[2],
    CONFLICT_RESOLVED[3],
    CONFLICT_RESOLVED[4],
    CONFLICT_RESOLVED[5],
    CONFLICT_RESOLVED[6],
    CONFLICT_RESOLVED[7],
    CONFLICT_RESOLVED[8],
    CONFLICT_RESOLVED[9],
    CONFLICT_RESOLVED[10],
    plus("resolved_by", WORDS, "Who decided: a device, or a token's subject."),
];
pub(crate) const CONFLICTS: &[FieldDescription] = &[
    must(
        "conflicts",
        FieldKind::List(LISTED_CONFLICT),
        "Open ones oldest first; resolved ones, and all, newest first. A page has at most 1 MiB of data.",
    ),
    PAGINATION,
    plus("has_more", FieldKind::Flag, ""),
    more("next_offset", ANY_COUNT, "Where the next page begins: a page may hold fewer than `limit`."),
    STALE,
];
pub(crate) const CONFLICT_STATUS: FieldDescription =
    may("status", FieldKind::Word(&["open", "resolved", "all"]), "Default: open.");

const PAST: &[FieldDescription] = &[
    must("kind", FieldKind::Word(&["change", "conflict"]), ""),
    must("version", ANY_COUNT, "Of the change; or that the conflict was found at."),
    may("operation", OPERATION, "Of a change."),
    may("data", FieldKind::Data, "Of a change; empty for a delete."),
    may("device_id", DEVICE_ID, "Who wrote it."),
    may("timestamp", FieldKind::Time, ""),
    may("conflict", FieldKind::Object(LISTED_CONFLICT), "With both versions."),
];
pub(crate) const HISTORY: &[FieldDescription] = &[
    must("table_name", TABLE_NAME, ""),
    must("record_id", FieldKind::RecordId, ""),
    must("history", FieldKind::List(PAST), "Newest first. A page has at most 1 MiB of data."),
    must("has_more", FieldKind::Flag, ""),
    must("older_dropped", FieldKind::Flag, "What came before is no longer kept."),
    may("before", WORDS, "Ask with it for the next page."),
    STALE,
];

pub(crate) const RESOLVE_ASKED: &[FieldDescription] = &[
    may("resolution_method", METHOD, "Default: manual."),
    may("resolved_data", FieldKind::Data, "What the record becomes. Required without `delete` and `new_record_id`."),
    may("delete", FieldKind::Flag, "The record goes."),
    NEW_RECORD,
    DECIDED_ON,
    may("device_id", DEVICE_ID, "Who decides. Default: the token's device."),
    SENT_AT,
];
pub(crate) const RESOLVED: &[FieldDescription] = &[
    SUCCESS,
    CONFLICT_RESOLVED[0],
    CONFLICT_RESOLVED[1],
    CONFLICT_RESOLVED[2],
    CONFLICT_RESOLVED[3],
    CONFLICT_RESOLVED[4],
    CONFLICT_RESOLVED[5],
    CONFLICT_RESOLVED[6],
    CONFLICT_RESOLVED[7],
    CONFLICT_RESOLVED[8],
    CONFLICT_RESOLVED[9],
    CONFLICT_RESOLVED[10],
];

const INSERT_POLICY: FieldKind = FieldKind::Word(&["keep_both", "last_writer_wins", "automatic", "manual"]);
const DECIDES: FieldKind = FieldKind::Word(&["owner", "privileged"]);
pub(crate) const POLICY_ASKED: &[FieldDescription] = &[
    may("policy", METHOD, "For changes of an old version. One of the fields is required."),
    may("insert_policy", INSERT_POLICY, "For an insert that meets a live record with other data. Default: keep_both."),
    may(
        "decides",
        DECIDES,
        "Who decides open conflicts: also the device whose conflict it is, or only admins and managers.",
    ),
];
pub(crate) const TABLE_POLICY: &[FieldDescription] = &[
    must("table_name", TABLE_NAME, ""),
    must("policy", METHOD, ""),
    plus("insert_policy", INSERT_POLICY, ""),
    plus("decides", DECIDES, ""),
    STALE,
];
pub(crate) const POLICIES: &[FieldDescription] = &[must("policies", FieldKind::List(TABLE_POLICY), "By table."), STALE];
pub(crate) const POLICY: &[FieldDescription] =
    &[SUCCESS, TABLE_POLICY[0], TABLE_POLICY[1], TABLE_POLICY[2], TABLE_POLICY[3]];

/// `data_update` without what stands in the path.
pub(crate) const WRITE: &[FieldDescription] = &[
    may("device_id", DEVICE_ID, "Default: the token's device."),
    UPDATE[3],
    UPDATE[4],
    SENT_AT,
    BASE,
    REQUEST_ID,
    QUEUE,
    N,
    AFTER_N,
];
pub(crate) const WRITTEN: &[FieldDescription] = &[
    SUCCESS,
    ACKNOWLEDGED[0],
    ACKNOWLEDGED[1],
    ACKNOWLEDGED[2],
    ACKNOWLEDGED[3],
    ACKNOWLEDGED[4],
    ACKNOWLEDGED[5],
    ACKNOWLEDGED[6],
    ACKNOWLEDGED[7],
    ACKNOWLEDGED[8],
    ACKNOWLEDGED[9],
    ACKNOWLEDGED[10],
    ACKNOWLEDGED[11],
    ACKNOWLEDGED[12],
    ACKNOWLEDGED[13],
    TIME_TAKEN,
];

pub(crate) const TABLE_REMOVED: &[FieldDescription] = &[
    SUCCESS,
    must("table_name", TABLE_NAME, ""),
    must("removed", FieldKind::Flag, "False: it was too much for one request. Ask again, or wait."),
    must("records_deleted", ANY_COUNT, "By this request."),
    must("conflicts_closed", ANY_COUNT, "By this request."),
    must("timestamp", FieldKind::Time, ""),
];

pub(crate) const HEALTH: &[FieldDescription] = &[
    must("status", FieldKind::Word(&["healthy", "degraded", "unhealthy"]), ""),
    must("master_device", FieldKind::OrNull(&DEVICE_ID), ""),
    must("active_devices", ANY_COUNT, ""),
    must("sync_status", FieldKind::Word(&["synced", "syncing", "error"]), ""),
    must("last_check", FieldKind::Time, ""),
];

const PEER: &[FieldDescription] = &[
    must("node", ANY_COUNT, ""),
    must("reachable", FieldKind::Flag, ""),
    must("latency_ms", FieldKind::OrNull(&FieldKind::Number), ""),
    must("silent_ms", FieldKind::OrNull(&FieldKind::Number), ""),
    must("last_heard", FieldKind::OrNull(&FieldKind::Time), "Null: never."),
];
pub(crate) const NETWORK: &[FieldDescription] = &[
    must(
        "network_status",
        FieldKind::Word(&["connected", "disconnected", "partitioned"]),
        "`partitioned`: some nodes are out of reach; `disconnected`: so many that nothing can be written here.",
    ),
    must("active_connections", ANY_COUNT, "Sessions on this node."),
    must("last_heartbeat", FieldKind::Time, "When a peer was last heard."),
    must("network_latency", FieldKind::Number, "To the slowest peer, in milliseconds."),
    plus("unreachable", FieldKind::Counts, "The nodes that this one cannot reach."),
    plus("quorum", FieldKind::Flag, "Writes can be committed."),
    plus("peers", FieldKind::List(PEER), "The other nodes, as this one sees them."),
];

const BACKUP: &[FieldDescription] = &[
    must(
        "covered_until",
        FieldKind::OrNull(&FieldKind::Time),
        "What was written until then is in a backup. Null: the node does not know, as one that does not take them.",
    ),
    must("proved_at", FieldKind::OrNull(&FieldKind::Time), "When one was proved to be restorable last."),
    must("on_duty", FieldKind::Flag, "It is this node that takes them."),
    must("failed", FieldKind::OrNull(&WORDS), "Why the last attempt came to nothing. Null: it did not."),
];
const NODE: &[FieldDescription] = &[
    must("node", ANY_COUNT, ""),
    must("role", FieldKind::Word(&["leader", "voter", "learner"]), ""),
    must("raft", WORDS, "Where the other nodes reach it."),
    must("gateway", WORDS, "Where devices reach it."),
    must("reachable", FieldKind::Flag, "From the node that answers."),
    must("latency_ms", FieldKind::OrNull(&FieldKind::Number), "Round trip from the node that answers."),
    must("last_heard", FieldKind::OrNull(&FieldKind::Time), "Null: never."),
    must(
        "term",
        FieldKind::OrNull(&ANY_COUNT),
        "This and the rest as it said itself, a second ago at most if it is reachable.",
    ),
    must("applied_index", FieldKind::OrNull(&ANY_COUNT), ""),
    must("lag", FieldKind::OrNull(&ANY_COUNT), "Entries that it had not applied."),
    must("digest", FieldKind::OrNull(&WORDS), "Of its state at `applied_index`."),
    must(
        "differs_from",
        FieldKind::OrNull(&ANY_COUNT),
        "The log index since which its data is known to differ from that of the node that answers. Null: it does not.",
    ),
    must(
        "clock_ahead_ms",
        FieldKind::OrNull(&FieldKind::Number),
        "How far its clock is ahead of most nodes', in milliseconds; from 5,000 on, either way, it serves nothing. Null: it was not compared.",
    ),
    must("master", FieldKind::OrNull(&DEVICE_ID), ""),
    must("sessions", FieldKind::OrNull(&ANY_COUNT), ""),
    must("version", FieldKind::OrNull(&WORDS), ""),
    must("knows_version", FieldKind::OrNull(&ANY_COUNT), "The newest cluster version that its program knows."),
    must("disk_free", FieldKind::OrNull(&ANY_COUNT), "Bytes that are free on the disk of its data. Null: not known."),
    must(
        "disk",
        FieldKind::OrNull(&FieldKind::Word(&["plenty", "low", "full"])),
        "What they are by its settings `disk_low_mb` and `disk_min_mb`.",
    ),
    must(
        "backup",
        FieldKind::OrNull(&FieldKind::Object(BACKUP)),
        "What it knows of the backups that its setting `backup_to` asks for. Null: there is none.",
    ),
];
pub(crate) const CLUSTER: &[FieldDescription] = &[
    must("node", ANY_COUNT, "The node that answers."),
    must("leader", FieldKind::OrNull(&ANY_COUNT), ""),
    must("term", ANY_COUNT, "Of the leader."),
    must("applied_index", ANY_COUNT, ""),
    must("digest", WORDS, "Of the state; equal on all nodes at the same `digest_index`."),
    must("digest_index", ANY_COUNT, ""),
    must("master", FieldKind::OrNull(&DEVICE_ID), ""),
    must("master_term", ANY_COUNT, ""),
    must("head_seq", ANY_COUNT, "The newest change."),
    must("sessions", ANY_COUNT, ""),
    must("quorum", FieldKind::Flag, ""),
    must("peers", FieldKind::List(PEER), ""),
    must("voters", FieldKind::Counts, ""),
    must("nodes", FieldKind::List(NODE), "Every member."),
    must("differing", FieldKind::Counts, "Nodes that hold other data than the node that answers."),
    must(
        "digest_verdict",
        FieldKind::OrNull(&WORDS),
        "Why nothing may be written here: nodes differ, and no majority tells which is right. Null: it may.",
    ),
    must(
        "disk_verdict",
        FieldKind::OrNull(&WORDS),
        "Why less is written: disks of nodes are low (bulk loads wait) or full (devices can only delete). Null: all is.",
    ),
    must("cluster_version", ANY_COUNT, "What the cluster's log may hold: see Upgrade in the operator's guide."),
    must("version", WORDS, ""),
    must("timestamp", FieldKind::Time, ""),
];

pub(crate) const ACCESS_ASKED: &[FieldDescription] = &[
    must(
        "tables",
        RIGHTS,
        "none, read or write, by table; `*` stands for every table that is not named. Default of `*`: write.",
    ),
    may("create_tables", FieldKind::Flag, "The class may write to a table that does not exist yet. Default: true."),
];
const SET: [FieldDescription; 2] = [
    more("set_by", WORDS, "Who set it. Missing if nothing was set: then the class may do everything."),
    more("set_at", FieldKind::Time, ""),
];
const ONE_CLASS: &[FieldDescription] = &[CLASS_RIGHTS[0], CLASS_RIGHTS[1], CLASS_RIGHTS[2], SET[0], SET[1]];
pub(crate) const ACCESS: &[FieldDescription] = &[must("classes", FieldKind::List(ONE_CLASS), ""), STALE];
pub(crate) const ACCESS_SET: &[FieldDescription] =
    &[SUCCESS, CLASS_RIGHTS[0], CLASS_RIGHTS[1], CLASS_RIGHTS[2], SET[0], SET[1]];

const CODE: FieldDescription = must("code", FieldKind::Text(CODE_LENGTH), "");
const EXPIRES: FieldDescription = must("expires", FieldKind::Time, "");
const NOW: FieldDescription = must("timestamp", FieldKind::Time, "");
pub(crate) const PAIR_ASKED: &[FieldDescription] = &[
    may("device_id", DEVICE_ID, "Which device it wants to be. Default: whoever approves it says so."),
    may("name", FieldKind::Text(limits::PAIR_NAME), "What people may know it by."),
];
pub(crate) const PAIR: &[FieldDescription] = &[
    SUCCESS,
    must("code", FieldKind::Text(CODE_LENGTH), "To be shown to people."),
    must("secret", FieldKind::Text(64), "To be kept: it asks with it what became of the code."),
    EXPIRES,
    must("poll_seconds", ANY_COUNT, "How often to ask."),
    NOW,
];
const PAIR_STATUS: FieldDescription =
    must("status", FieldKind::Word(&["waiting", "approved", "refused", "claimed"]), "");
pub(crate) const PAIR_POLL: &[FieldDescription] = &[
    CODE,
    PAIR_STATUS,
    may("device_id", DEVICE_ID, "This and the rest with the token only."),
    may("class", CLASS, ""),
    may("token", WORDS, "The device's own: it is given once."),
    may("expires", FieldKind::Time, "The token's end; it can be renewed until then."),
    NOW,
];
const MAYBE_DEVICE: FieldDescription = must("device_id", FieldKind::OrNull(&DEVICE_ID), "");
const PAIR_ROW: &[FieldDescription] = &[
    CODE,
    PAIR_STATUS,
    MAYBE_DEVICE,
    must("known", FieldKind::Flag, "There is a device of this id already."),
    must("name", FieldKind::Text(limits::PAIR_NAME), ""),
    must("address", FieldKind::Text(limits::ADDRESS), "Where it asks from."),
    must("asked", FieldKind::Time, ""),
    EXPIRES,
    may("class", CLASS, "Once it is approved."),
];
pub(crate) const PAIRINGS: &[FieldDescription] = &[must("pairings", FieldKind::List(PAIR_ROW), "Oldest first."), STALE];
pub(crate) const APPROVE: &[FieldDescription] = &[
    must("class", CLASS, "Not above that of whoever approves."),
    may("device_id", DEVICE_ID, "Which device it is. Default: the one that it asked for."),
];
pub(crate) const PAIR_DECIDED: &[FieldDescription] =
    &[SUCCESS, CODE, PAIR_STATUS, MAYBE_DEVICE, may("class", CLASS, ""), NOW];
pub(crate) const RENEWED: &[FieldDescription] =
    &[SUCCESS, TOKEN_RENEWED[0], TOKEN_RENEWED[1], TOKEN_RENEWED[2], TOKEN_RENEWED[3], TOKEN_RENEWED[4]];

pub(crate) const SUSPENDED: &[FieldDescription] = &[SUCCESS, WHO, must("suspended", FieldKind::Flag, ""), NOW];
pub(crate) const FORGOTTEN: &[FieldDescription] = &[SUCCESS, WHO, NOW];
const CONFIRMED: &[FieldDescription] = &[
    must("changes", ANY_COUNT, "Its changes whose audit rows are kept."),
    may("last_seq", ANY_COUNT, "The newest of them."),
    may("last_timestamp", FieldKind::Time, "When that was committed."),
];
const QUEUE_LAST: &[FieldDescription] = &[
    must("queue", FieldKind::Text(limits::QUEUE_ID), ""),
    must("last", ANY_COUNT, "The `n` of the last entry that was applied."),
    must("used_at", FieldKind::Time, ""),
];
const UNSENT_REPORT: &[FieldDescription] = &[
    may("count", ANY_COUNT, "Changes that it said it had not sent yet; missing: it never said."),
    may("said_at", FieldKind::Time, ""),
    must("queues", FieldKind::List(QUEUE_LAST), "What it has with a greater `n` was not sent."),
];
pub(crate) const DEVICE_REVOKED: &[FieldDescription] = &[
    SUCCESS,
    WHO,
    must("not_before", FieldKind::Time, "Tokens that were issued in this second or before are refused."),
    must("registered", FieldKind::Flag, "The rest is missing if it never was."),
    may("confirmed", FieldKind::Object(CONFIRMED), "What was committed of it."),
    may("cursor", CURSOR, "Up to where it has completed its syncs."),
    may("last_seen", FieldKind::Time, ""),
    may("unsent", FieldKind::Object(UNSENT_REPORT), "What is known of what it had not sent."),
    may("leases", FieldKind::OrNull(&WORDS), "Null: there are none yet."),
    NOW,
];
pub(crate) const ADMISSION: &[FieldDescription] = &[
    WHO,
    must("registered", FieldKind::Flag, ""),
    may("is_active", FieldKind::Flag, ""),
    may("last_seen", FieldKind::Time, ""),
    must("suspended", FieldKind::Flag, ""),
    must(
        "not_before",
        FieldKind::OrNull(&FieldKind::Time),
        "Its tokens that were issued in this second or before are refused. Null: none were taken back.",
    ),
    may("set_by", WORDS, "Who suspended it or took its tokens back last."),
    may("set_at", FieldKind::Time, ""),
    may("rights", FieldKind::Object(&CLASS_RIGHTS), "Of the class that its token had last."),
    STALE,
];

pub(crate) const WITHIN: FieldDescription =
    may("timeout_ms", FieldKind::Size(600_000), "How long it may take. Default: 30000.");
/// `HOST:PORT`.
const ADDRESS: FieldKind = FieldKind::Name(limits::ADDRESS);
pub(crate) const NODE_ASKED: &[FieldDescription] = &[
    must("node", FieldKind::Size(i64::MAX as u64), "Its `node_id`: one that was never used before."),
    must("raft", ADDRESS, "Where the other nodes reach it, `HOST:PORT`."),
    must("gateway", ADDRESS, "Where devices reach it, `HOST:PORT`."),
    WITHIN,
];
pub(crate) const NODE_MOVED: &[FieldDescription] = &[NODE_ASKED[1], NODE_ASKED[2], WITHIN];
pub(crate) const TRANSFER_ASKED: &[FieldDescription] =
    &[must("to", FieldKind::Size(i64::MAX as u64), "The node that is to lead."), WITHIN];
pub(crate) const FINALIZE_ASKED: &[FieldDescription] = &[WITHIN];
pub(crate) const FINALIZED: &[FieldDescription] = &[
    SUCCESS,
    must("cluster_version", ANY_COUNT, "The cluster's version from now on."),
    must("timestamp", FieldKind::Time, ""),
];
pub(crate) const MEMBERS: &[FieldDescription] = &[
    SUCCESS,
    must("node", ANY_COUNT, "The node that was added, moved or removed, or that leads now."),
    must("voters", FieldKind::Counts, "The voters there are now."),
    must("timestamp", FieldKind::Time, ""),
];

pub(crate) const RECORD: &[FieldDescription] =
    &[DATA_RESPONSE[0], DATA_RESPONSE[1], DATA_RESPONSE[2], DATA_RESPONSE[3], DATA_RESPONSE[4], STALE];

pub(crate) const ELECTED: &[FieldDescription] = &[
    SUCCESS,
    MASTER_ELECTED[0],
    MASTER_ELECTED[1],
    MASTER_ELECTED[2],
    MASTER_ELECTED[3],
    MASTER_ELECTED[4],
    MASTER_ELECTED[5],
    MASTER_ELECTED[6],
    INITIATED_BY,
    ELECTED_BY,
];

/// One of the two names what is revoked.
pub(crate) const REVOKE: &[FieldDescription] = &[
    may("token", WORDS, "The token itself."),
    may("jti", WORDS, "Its id, where the token is not at hand."),
    may(
        "expires",
        FieldKind::Time,
        "When the token of that `jti` ends by itself: the revocation may be forgotten then. Default: after 366 days, the longest life of a token.",
    ),
];
pub(crate) const TIME_BACK: &[FieldDescription] =
    &[SUCCESS, must("timestamp", FieldKind::Time, "The time from now on.")];

pub(crate) const REVOKED: &[FieldDescription] =
    &[SUCCESS, must("jti", WORDS, ""), must("timestamp", FieldKind::Time, "")];

const ROW_ID: FieldDescription = must("id", ANY_COUNT, "Of the row in the documented table.");
const AT: FieldDescription = must("at_ms", ANY_COUNT, "");
const CREATED: FieldDescription = must("created_ms", ANY_COUNT, "");
const UPDATED: FieldDescription = must("updated_ms", ANY_COUNT, "");
const NAME: FieldKind = FieldKind::Text(limits::DEVICE_ID);

const DEVICE_ROW: &[FieldDescription] = &[
    ROW_ID,
    WHO,
    must("role", ROLE, ""),
    must("priority", FieldKind::Count(limits::PRIORITY as u64), ""),
    must("last_seen_ms", ANY_COUNT, ""),
    must("is_active", FieldKind::Flag, ""),
    CREATED,
    UPDATED,
];
const SYNC_ROW: &[FieldDescription] = &[
    ROW_ID,
    WHO,
    must("sync_status", SYNC_STATUS, ""),
    must("pending_changes_count", ANY_COUNT, ""),
    must("last_sync_ms", ANY_COUNT, ""),
    must("last_error_message", FieldKind::OrNull(&FieldKind::Text(limits::ERROR_MESSAGE)), ""),
    CREATED,
    UPDATED,
];
const ELECTION_ROW_MS: &[FieldDescription] = &[
    ROW_ID,
    must("previous_master_id", FieldKind::OrNull(&NAME), ""),
    must("new_master_id", NAME, ""),
    must("election_reason", ELECTION_REASON, ""),
    AT,
    must("devices_participating", FieldKind::Count(u32::MAX as u64), ""),
    CREATED,
];
const AUDIT_ROW_MS: &[FieldDescription] = &[
    ROW_ID,
    must("event_type", FieldKind::Text(limits::EVENT_TYPE), ""),
    must("operation", FieldKind::Text(limits::EVENT_TYPE), ""),
    must("error", FieldKind::Flag, "Its `status` is `error`, not `success`."),
    must("device_id", FieldKind::OrNull(&NAME), ""),
    must("details", FieldKind::OrNull(&FieldKind::Text(limits::IMPORT_TEXT)), ""),
    AT,
];
const RECORD_ROW: &[FieldDescription] = &[
    must("table_name", TABLE_NAME, ""),
    must("record_id", FieldKind::RecordId, ""),
    must("version", ANY_COUNT, ""),
    must("data", FieldKind::Data, ""),
    must("device_id", NAME, "Who wrote it last."),
    must("timestamp_ms", ANY_COUNT, ""),
];
const NEXT: FieldDescription = must("next", FieldKind::OrNull(&WORDS), "Ask with it as `after`; null at the end.");

pub(crate) const EXPORT: &[FieldDescription] = &[
    STALE,
    must("applied_ms", ANY_COUNT, "The cluster's time when it was so."),
    must("applied_index", ANY_COUNT, ""),
    must("head_seq", ANY_COUNT, "The newest change."),
    must("compacted_seq", ANY_COUNT, "The newest change that is no longer kept."),
    must("cursor", CURSOR, "The kept changes come after it."),
    must("election_head", ANY_COUNT, ""),
    must("audit_head", ANY_COUNT, ""),
    must("own_elections", ANY_COUNT, "So many rows at the end were written by an import itself, and nothing since."),
    must("own_audits", ANY_COUNT, "The same of the audit log."),
    must("devices", FieldKind::List(DEVICE_ROW), ""),
    must("sync_states", FieldKind::List(SYNC_ROW), ""),
    must("node_devices", FieldKind::Texts(limits::DEVICES as usize, limits::DEVICE_ID), "Those that stand for nodes."),
];
pub(crate) const EXPORT_ELECTIONS: &[FieldDescription] = &[must("rows", FieldKind::List(ELECTION_ROW_MS), ""), NEXT];
pub(crate) const EXPORT_AUDIT: &[FieldDescription] = &[must("rows", FieldKind::List(AUDIT_ROW_MS), ""), NEXT];
pub(crate) const EXPORT_RECORDS: &[FieldDescription] = &[must("rows", FieldKind::List(RECORD_ROW), ""), NEXT];

const IMPORT_DEVICE: &[FieldDescription] = &[
    must("device", FieldKind::Object(DEVICE_ROW), ""),
    must("sync_state", FieldKind::OrNull(&FieldKind::Object(SYNC_ROW)), "Null: it never synced."),
];
pub(crate) const IMPORT_STEP: &[FieldDescription] = &[
    must("import_id", FieldKind::Text(16), "Of the database, in hexadecimal."),
    must("step", FieldKind::Word(&["begin", "rows", "finish"]), ""),
    may("device_rows", ANY_COUNT, "With `begin`: the greatest id in each of the tables."),
    may("sync_rows", ANY_COUNT, ""),
    may("election_rows", ANY_COUNT, ""),
    may("audit_rows", ANY_COUNT, ""),
    may("devices", FieldKind::List(IMPORT_DEVICE), "With `rows`."),
    may("elections", FieldKind::List(ELECTION_ROW_MS), "Newest first, their ids without a gap."),
    may("audits", FieldKind::List(AUDIT_ROW_MS), "The same."),
];
const NOT_TAKEN: &[FieldDescription] = &[must("table_name", WORDS, ""), ROW_ID, must("why", WORDS, "")];
pub(crate) const IMPORTED: &[FieldDescription] =
    &[must("left", FieldKind::List(NOT_TAKEN), "Rows that were not taken.")];

pub(crate) const STATUS: &[FieldDescription] =
    &[must("status", WORDS, ""), more("reason", WORDS, "Why the node is not ready.")];

pub(crate) const PAGE: &[FieldDescription] =
    &[may("limit", FieldKind::Size(limits::PAGE_MAX), "Default: 10."), may("offset", ANY_COUNT, "Default: 0.")];
