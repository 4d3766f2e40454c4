//! The load of a scenario: how many clients of which kind, and what they do how often.

use std::time::Duration;

use serde::Deserialize;
use tillsync::client::link::ClientTransport;

use crate::clients::device::habits::{DeviceHabits, SyncHabits, Turns, WriteHabits};

/// Who uses the cluster, and how. The shares are of a thousand operations; what is left over is listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Workload {
    /// Clients on each transport.
    pub ws: u64,
    pub socketio: u64,
    /// Socket.IO over long polling.
    pub polling: u64,
    /// Records in each table that they meet on.
    pub records: u64,
    /// The longest pause of a client between two operations.
    pub pause_ms: u64,
    pub writes: u64,
    /// Of a hundred writes: how many name the version that they may replace.
    pub conditional_percent: u64,
    pub reads: u64,
    pub syncs: u64,
    pub reconnects: u64,
    /// Orders by hand to be master.
    pub claims: u64,
    /// Inserts under numbers that other clients use as well.
    pub inserts: u64,
    /// Devices that keep no cursor and know times only, and in how many of a hundred turns they write a large record.
    pub timed: u64,
    pub large_percent: u64,
    /// Devices with a durable queue.
    pub queues: u64,
    /// Devices with two sessions, on two nodes.
    pub twins: u64,
    /// Lines of devices, one after the other, that write before anybody knows them.
    pub newcomers: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            ws: 5,
            socketio: 4,
            polling: 1,
            records: 5,
            pause_ms: 25,
            writes: 530,
            conditional_percent: 30,
            reads: 360,
            syncs: 25,
            reconnects: 10,
            claims: 2,
            inserts: 20,
            timed: 2,
            large_percent: 3,
            queues: 1,
            twins: 1,
            newcomers: 1,
        }
    }
}

impl Workload {
    pub(super) fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) {
                Ok(())
            } else {
                Err(format!("load.{name}: must be {from} to {to}, not {value}"))
            }
        };
        within("ws", self.ws, 0, 500)?;
        within("socketio", self.socketio, 0, 500)?;
        within("polling", self.polling, 0, 500)?;
        if self.ws + self.socketio + self.polling == 0 {
            return Err("load.ws: no client at all, and load.socketio and load.polling neither".into());
        }
        let kinds =
            [("timed", self.timed), ("queues", self.queues), ("twins", self.twins), ("newcomers", self.newcomers)];
        for (name, count) in kinds {
            within(name, count, 0, 20)?;
        }
        within("records", self.records, 1, 100_000)?;
        within("pause_ms", self.pause_ms, 0, 10_000)?;
        within("conditional_percent", self.conditional_percent, 0, 100)?;
        within("large_percent", self.large_percent, 0, 100)?;
        let shares = [
            ("writes", self.writes),
            ("reads", self.reads),
            ("syncs", self.syncs),
            ("reconnects", self.reconnects),
            ("claims", self.claims),
            ("inserts", self.inserts),
        ];
        for (name, share) in shares {
            within(name, share, 0, 1_000)?;
        }
        within(
            "writes, reads, syncs, reconnects, claims and inserts together",
            shares.iter().map(|s| s.1).sum(),
            1,
            1_000,
        )
    }

    /// The devices that keep a cursor, and the transport of each.
    pub(super) fn devices(&self) -> impl Iterator<Item = (String, ClientTransport)> + use<> {
        let counts = [
            (ClientTransport::Ws, self.ws),
            (ClientTransport::Socketio, self.socketio),
            (ClientTransport::SocketioPolling, self.polling),
        ];
        let transports = counts.into_iter().flat_map(|(transport, count)| (0..count).map(move |_| transport));
        (1..).zip(transports).map(|(number, transport): (u64, _)| (format!("till-{number}"), transport))
    }

    /// What those devices do how often.
    pub(super) fn habits(&self) -> DeviceHabits {
        DeviceHabits {
            records: self.records,
            pause_ms: self.pause_ms,
            turns: Turns {
                writes: self.writes,
                inserts: self.inserts,
                reads: self.reads,
                syncs: self.syncs,
                reconnects: self.reconnects,
                claims: self.claims,
                ..Turns::default()
            },
            writes: WriteHabits {
                inserts: 0,
                conditional: self.conditional_percent,
                removed_table: 0,
                deletes: 0,
                name_the_request: true,
            },
            syncs: SyncHabits { full: 3, from_the_beginning: 1, before_the_cursor: 700 },
            // A node that was refused its lead refuses all: the load has to come back as soon as it can.
            refused: Duration::ZERO,
        }
    }
}
