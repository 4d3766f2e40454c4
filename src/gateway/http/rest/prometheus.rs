//! `GET /metrics`: this node in Prometheus' text form.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use crate::cluster::peers::shared_room::room_said;
use crate::gateway::Gateway;
use crate::gateway::auth::Caller;
use crate::ids::LogIndex;
use crate::metrics::{counted, counter, gauge};

/// What Prometheus calls its text form.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// `GET /metrics`: any token will do, as for every other view of the cluster.
pub(super) async fn metrics(State(gateway): State<Arc<Gateway>>, _: Caller) -> Response {
    let mut out = String::with_capacity(8 << 10);
    let [ws, sio] = gateway.hub.load();
    let by_transport = |out: &mut String, name: &str, help: &str, [ws, sio]: [usize; 2]| {
        gauge(out, name, help, &[("{transport=\"websocket\"}", &ws), ("{transport=\"socketio\"}", &sio)]);
    };
    by_transport(&mut out, "tillsync_sessions", "Live sessions.", [ws.sessions, sio.sessions]);
    by_transport(&mut out, "tillsync_queued_events", "Events in the queues of sessions.", [ws.events, sio.events]);
    by_transport(&mut out, "tillsync_queued_bytes", "Their bytes.", [ws.bytes, sio.bytes]);
    let load = gateway.connections.load();
    gauge(
        &mut out,
        "tillsync_connections",
        "Open connections, by whether a good token was seen on them.",
        &[("{token=\"good\"}", &load.vouched), ("{token=\"none\"}", &load.anonymous)],
    );
    for (name, help, value) in [
        ("tillsync_connections_closed_total", "Connections without a token that had to make room.", load.closed),
        ("tillsync_connections_refused_total", "Connections that found no room.", load.refused),
    ] {
        counter(&mut out, name, help, value);
    }
    let status = gateway.cluster.status();
    let (index, head, compacted, master_term, devices, active) = {
        let state = gateway.cluster.replica().state();
        let meta = state.meta();
        let devices = state.devices().count();
        (
            LogIndex(state.applied().index),
            meta.head_seq,
            meta.compacted_seq,
            meta.master_term(),
            devices,
            state.active_devices(),
        )
    };
    let leads = u8::from(status.leader == Some(gateway.cluster.node_id()));
    let behind = status.last_log_index.ahead_of(index);
    for (name, help, value) in [
        ("tillsync_raft_term", "The term of the Raft group, as this node knows it.", status.term.get()),
        ("tillsync_is_leader", "1 on the node that leads.", leads.into()),
        ("tillsync_has_quorum", "1 if this node is in touch with a quorum.", status.quorum.into()),
        ("tillsync_applied_index", "The newest log entry that is applied.", index.get()),
        ("tillsync_apply_queue_entries", "Entries in the log that are not applied yet.", behind),
        ("tillsync_master_term", "The number of the present master's election.", master_term.get()),
        ("tillsync_changes_head", "The newest change.", head),
        ("tillsync_changes_kept", "Changes that are kept.", head.saturating_sub(compacted)),
        ("tillsync_devices", "Devices ever registered.", devices as u64),
        ("tillsync_devices_active", "Devices that are online.", active as u64),
    ] {
        gauge(&mut out, name, help, &[("", &value)]);
    }
    let nodes = gateway.cluster.nodes();
    let others = nodes.iter().filter(|node| node.node != gateway.cluster.node_id());
    let differing: Vec<_> =
        others.map(|node| (format!("{{node=\"{}\"}}", node.node), u8::from(node.differs_from.is_some()))).collect();
    let rows: Vec<(&str, &dyn std::fmt::Display)> =
        differing.iter().map(|(labels, differs)| (labels.as_str(), differs as &dyn std::fmt::Display)).collect();
    gauge(&mut out, "tillsync_node_differs", "1 for a node that is known to hold other data than this one.", &rows);
    let clocks: Vec<_> = nodes
        .iter()
        .filter_map(|node| Some((format!("{{node=\"{}\"}}", node.node), node.clock_ahead_ms? as f64 / 1_000.0)))
        .collect();
    let rows: Vec<(&str, &dyn std::fmt::Display)> =
        clocks.iter().map(|(labels, ahead)| (labels.as_str(), ahead as &dyn std::fmt::Display)).collect();
    let help = "How far a node's clock is ahead of most nodes'; from 5 s on, either way, it serves nothing.";
    gauge(&mut out, "tillsync_clock_ahead_seconds", help, &rows);
    let objects = u8::from(gateway.cluster.objection().is_some());
    gauge(
        &mut out,
        "tillsync_clock_wrong",
        "1 while this node serves nothing because of its clock.",
        &[("", &objects)],
    );
    let own = nodes.iter().find(|node| node.node == gateway.cluster.node_id());
    if let Some((free, room)) = own.and_then(|node| Some(room_said(node.said.as_ref()?.disk.as_ref()?))) {
        gauge(&mut out, "tillsync_disk_free_bytes", "Bytes that are free on the disk of the data.", &[("", &free)]);
        let help = "0: there is room; 1: less than disk_low_mb; 2: less than disk_min_mb.";
        gauge(&mut out, "tillsync_disk_state", help, &[("", &(room as u8))]);
    }
    if let Some(backup) = own.and_then(|node| node.said.as_ref()?.backup.as_ref()) {
        let seconds = |ms: u64| ms as f64 / 1_000.0;
        for (name, help, value) in [
            (
                "tillsync_backup_covered_timestamp_seconds",
                "What was written until then is in a backup by the schedule, as this node knows; 0: it does not.",
                seconds(backup.covered_ms),
            ),
            (
                "tillsync_backup_proved_timestamp_seconds",
                "When a backup of the schedule was proved to be restorable last, as this node knows; 0: it does not.",
                seconds(backup.proved_ms),
            ),
            (
                "tillsync_backup_failed",
                "1 while this node fails to take the backups, or to prove one.",
                u8::from(!backup.failed.is_empty()).into(),
            ),
            ("tillsync_backup_on_duty", "1 on the node that takes the backups.", u8::from(backup.on_duty).into()),
        ] {
            gauge(&mut out, name, help, &[("", &value)]);
        }
    }
    let held_back = gateway.cluster.room() as u8;
    let help = "0: all is written; 1: bulk loads are refused for the nodes' disks; 2: devices, too, but for deletes.";
    gauge(&mut out, "tillsync_writes_held_back", help, &[("", &held_back)]);
    let refused = u8::from(!status.digests.may_write());
    let help = "1 while nothing may be written here: nodes differ, and no majority tells which is right.";
    gauge(&mut out, "tillsync_undecided", help, &[("", &refused)]);
    counted(&mut out);
    ([(CONTENT_TYPE, TEXT)], out).into_response()
}
