//! The one table of endpoints.

use std::sync::Arc;

use axum::routing::{MethodRouter, delete, get, post, put};

use super::{Content, Endpoint, FORBIDDEN, Needs};
use crate::gateway::Gateway;
use crate::gateway::http::rest::{
    access, backup, bodies as b, changes, conflicts, data, devices, history, keep_out, logs, members, pairing,
    prometheus, sync, system, time_back, tokens, transfer,
};
use crate::gateway::protocol::payloads::ELECTION;
use crate::gateway::protocol::schema::{
    ANY_COUNT, CURSOR, DEVICE_ID, FieldDescription, FieldKind, TABLE_NAME, WORDS, may, more,
};
use crate::gateway::spec::page;
use crate::gateway::transport::websocket;
use crate::limits;
use crate::model::error::Code;

const NONE: &[(u16, Code)] = &[];
/// The node cannot be reached; what is asked for cannot be done, or not yet.
const CHANGE_REFUSED: &[(u16, Code)] = &[FORBIDDEN, (409, Code::RoleChange), (502, Code::PeerUnreachable)];
const KEEP_OUT_REFUSED: &[(u16, Code)] = &[FORBIDDEN, (503, Code::Unavailable)];
const DECIDE_REFUSED: &[(u16, Code)] = &[FORBIDDEN, UNKNOWN, (409, Code::RoleChange)];
/// 5003: too many ask, or too often.
const PAIR_REFUSED: &[(u16, Code)] = &[
    FORBIDDEN,
    UNKNOWN,
    (400, Code::Registration),
    (409, Code::RoleChange),
    (500, Code::Storage),
    (500, Code::Internal),
    (503, Code::NoMaster),
    (503, Code::Unavailable),
    (504, Code::Timeout),
];
const UNKNOWN: (u16, Code) = (404, Code::NotRegistered);

const WITHIN: &[FieldDescription] = &[b::WITHIN];
const AUDIT_QUERY: &[FieldDescription] = &[
    b::PAGE[0],
    b::PAGE[1],
    may("device_id", FieldKind::Text(limits::DEVICE_ID), ""),
    may("event_type", WORDS, ""),
    may("start_date", FieldKind::Time, "Inclusive. Any ISO 8601 time, or a date."),
    may("end_date", FieldKind::Time, "Inclusive; a date means the whole day."),
    BEFORE_ID,
    b::STALE_QUERY,
];
const CHANGES_QUERY: &[FieldDescription] = &[
    may("cursor", CURSOR, "Of an earlier answer. Default: from the beginning."),
    may("tables", WORDS, "Names with commas between them. Default: all."),
    b::PAGE[0],
    b::STALE_QUERY,
];
const STALE_QUERY: &[FieldDescription] = &[b::STALE_QUERY];
const ELECTIONS_QUERY: &[FieldDescription] = &[b::PAGE[0], b::PAGE[1], BEFORE_ID, b::STALE_QUERY];
const BEFORE_ID: FieldDescription = more(
    "before_id",
    FieldKind::Size(i64::MAX as u64),
    "Only rows with smaller ids; `total` counts those. The `id` of a page's last row gives the next page, each row \
     once. With `offset`, rows that are written meanwhile make the next page repeat some.",
);
const NETWORK_QUERY: &[FieldDescription] =
    &[more("node", FieldKind::Size(i64::MAX as u64), "Whether this node reaches that one: if not, 1002.")];
const EXPORT_QUERY: &[FieldDescription] = &[
    may("after", ANY_COUNT, "The `next` of an earlier answer."),
    may("to", ANY_COUNT, "The head as of the moment that is exported. Default: all."),
    may("limit", FieldKind::Size(limits::PAGE_MAX), "Default: 1000."),
    b::STALE_QUERY,
];
const ENTRIES_QUERY: &[FieldDescription] = &[
    more(
        "after",
        ANY_COUNT,
        "The last entry of the log that the backup, or what came after it before, has. Default: 0.",
    ),
    b::STALE_QUERY,
];
const CONFLICTS_QUERY: &[FieldDescription] = &[
    b::PAGE[0],
    b::PAGE[1],
    may("device_id", DEVICE_ID, ""),
    may("table_name", TABLE_NAME, ""),
    b::CONFLICT_STATUS,
    b::STALE_QUERY,
];
const DEVICES_QUERY: &[FieldDescription] = &[
    more("limit", FieldKind::Size(limits::PAGE_MAX), "At most so many, by id. Without it, `offset` and `after`: all."),
    more("offset", ANY_COUNT, "So many are passed over."),
    more("after", DEVICE_ID, "Only those after this id: the `next_after` of the page before."),
    b::STALE_QUERY,
];
const HISTORY_QUERY: &[FieldDescription] =
    &[b::PAGE[0], may("before", WORDS, "A version, or the `before` of the page before."), b::STALE_QUERY];

/// An endpoint of the document that needs a quorum.
const fn documented(
    method: &'static str,
    path: &'static str,
    group: &'static str,
    about: &'static str,
    answers: &'static [(u16, Content)],
    handler: fn() -> MethodRouter<Arc<Gateway>>,
) -> Endpoint {
    let (needs, query, body, refuses) = (Needs::Quorum, &[], None, NONE);
    Endpoint { method, path, group, about, documented: true, needs, query, body, answers, refuses, handler }
}

const fn extension(
    method: &'static str,
    path: &'static str,
    group: &'static str,
    about: &'static str,
    answers: &'static [(u16, Content)],
    handler: fn() -> MethodRouter<Arc<Gateway>>,
) -> Endpoint {
    Endpoint { documented: false, ..documented(method, path, group, about, answers, handler) }
}

const fn public(
    path: &'static str,
    about: &'static str,
    answers: &'static [(u16, Content)],
    handler: fn() -> MethodRouter<Arc<Gateway>>,
) -> Endpoint {
    Endpoint { needs: Needs::Nothing, ..extension("GET", path, "Node", about, answers, handler) }
}

/// Every endpoint, in the document's order, then ours.
pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        body: Some(b::REGISTER),
        refuses: &[(400, Code::Registration), FORBIDDEN],
        ..documented(
            "POST",
            "/device/register",
            "Devices",
            "Registers a device.",
            &[(200, Content::Json(b::REGISTERED))],
            || post(devices::register),
        )
    },
    Endpoint {
        query: DEVICES_QUERY,
        ..documented("GET", "/device/roles", "Devices", "All devices.", &[(200, Content::Json(b::DEVICES))], || {
            get(devices::list)
        })
    },
    Endpoint {
        query: STALE_QUERY,
        refuses: &[UNKNOWN],
        ..documented(
            "GET",
            "/device/roles/{device_id}",
            "Devices",
            "One device.",
            &[(200, Content::Json(b::DEVICE))],
            || get(devices::one),
        )
    },
    Endpoint {
        body: Some(b::ROLE_ASKED),
        refuses: &[
            (400, Code::RoleChange),
            FORBIDDEN,
            UNKNOWN,
            (409, Code::RoleChange),
            (409, Code::DeviceOffline),
            (503, Code::Election),
        ],
        ..documented(
            "PUT",
            "/device/roles/{device_id}",
            "Devices",
            "Changes a device's role. `master` is an order when an admin or a manager gives it: it wins whatever the \
             priorities. What a device asks for itself obeys the rank, and may be asked so many times a minute.",
            &[(200, Content::Json(b::ROLE_CHANGED))],
            || put(devices::change_role),
        )
    },
    Endpoint {
        query: STALE_QUERY,
        refuses: &[UNKNOWN],
        ..documented(
            "GET",
            "/sync/state/{device_id}",
            "Sync",
            "How far a device has come.",
            &[(200, Content::Json(b::SYNC_STATE))],
            || get(sync::state),
        )
    },
    Endpoint {
        body: Some(b::SYNC_STATE_ASKED),
        refuses: &[FORBIDDEN, UNKNOWN],
        ..documented(
            "PUT",
            "/sync/state/{device_id}",
            "Sync",
            "Sets a device's sync state.",
            &[(200, Content::Json(b::SYNC_STATE_SET))],
            || put(sync::put_state),
        )
    },
    Endpoint {
        query: ELECTIONS_QUERY,
        ..documented(
            "GET",
            "/sync/master-election-logs",
            "Logs",
            "Every election.",
            &[(200, Content::Json(b::ELECTIONS))],
            || get(logs::elections),
        )
    },
    Endpoint {
        query: AUDIT_QUERY,
        ..documented(
            "GET",
            "/sync/audit-logs",
            "Logs",
            "What was done, by whom.",
            &[(200, Content::Json(b::AUDIT))],
            || get(logs::audit),
        )
    },
    Endpoint {
        needs: Needs::Token,
        ..documented(
            "GET",
            "/system/health",
            "System",
            "The cluster's health.",
            &[(200, Content::Json(b::HEALTH))],
            || get(system::health),
        )
    },
    Endpoint {
        needs: Needs::Token,
        query: NETWORK_QUERY,
        refuses: &[(502, Code::PeerUnreachable)],
        ..documented(
            "GET",
            "/system/network",
            "System",
            "The cluster's network.",
            &[(200, Content::Json(b::NETWORK))],
            || get(system::network),
        )
    },
    Endpoint {
        query: CHANGES_QUERY,
        refuses: &[(409, Code::BadCursor)],
        ..extension(
            "GET",
            "/sync/changes",
            "Sync",
            "The change feed after a cursor. With `Accept: text/event-stream` it goes on with what is committed, as events \
             `data_update`, each with its cursor as `id`; an event `access_changed` tells what the token's class may do \
             from now on, and which tables to `forget`.",
            &[(200, Content::Feed(b::CHANGES))],
            || get(changes::feed),
        )
    },
    Endpoint {
        query: CONFLICTS_QUERY,
        ..extension(
            "GET",
            "/sync/conflicts",
            "Conflicts",
            "Conflicts: those that wait for a decision, or what lost in those that are decided.",
            &[(200, Content::Json(b::CONFLICTS))],
            || get(conflicts::list),
        )
    },
    Endpoint {
        body: Some(b::RESOLVE_ASKED),
        refuses: &[FORBIDDEN, UNKNOWN, (409, Code::Conflict)],
        ..extension(
            "POST",
            "/sync/conflicts/{id}/resolve",
            "Conflicts",
            "Decides a conflict.",
            &[(200, Content::Json(b::RESOLVED))],
            || post(conflicts::resolve),
        )
    },
    Endpoint {
        query: STALE_QUERY,
        ..extension(
            "GET",
            "/sync/policies",
            "Conflicts",
            "How conflicts are decided, in every table.",
            &[(200, Content::Json(b::POLICIES))],
            || get(conflicts::policies),
        )
    },
    Endpoint {
        refuses: &[FORBIDDEN],
        query: STALE_QUERY,
        ..extension(
            "GET",
            "/sync/policies/{table}",
            "Conflicts",
            "How conflicts in a table are decided; defaults included.",
            &[(200, Content::Json(b::TABLE_POLICY))],
            || get(conflicts::policy_of_table),
        )
    },
    Endpoint {
        body: Some(b::POLICY_ASKED),
        refuses: &[FORBIDDEN],
        ..extension(
            "PUT",
            "/sync/policies/{table}",
            "Conflicts",
            "How conflicts in a table are decided.",
            &[(200, Content::Json(b::POLICY))],
            || put(conflicts::put_policy),
        )
    },
    Endpoint {
        refuses: &[FORBIDDEN],
        query: STALE_QUERY,
        ..extension(
            "GET",
            "/data/{table}/{record_id}",
            "Records",
            "A record.",
            &[(200, Content::Json(b::RECORD))],
            || get(data::read),
        )
    },
    Endpoint {
        refuses: &[FORBIDDEN],
        query: HISTORY_QUERY,
        ..extension(
            "GET",
            "/data/{table}/{record_id}/history",
            "Records",
            "What a record was: its changes that are kept, and its conflicts with what lost in them. Newest first.",
            &[(200, Content::Json(b::HISTORY))],
            || get(history::read),
        )
    },
    Endpoint {
        body: Some(b::WRITE),
        refuses: &[FORBIDDEN, UNKNOWN, (409, Code::Conflict)],
        ..extension(
            "POST",
            "/data/{table}/{record_id}",
            "Records",
            "Changes a record: a `data_update` without a socket.",
            &[(200, Content::Json(b::WRITTEN))],
            || post(data::write),
        )
    },
    Endpoint {
        query: STALE_QUERY,
        ..extension(
            "GET",
            "/access",
            "Access",
            "What tokens of each class may do with tables. Admins and managers see all classes, others their own.",
            &[(200, Content::Json(b::ACCESS))],
            || get(access::list),
        )
    },
    Endpoint {
        body: Some(b::ACCESS_ASKED),
        refuses: &[FORBIDDEN],
        ..extension(
            "PUT",
            "/access/{class}",
            "Access",
            "What tokens of a class may do with tables, in place of what was set before. Every session of the class is told.",
            &[(200, Content::Json(b::ACCESS_SET))],
            || put(access::put),
        )
    },
    Endpoint {
        refuses: &[FORBIDDEN, (404, Code::InvalidData), (409, Code::Conflict)],
        ..extension(
            "DELETE",
            "/data/{table}",
            "Records",
            "Removes a table: its open conflicts are closed and its records deleted, which every session hears of as \
             changes; then its name is free. Meanwhile nothing is written to it.",
            &[(200, Content::Json(b::TABLE_REMOVED))],
            || delete(data::remove_table),
        )
    },
    Endpoint {
        needs: Needs::Token,
        ..extension(
            "GET",
            "/system/cluster",
            "System",
            "This node's view of the cluster.",
            &[(200, Content::Json(b::CLUSTER))],
            || get(system::cluster),
        )
    },
    Endpoint {
        body: Some(b::NODE_ASKED),
        refuses: CHANGE_REFUSED,
        ..extension(
            "POST",
            "/system/cluster/nodes",
            "System",
            "Adds a node that runs and waits to join; it gets its vote when it has caught up.",
            &[(200, Content::Json(b::MEMBERS))],
            || post(members::add),
        )
    },
    Endpoint {
        body: Some(b::NODE_MOVED),
        refuses: CHANGE_REFUSED,
        ..extension(
            "PUT",
            "/system/cluster/nodes/{id}",
            "System",
            "Gives a node other addresses, at which it answers already.",
            &[(200, Content::Json(b::MEMBERS))],
            || put(members::relocate),
        )
    },
    Endpoint {
        query: WITHIN,
        refuses: CHANGE_REFUSED,
        ..extension(
            "DELETE",
            "/system/cluster/nodes/{id}",
            "System",
            "Removes a node for good, alive or dead: its id is never used again.",
            &[(200, Content::Json(b::MEMBERS))],
            || delete(members::remove),
        )
    },
    Endpoint {
        body: Some(b::TRANSFER_ASKED),
        refuses: CHANGE_REFUSED,
        ..extension(
            "POST",
            "/system/cluster/transfer",
            "System",
            "Hands leadership to another node, and the master's role to a device that is connected there.",
            &[(200, Content::Json(b::MEMBERS))],
            || post(members::transfer),
        )
    },
    Endpoint {
        body: Some(b::FINALIZE_ASKED),
        refuses: CHANGE_REFUSED,
        ..extension(
            "POST",
            "/system/cluster/finalize",
            "System",
            "Raises the cluster's version to the newest that the programs of all nodes know; none can go back to one that \
             does not.",
            &[(200, Content::Json(b::FINALIZED))],
            || post(members::finalize),
        )
    },
    Endpoint {
        body: Some(ELECTION),
        refuses: &[(400, Code::Election), FORBIDDEN, (409, Code::RoleChange), (503, Code::Election)],
        ..extension(
            "POST",
            "/system/election",
            "System",
            "Elects a master.",
            &[(200, Content::Json(b::ELECTED))],
            || post(system::elect),
        )
    },
    Endpoint {
        refuses: &[FORBIDDEN, (409, Code::Conflict)],
        ..extension(
            "POST",
            "/system/time/back",
            "System",
            "Brings the cluster's time back to that of the clocks, where a wrong clock took it ahead.",
            &[(200, Content::Json(b::TIME_BACK))],
            || post(time_back::back),
        )
    },
    Endpoint {
        body: Some(b::REVOKE),
        refuses: &[FORBIDDEN],
        ..extension(
            "POST",
            "/system/tokens/revoke",
            "System",
            "Takes a token back; its live sessions end on every node.",
            &[(200, Content::Json(b::REVOKED))],
            || post(tokens::revoke),
        )
    },
    Endpoint {
        refuses: KEEP_OUT_REFUSED,
        ..extension(
            "POST",
            "/device/{device_id}/suspend",
            "Devices",
            "A device may do nothing until it is resumed; its sessions end.",
            &[(200, Content::Json(b::SUSPENDED))],
            || post(keep_out::suspend),
        )
    },
    Endpoint {
        refuses: KEEP_OUT_REFUSED,
        ..extension(
            "POST",
            "/device/{device_id}/resume",
            "Devices",
            "A suspended device may come back.",
            &[(200, Content::Json(b::SUSPENDED))],
            || post(keep_out::resume),
        )
    },
    Endpoint {
        refuses: KEEP_OUT_REFUSED,
        ..extension(
            "POST",
            "/device/{device_id}/revoke",
            "Devices",
            "Takes back every token of a device that was issued until now; its sessions end on every node. Says what came of it.",
            &[(200, Content::Json(b::DEVICE_REVOKED))],
            || post(keep_out::revoke),
        )
    },
    Endpoint {
        refuses: &[FORBIDDEN, UNKNOWN, (409, Code::RoleChange), (409, Code::Conflict)],
        ..extension(
            "DELETE",
            "/device/{device_id}",
            "Devices",
            "Forgets a device that is offline, to make room. What it wrote stays; the ids of its queues are refused from then on.",
            &[(200, Content::Json(b::FORGOTTEN))],
            || delete(keep_out::forget),
        )
    },
    Endpoint {
        query: STALE_QUERY,
        refuses: &[FORBIDDEN],
        ..extension(
            "GET",
            "/device/{device_id}/admission",
            "Devices",
            "Whether a device is let in, and what it may do.",
            &[(200, Content::Json(b::ADMISSION))],
            || get(keep_out::admission),
        )
    },
    Endpoint {
        needs: Needs::Nothing,
        body: Some(b::PAIR_ASKED),
        refuses: PAIR_REFUSED,
        ..extension(
            "POST",
            "/device/pair",
            "Pairing",
            "A device without a token asks to be let in: it shows the code, and asks with the secret what became of it.",
            &[(200, Content::Json(b::PAIR))],
            || post(pairing::ask),
        )
    },
    Endpoint {
        needs: Needs::Nothing,
        refuses: PAIR_REFUSED,
        ..extension(
            "GET",
            "/device/pair/{code}",
            "Pairing",
            "What became of a code; with the secret as `Authorization: Bearer`. Once approved, the token: one time.",
            &[(200, Content::Json(b::PAIR_POLL))],
            || get(pairing::poll),
        )
    },
    Endpoint {
        query: STALE_QUERY,
        refuses: &[FORBIDDEN],
        ..extension(
            "GET",
            "/device/pairings",
            "Pairing",
            "Devices that ask to be let in, and from where.",
            &[(200, Content::Json(b::PAIRINGS))],
            || get(pairing::list),
        )
    },
    Endpoint {
        body: Some(b::APPROVE),
        refuses: DECIDE_REFUSED,
        ..extension(
            "POST",
            "/device/pairings/{code}/approve",
            "Pairing",
            "Lets the device with this code in: it gets a token of the class.",
            &[(200, Content::Json(b::PAIR_DECIDED))],
            || post(pairing::approve),
        )
    },
    Endpoint {
        refuses: DECIDE_REFUSED,
        ..extension(
            "POST",
            "/device/pairings/{code}/refuse",
            "Pairing",
            "Turns the device with this code away.",
            &[(200, Content::Json(b::PAIR_DECIDED))],
            || post(pairing::refuse),
        )
    },
    extension(
        "POST",
        "/token/renew",
        "Pairing",
        "A token of the same device and class in place of the one that is sent, while that one is good.",
        &[(200, Content::Json(b::RENEWED))],
        || post(pairing::renew),
    ),
    Endpoint {
        query: STALE_QUERY,
        refuses: &[FORBIDDEN],
        ..extension(
            "GET",
            "/system/backup",
            "Transfer",
            "Everything that the cluster keeps, as of one moment: the file that `tillsync restore` takes. One at a time.",
            &[(200, Content::Bytes)],
            || get(backup::take),
        )
    },
    Endpoint {
        query: ENTRIES_QUERY,
        refuses: &[FORBIDDEN],
        ..extension(
            "GET",
            "/system/backup/entries",
            "Transfer",
            "What came after a backup: entries of the log, for `tillsync restore --at`.",
            &[(200, Content::Bytes)],
            || get(backup::take_entries),
        )
    },
    Endpoint {
        query: STALE_QUERY,
        refuses: &[FORBIDDEN],
        ..extension(
            "GET",
            "/system/export",
            "Transfer",
            "Devices, sync states and the heads of the logs, as of one moment. Times are Unix milliseconds; 0: none.",
            &[(200, Content::Json(b::EXPORT))],
            || get(transfer::snapshot),
        )
    },
    Endpoint {
        query: EXPORT_QUERY,
        refuses: &[FORBIDDEN],
        ..extension(
            "GET",
            "/system/export/elections",
            "Transfer",
            "The election log, oldest first.",
            &[(200, Content::Json(b::EXPORT_ELECTIONS))],
            || get(transfer::elections),
        )
    },
    Endpoint {
        query: EXPORT_QUERY,
        refuses: &[FORBIDDEN],
        ..extension(
            "GET",
            "/system/export/audit",
            "Transfer",
            "The audit log, oldest first.",
            &[(200, Content::Json(b::EXPORT_AUDIT))],
            || get(transfer::audit),
        )
    },
    Endpoint {
        query: &[may("after", WORDS, "The `next` of an earlier answer."), EXPORT_QUERY[2], EXPORT_QUERY[3]],
        refuses: &[FORBIDDEN],
        ..extension(
            "GET",
            "/system/export/records",
            "Transfer",
            "The records that exist, as they are now.",
            &[(200, Content::Json(b::EXPORT_RECORDS))],
            || get(transfer::records),
        )
    },
    Endpoint {
        query: CHANGES_QUERY,
        refuses: &[FORBIDDEN, (409, Code::BadCursor)],
        ..extension(
            "GET",
            "/system/export/changes",
            "Transfer",
            "The changes that are kept, as `GET /sync/changes` has them; but whoever exports is not there as a device.",
            &[(200, Content::Json(b::CHANGES))],
            || get(transfer::changes),
        )
    },
    Endpoint {
        body: Some(b::IMPORT_STEP),
        refuses: &[FORBIDDEN, (409, Code::Conflict)],
        ..extension(
            "POST",
            "/system/import",
            "Transfer",
            "A step of taking over a database: `begin`, then `rows` as often as needed, then `finish`. A step may be \
             sent twice.",
            &[(200, Content::Json(b::IMPORTED))],
            || post(transfer::import),
        )
    },
    Endpoint {
        needs: Needs::Token,
        query: &[may("token", WORDS, "For browsers, which cannot send a header.")],
        refuses: &[
            (400, Code::SocketClosed),
            (426, Code::SocketClosed),
            (503, Code::SocketClosed),
            (503, Code::Unavailable),
        ],
        ..extension(
            "GET",
            "/ws",
            "Sockets",
            "The WebSocket for events; /asyncapi.json describes them.",
            &[(101, Content::Upgrade)],
            || get(websocket::upgrade),
        )
    },
    Endpoint {
        needs: Needs::Token,
        ..extension(
            "GET",
            "/metrics",
            "Node",
            "What this node counts, in Prometheus' text form.",
            &[(200, Content::Text)],
            || get(prometheus::metrics),
        )
    },
    public("/healthz", "The process answers.", &[(200, Content::Json(b::STATUS))], || get(system::alive)),
    public(
        "/readyz",
        "The node can serve: it has a quorum and has caught up, its clock is right, and it is not shutting down.",
        &[(200, Content::Json(b::STATUS)), (503, Content::Json(b::STATUS))],
        || get(system::ready),
    ),
    public("/console", "The cluster, its devices and its events, to look at.", &[(200, Content::Page)], || {
        get(page::console)
    }),
    public("/openapi.json", "This description.", &[(200, Content::Document)], || get(page::openapi)),
    public("/asyncapi.json", "The events, as AsyncAPI.", &[(200, Content::Document)], || get(page::asyncapi)),
    public("/docs", "Where to read on.", &[(200, Content::Page)], || get(page::index)),
    public("/docs/rest", "The endpoints, to read.", &[(200, Content::Page)], || get(page::rest)),
    public("/docs/events", "The events, to read.", &[(200, Content::Page)], || get(page::events)),
];
