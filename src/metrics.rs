//! What a node counts, for `GET /metrics` in Prometheus' text form: one process, one node, so the counters are statics.
//! Counting is an atomic addition; everything else is made when somebody asks.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Commands that this node's clients and background tasks gave to the cluster.
pub(crate) static PROPOSED: Counter = Counter::new();
/// Commands that this node has applied, whoever proposed them.
pub(crate) static APPLIED: Counter = Counter::new();
/// Events handed out to sessions: each once, and once a session.
pub(crate) static BROADCASTS: Counter = Counter::new();
pub(crate) static DELIVERIES: Counter = Counter::new();
/// Calls of other nodes that were turned away: no members, or in another one's name.
pub(crate) static PEERS_REFUSED: Counter = Counter::new();
/// Log lines that could not be written.
pub(crate) static LOG_LINES_DROPPED: Counter = Counter::new();
/// Flushes of the storage engine to the disk.
pub(crate) static FLUSHES: Histogram = Histogram::new();
/// Tokens that were refused at the door: missing, wrong, revoked or expired.
pub(crate) static REFUSED_TOKENS: Counter = Counter::new();
pub(crate) static ERRORS: Errors = Errors::new();

/// Upper bounds in microseconds.
const BOUNDS: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];

/// How long something took.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    micros: Counter,
}

impl Histogram {
    const fn new() -> Self {
        Self { buckets: [const { Counter::new() }; BOUNDS.len() + 1], micros: Counter::new() }
    }

    pub(crate) fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS.partition_point(|bound| *bound < micros)].add(1);
        self.micros.add(micros);
    }

    /// Appends its lines; buckets count everything up to their bound.
    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut count = 0;
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            count += bucket.get();
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {count}", Duration::from_micros(bound).as_secs_f64());
        }
        count += self.buckets[BOUNDS.len()].get();
        let sum = Duration::from_micros(self.micros.get()).as_secs_f64();
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }
}

/// The door at which an error was given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ErrorDoor {
    Http,
    WebSocket,
    SocketIo,
}

const DOORS: [(ErrorDoor, &str); 3] =
    [(ErrorDoor::Http, "http"), (ErrorDoor::WebSocket, "websocket"), (ErrorDoor::SocketIo, "socketio")];
/// Codes are 1001 to 5005: five groups of at most five.
const GROUP: usize = 5;

/// Errors given to clients, by door and documented code.
#[derive(Debug)]
pub(crate) struct Errors([[Counter; GROUP * GROUP]; DOORS.len()]);

impl Errors {
    const fn new() -> Self {
        Self([const { [const { Counter::new() }; GROUP * GROUP] }; DOORS.len()])
    }

    pub(crate) fn count(&self, door: ErrorDoor, code: u32) {
        let (group, number) = ((code / 1_000) as usize, (code % 1_000) as usize);
        let place = group.wrapping_sub(1).wrapping_mul(GROUP).wrapping_add(number.wrapping_sub(1));
        if let Some(counter) = self.0[door as usize].get(place).filter(|_| number <= GROUP) {
            counter.add(1);
        }
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "counter", help);
        for (door, words) in DOORS {
            for (place, counter) in self.0[door as usize].iter().enumerate().filter(|(_, c)| c.get() > 0) {
                let code = (place / GROUP + 1) * 1_000 + place % GROUP + 1;
                let _ = writeln!(out, "{name}{{door=\"{words}\",code=\"{code}\"}} {}", counter.get());
            }
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A number as of now. `labels`: as in the text, braces included, or nothing.
pub(crate) fn gauge(out: &mut String, name: &str, help: &str, rows: &[(&str, &dyn Display)]) {
    head(out, name, "gauge", help);
    for (labels, value) in rows {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

/// A number that only grows and is counted elsewhere.
pub(crate) fn counter(out: &mut String, name: &str, help: &str, value: u64) {
    head(out, name, "counter", help);
    let _ = writeln!(out, "{name} {value}");
}

/// Everything that is counted here.
pub(crate) fn counted(out: &mut String) {
    for (name, count, help) in [
        ("tillsync_commands_proposed_total", &PROPOSED, "Commands that this node gave to the cluster."),
        (
            "tillsync_peer_calls_refused_total",
            &PEERS_REFUSED,
            "Calls of nodes that are not members, or in the name of others.",
        ),
        ("tillsync_commands_applied_total", &APPLIED, "Commands that this node has applied."),
        ("tillsync_broadcasts_total", &BROADCASTS, "Events handed out to the sessions of this node."),
        ("tillsync_deliveries_total", &DELIVERIES, "The same, once for each session."),
        ("tillsync_log_lines_dropped_total", &LOG_LINES_DROPPED, "Lines of this node's log that could not be written."),
        ("tillsync_refused_tokens_total", &REFUSED_TOKENS, "Requests and connections refused for their token."),
    ] {
        counter(out, name, help, count.get());
    }
    FLUSHES.write(out, "tillsync_flush_seconds", "Flushes of the storage engine to the disk.");
    ERRORS.write(out, "tillsync_errors_total", "Errors given to clients, by door and documented code.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let times = Histogram::new();
        for micros in [50, 51, 1_000_000, 1_000_001] {
            times.record(Duration::from_micros(micros));
        }
        let mut out = String::new();
        times.write(&mut out, "t", "Help.");
        for line in [
            "# TYPE t histogram",
            "t_bucket{le=\"0.00005\"} 1",
            "t_bucket{le=\"0.0001\"} 2",
            "t_bucket{le=\"0.5\"} 2",
            "t_bucket{le=\"1\"} 3",
            "t_bucket{le=\"+Inf\"} 4",
            "t_sum 2.000102",
            "t_count 4",
        ] {
            assert!(out.lines().any(|l| l == line), "{line} is not in {out}");
        }
    }

    #[test]
    fn every_code_has_its_place() {
        let errors = Errors::new();
        for row in crate::model::error::TABLE {
            errors.count(ErrorDoor::SocketIo, row.code.number());
        }
        // What is no code counts nowhere.
        for code in [0, 1_000, 1_006, 6_001, u32::MAX] {
            errors.count(ErrorDoor::Http, code);
        }
        let mut out = String::new();
        errors.write(&mut out, "e", "Help.");
        for row in crate::model::error::TABLE {
            let line = format!("e{{door=\"socketio\",code=\"{}\"}} 1", row.code);
            assert!(out.lines().any(|l| l == line), "{line} is not in {out}");
        }
        assert_eq!(out.lines().count(), 2 + crate::model::error::TABLE.len());
    }
}
