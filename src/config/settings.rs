//! The table of all settings: what each is, how it is written, and what it is by default.

use crate::limits;

/// How the value of a setting is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    Text,
    /// A path; a relative one starts at the working directory.
    Path,
    /// An address to listen on, `IP:PORT`.
    Listen,
    /// A whole number within these bounds.
    Number(u64, u64),
    /// Whole milliseconds within these bounds.
    Milliseconds(u64, u64),
    /// A time such as `90s`, `15m`, `24h` or `7d`, within these bounds in milliseconds; `ms` is a unit as well.
    Span(u64, u64),
    /// A folder, or `s3://BUCKET/PREFIX`; empty: none.
    Place,
    OneOf(&'static [&'static str]),
    /// The path of a file; empty: none.
    File,
    /// In TOML an array of tables `{ id, raft, gateway }`; elsewhere `ID=RAFT/GATEWAY,…`.
    Members,
    /// In TOML an array of `"HOST:PORT"`; elsewhere with commas between them.
    Addresses,
    /// In TOML an array of `"SCHEME://HOST[:PORT]"`; elsewhere with commas between them.
    Origins,
    /// In TOML an array of `"ADDRESS"` or `"ADDRESS/BITS"`; elsewhere with commas between them.
    Networks,
}

/// One setting: `default` is `None` where it must be given.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub key: &'static str,
    pub kind: SettingKind,
    pub default: Option<&'static str>,
    pub about: &'static str,
}

const fn row(key: &'static str, kind: SettingKind, default: Option<&'static str>, about: &'static str) -> Setting {
    Setting { key, kind, default, about }
}

const HOUR: u64 = 3_600_000;

/// Every setting of a node.
pub const SETTINGS: &[Setting] = &[
    row(
        "node_id",
        SettingKind::Number(1, u64::MAX),
        None,
        "This node's number among the members; never used again for another machine.",
    ),
    row("cluster_name", SettingKind::Text, Some("tillsync"), "The cluster's name; nodes of another name are refused."),
    row("data_dir", SettingKind::Path, None, "Where this node keeps its data; one node a folder."),
    row(
        "key_file",
        SettingKind::Path,
        None,
        "The key that signs tokens: one key a line in hexadecimal, the current one first, then perhaps the one before. A running node takes over what changes in it within a second.",
    ),
    row(
        "gateway_listen",
        SettingKind::Listen,
        Some("127.0.0.1:5000"),
        "Where devices connect: REST, Socket.IO and WebSocket.",
    ),
    row(
        "gateway_tls_cert",
        SettingKind::File,
        Some(""),
        "The gateway's certificate and what leads from it to its CA, in PEM; with it the gateway speaks TLS only (https, wss).",
    ),
    row("gateway_tls_key", SettingKind::File, Some(""), "The private key of that certificate."),
    row(
        "cors_origins",
        SettingKind::Origins,
        Some(""),
        "The origins of web pages that may ask this node, with credentials; none: pages of any origin, without. Tokens are never cookies, so a page has only what its reader gives it.",
    ),
    row(
        "raft_listen",
        SettingKind::Listen,
        Some("127.0.0.1:5100"),
        "Where the other nodes connect. Other than on loopback, only with the `raft_tls_` settings.",
    ),
    row(
        "raft_tls_ca",
        SettingKind::File,
        Some(""),
        "The cluster's CA, in PEM (`tillsync certs init`): only nodes with a certificate of it are spoken with.",
    ),
    row("raft_tls_cert", SettingKind::File, Some(""), "This node's certificate (`tillsync certs issue`)."),
    row("raft_tls_key", SettingKind::File, Some(""), "The private key of that certificate."),
    row(
        "members",
        SettingKind::Members,
        Some(""),
        "The nodes that found a new cluster, this one included; the same on each of them. Later changes are made with `tillsync cluster`.",
    ),
    row(
        "join",
        SettingKind::Addresses,
        Some(""),
        "Instead of `members`, for a node that will be added to a cluster: where nodes of that cluster listen for others (their `raft_listen`).",
    ),
    row(
        "raft_heartbeat_ms",
        SettingKind::Milliseconds(5, 60_000),
        Some("50"),
        "How often the leader tells the others that it is there.",
    ),
    row(
        "raft_election_timeout_min_ms",
        SettingKind::Milliseconds(10, 60_000),
        Some("150"),
        "The least silence after which a node may ask to lead. On a disk that takes more than a fifth of it for a flush, five flushes, and at most 3 s.",
    ),
    row(
        "raft_election_timeout_max_ms",
        SettingKind::Milliseconds(10, 60_000),
        Some("300"),
        "The longest such silence; equal on all nodes.",
    ),
    row(
        "master_election_timeout_ms",
        SettingKind::Milliseconds(100, HOUR),
        Some("30000"),
        "How long the election of a master may take before it has failed with 4003.",
    ),
    row(
        "master_election_tries",
        SettingKind::Number(1, 10),
        Some("3"),
        "How often a candidate is tried before the next one is.",
    ),
    row(
        "master_election_backoff_ms",
        SettingKind::Milliseconds(1, 60_000),
        Some("1000"),
        "The pause after a candidate's first try; after each further one it is twice as long.",
    ),
    row(
        "master_election_lag",
        SettingKind::Number(0, 1_000_000_000),
        Some("1000"),
        "How many entries the log of a candidate's node may be behind the leader's.",
    ),
    row("ping_ms", SettingKind::Milliseconds(100, HOUR), Some("2000"), "How often a session is pinged."),
    row("lost_ms", SettingKind::Milliseconds(100, HOUR), Some("6000"), "Silence after which a session is lost."),
    row(
        "grace_ms",
        SettingKind::Milliseconds(0, HOUR),
        Some("2000"),
        "How long a device without a session still counts as online.",
    ),
    row(
        "rest_presence_ms",
        SettingKind::Milliseconds(100, HOUR),
        Some("60000"),
        "How long a device seen only over REST counts as online after its last request.",
    ),
    row(
        "request_timeout_ms",
        SettingKind::Milliseconds(10, HOUR),
        Some("5000"),
        "How long a request waits for a quorum.",
    ),
    row(
        "sessions",
        SettingKind::Number(1, 1_000_000),
        Some("10000"),
        "How many sessions this node holds at the same time.",
    ),
    row(
        "connections",
        SettingKind::Number(0, 10_000_000),
        Some("0"),
        "How many connections devices may hold on this node; 0: twice the `sessions` and 1024. As many as the limit of open files allows beside what the node itself needs, if that is less. Those without a good token give way to newcomers.",
    ),
    row(
        "connections_per_address",
        SettingKind::Number(1, 1_000_000),
        Some("1024"),
        "How many of them may come from one address (of IPv6: its first 64 bits) without a good token; the oldest gives way.",
    ),
    row(
        "trusted_proxies",
        SettingKind::Networks,
        Some(""),
        "Your own proxies, as addresses or as networks (`10.0.0.0/8`): they have no share an address, and the log has the address that they name in X-Forwarded-For.",
    ),
    row(
        "device_rate",
        SettingKind::Number(0, 1_000_000),
        Some("200"),
        "How many requests a second one device (one token's subject) may make on this node, over all its sessions and REST; 0: as many as it likes. Sessions that send more are read more slowly, REST requests are answered with 5003.",
    ),
    row(
        "device_burst",
        SettingKind::Number(1, 1_000_000),
        Some("20000"),
        "How many requests a device may make at once after a pause, as a till does that was offline.",
    ),
    row(
        "device_bytes",
        SettingKind::Number(0, 1_000_000_000),
        Some("1048576"),
        "How many bytes a second one device may send to this node; 0: as many as it likes. An admin's or a manager's token: 20 times as many.",
    ),
    row(
        "device_bytes_burst",
        SettingKind::Number(1_048_576, 4_000_000_000),
        Some("67108864"),
        "How many bytes a device may send at once after a pause.",
    ),
    row(
        "device_read_bytes",
        SettingKind::Number(0, 1_000_000_000),
        Some("4194304"),
        "How many bytes a second one device may read from this node by listings, syncs, streams and what it missed; 0: as many as it likes. Live changes are not counted. Whoever has read more is refused further reads with 5003, its writes go on. An admin's or a manager's token: 20 times as many.",
    ),
    row(
        "device_read_bytes_burst",
        SettingKind::Number(1_048_576, 4_000_000_000),
        Some("536870912"),
        "How many bytes a device may read at once after a pause; an answer or a sync that was begun goes on to its end.",
    ),
    row(
        "critical_rate",
        SettingKind::Number(0, 1_000_000),
        Some("600"),
        "How many critical events a minute one device may send; 0: as many as it likes. An admin's or a manager's token: 20 times as many.",
    ),
    row(
        "report_rate",
        SettingKind::Number(0, 1_000_000),
        Some("600"),
        "How many conflicts and sync errors a minute one device may report; 0: as many as it likes. An admin's or a manager's token: 20 times as many.",
    ),
    row(
        "presence_rate",
        SettingKind::Number(0, 1_000_000),
        Some("600"),
        "How many times a minute one device may come online, go offline or shut down; 0: as often as it likes. An admin's or a manager's token, for its devices: 20 times as often.",
    ),
    row(
        "election_rate",
        SettingKind::Number(0, 1_000_000),
        Some("30"),
        "How many elections and role changes a minute one device may ask for on this node, more are refused with 5003; 0: as many as it likes. An admin's or a manager's token: 20 times as many.",
    ),
    row(
        "privileged_rate",
        SettingKind::Number(0, 10_000_000),
        Some("100000"),
        "How many requests a second an admin's or a manager's token may make on this node, for all the devices that it speaks for; 0: as many as it likes.",
    ),
    row(
        "sessions_per_token",
        SettingKind::Number(1, 1_000_000),
        Some("16"),
        "How many sessions and event streams one device (one token's subject) may have on this node. A manager's token: an eighth of `sessions`; an admin's: all of them.",
    ),
    row(
        "paired_token_hours",
        SettingKind::Number(1, limits::TOKEN_SECONDS / 3_600),
        Some("24"),
        "How long the token of a paired device lives, and at most one that is renewed; the same on all nodes.",
    ),
    row(
        "keep_changes",
        SettingKind::Number(1_000, 1_000_000_000),
        Some("1000000"),
        "How many changes the cluster keeps; the leader's setting counts. Who comes with an older cursor needs a full sync.",
    ),
    row(
        "keep_changes_mb",
        SettingKind::Number(16, 1 << 20),
        Some("512"),
        "How many MiB of changes the cluster keeps: of large ones fewer than `keep_changes`, and their audit rows go with them; the leader's setting counts.",
    ),
    row(
        "keep_audit_rows",
        SettingKind::Number(1_000, 1_000_000_000),
        Some("1000000"),
        "How many rows the audit log keeps; the leader's setting counts. A change is kept at least as long as its row.",
    ),
    row(
        "keep_evidence_rows",
        SettingKind::Number(1_000, 1_000_000_000),
        Some("100000"),
        "How many audit rows of each kind of evidence (rights, tokens and members; changes of masters and roles; conflicts) are kept beyond `keep_audit_rows`; the leader's setting counts.",
    ),
    row(
        "keep_conflicts",
        SettingKind::Number(1_000, 1_000_000_000),
        Some("100000"),
        "How many resolved conflicts stay readable, at most 1 GiB of them; the leader's setting counts. Open ones always stay.",
    ),
    row(
        "keep_elections",
        SettingKind::Number(1_000, 1_000_000_000),
        Some("100000"),
        "How many rows the election log keeps; the leader's setting counts.",
    ),
    row(
        "log_mb",
        SettingKind::Number(1, 1 << 20),
        Some("48"),
        "How many MiB of changes this node keeps in its log, for nodes that were away for a moment; half as much as all records take, if that is more. Who lacks more gets a snapshot.",
    ),
    row(
        "disk_low_mb",
        SettingKind::Number(0, 1 << 30),
        Some("1024"),
        "With less than so many MiB free on the disk of a node's data, that is told, bulk loads are refused with 5003, and half of `keep_changes_mb` and of `log_mb` is kept; 0: never.",
    ),
    row(
        "disk_min_mb",
        SettingKind::Number(0, 1 << 30),
        Some("256"),
        "With less than that free on so many nodes that the others are no majority, devices are refused with 5003, but for deletes; operators get through. At most `disk_low_mb`; 0: never.",
    ),
    row(
        "scrub_every_ms",
        SettingKind::Milliseconds(0, 366 * 24 * HOUR),
        Some("604800000"),
        "How often this node reads all that it keeps while it runs, to find damage before it is needed; 0: never. At most 8 MiB a second. It also does at every start.",
    ),
    row(
        "flush_watchdog_ms",
        SettingKind::Milliseconds(1_000, HOUR),
        Some("30000"),
        "How long a call on the data folder may take before the node ends itself with 5001: a disk that never answers would leave it neither serving nor stopped.",
    ),
    row(
        "backup_to",
        SettingKind::Place,
        Some(""),
        "Where one node of the cluster writes backups by itself: a folder that all nodes share, or a bucket, with the same on all of them. The server of the bucket and its key are in the environment: `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`.",
    ),
    row(
        "backup_every",
        SettingKind::Span(1_000, 366 * 24 * HOUR),
        Some("24h"),
        "How often everything is written to `backup_to`.",
    ),
    row(
        "backup_incremental_every",
        SettingKind::Span(0, 366 * 24 * HOUR),
        Some("1h"),
        "How often what came after is written between those: as much can be lost with all nodes; 0: never.",
    ),
    row(
        "backup_keep",
        SettingKind::Number(1, 100_000),
        Some("14"),
        "How many backups are kept in `backup_to`, with what follows them; older ones are removed.",
    ),
    row(
        "backup_verify_every",
        SettingKind::Span(0, 366 * 24 * HOUR),
        Some("24h"),
        "How often the newest backup, with what follows it, is restored for a moment to prove that it can be; 0: never.",
    ),
    row(
        "backup_scratch",
        SettingKind::File,
        Some(""),
        "The folder for that moment, and for what goes to a bucket; none: `backup-scratch` in `data_dir`. It needs room for four times what a backup has, beside `disk_low_mb`.",
    ),
    row(
        "log_level",
        SettingKind::Text,
        Some("info,openraft=error"),
        "What is logged: off, error, warn, info, debug or trace, or a filter such as `info,tillsync=debug`.",
    ),
    row("log_format", SettingKind::OneOf(&["text", "json"]), Some("text"), "How it is logged."),
];

/// The row of a key.
pub fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.key == key)
}
