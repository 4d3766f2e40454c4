//! Every bound on what a client or a peer can make a node hold, in one place (design, section 11).

use std::time::Duration;

/// A frame of a client: a WebSocket message, a Socket.IO packet, a REST body. Bytes.
pub const FRAME: usize = 1 << 20;
/// A larger frame is read up to here, and refused with the names of what it was; beyond it the connection ends. Bytes.
pub const PACKET_READ: usize = 4 << 20;
/// What one client posted over HTTP polling and was not heard yet; further posts wait. Bytes.
pub const INBOX_BYTES: usize = 4 << 20;
/// A record's `data`. Bytes.
pub const RECORD_DATA: usize = 256 << 10;
/// Nesting of arrays and objects in anything a client sends.
pub const JSON_DEPTH: usize = 32;
/// Different `table_name`s a cluster keeps.
pub const TABLES: u32 = 256;
/// Devices ever registered.
pub const DEVICES: u32 = 100_000;
/// Live sessions on one node.
pub const SESSIONS: usize = 10_000;
/// Events waiting in one session's queue, and their bytes.
pub const SESSION_QUEUE: usize = 1_024;
pub const SESSION_QUEUE_BYTES: usize = 4 << 20;
/// With this share of its queue waiting, a session hears nothing more of its client until some of it is sent.
pub const SESSION_QUEUE_HEARS: usize = 4;
/// Proposals of one session that are not answered yet.
pub const SESSION_INFLIGHT: usize = 64;
/// The same of all sessions of a token's subject on one node, shared among them; each has a few in any case.
pub const TOKEN_INFLIGHT: usize = 16;
pub const TOKEN_INFLIGHT_LEAST: usize = 1;
/// Requests over REST of one subject that are answered at the same time, those of an admin or a manager, and those that
/// wait for their turn, for how long.
pub const REQUESTS_OF_TOKEN: usize = 16;
pub const PRIVILEGED_REQUESTS: usize = 1_024;
pub const REQUESTS_WAITING: usize = 256;
pub const REQUEST_TURN: Duration = Duration::from_secs(5);
/// Defaults of what one subject may ask of a node: requests and bytes a second, and at once after a pause (a till that
/// was offline for days sends what it kept); elections and critical events a minute; sessions and streams.
pub const DEVICE_RATE: u32 = 200;
pub const DEVICE_BURST: u32 = 20_000;
pub const DEVICE_BYTES: u32 = 1 << 20;
pub const DEVICE_BYTES_BURST: u32 = 64 << 20;
pub const ELECTION_RATE: u32 = 30;
pub const CRITICAL_RATE: u32 = 600;
pub const SESSIONS_OF_TOKEN: usize = 16;
/// Requests a second of an admin's or a manager's token, and how many times as many elections and critical events as a
/// device it may ask for.
pub const PRIVILEGED_RATE: u32 = 100_000;
pub const PRIVILEGED_TIMES: u32 = 20;
/// Devices that may speak over one session.
pub const SESSION_DEVICES: usize = 1_024;
/// Rows that the audit log keeps, and changes that the change log keeps, before compaction.
pub const AUDIT_ROWS: u64 = 1_000_000;
pub const CHANGES: u64 = 1_000_000;
/// Audit rows of each kind of evidence that are kept after the rows around them were dropped.
pub const EVIDENCE_ROWS: u64 = 100_000;
/// Resolved conflicts and elections kept before compaction, and the bytes of data in those conflicts.
pub const CONFLICTS: u64 = 100_000;
pub const CONFLICT_BYTES: u64 = 1 << 30;
pub const ELECTIONS: u64 = 100_000;
/// Conflicts that wait for a decision, and their bytes: in all, and of one device. They are in memory.
pub const OPEN_CONFLICTS: usize = 10_000;
pub const OPEN_CONFLICT_BYTES: usize = 64 << 20;
pub const OPEN_CONFLICTS_OF_DEVICE: usize = 1_000;
pub const OPEN_CONFLICT_BYTES_OF_DEVICE: usize = 8 << 20;
/// Open conflicts of one record that a repeated insert is compared with.
pub const OPEN_CONFLICTS_COMPARED: usize = 64;
/// Rows removed by one compaction command.
pub const COMPACT_STEP: u64 = 1_000;

/// TLS handshakes of one port at the same time, and how long each may take.
pub const HANDSHAKES: usize = 1_024;
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// `limit` of a listing: greatest value, and the documented default.
pub const PAGE_MAX: u64 = 1_000;
pub const PAGE_DEFAULT: u64 = 10;
/// A page of a sync: changes, and their bytes as JSON. With what stands around them a page is below 1,000,000 bytes:
/// clients' libraries take no frame above 1 MiB.
pub const SYNC_PAGE: usize = 500;
pub const SYNC_PAGE_BYTES: usize = 1_000_000 - 4_096;
/// Records that may change while a sync is being sent: their versions at its beginning are remembered.
pub const SYNC_MOVED: usize = 200_000;
/// Times of a sync's pages that are remembered, to tell an early `sync_complete`.
pub const SYNC_PAGE_TIMES: usize = 4_096;
/// Syncs and resumes of one session that wait for their turn.
pub const SESSION_JOBS: usize = 1_024;

/// Lengths of names, in bytes (the documented columns are VARCHAR(255), VARCHAR(100)).
pub const DEVICE_ID: usize = 255;
pub const TABLE_NAME: usize = 100;
pub const EVENT_TYPE: usize = 100;
pub const REASON: usize = 255;
pub const REQUEST_ID: usize = 64;
pub const ERROR_MESSAGE: usize = 1_024;
pub const CAPABILITIES: usize = 32;
pub const CAPABILITY: usize = 64;
/// The greatest priority of a device.
pub const PRIORITY: u32 = 100;

/// Answers kept to recognise a repeated `request_id`, per device.
pub const REQUEST_WINDOW: u64 = 1_024;
/// The id of a device's queue, in bytes; queues of one device, and of all devices, forgotten ones included.
pub const QUEUE_ID: usize = 64;
pub const QUEUES_OF_A_DEVICE: usize = 1_024;
pub const QUEUES: usize = 1_000_000;
/// A queue that was not used for so many days may be forgotten.
pub const QUEUE_DAYS: u64 = 400;
/// Answers kept to recognise a node's own retries. A node never has a number in flight that is this
/// far behind its newest one, so the window is exact.
pub const ORIGIN_WINDOW: u64 = 8_192;
/// Commands and bytes in one Raft entry.
pub const BATCH_COMMANDS: usize = 256;
pub const BATCH_BYTES: usize = 512 << 10;

/// A `HOST:PORT`.
pub const ADDRESS: usize = 261;
/// Nodes of a cluster, and how long one change of them may take.
pub const NODES: usize = 16;
pub const MEMBERS_CHANGE: std::time::Duration = std::time::Duration::from_secs(600);
/// The greatest `pending_changes_count` that a database can bring.
pub const PENDING_CHANGES: u64 = 1_000_000_000_000;
/// Taking over a database: rows and bytes of one step, bytes of a row's text, and the rows of its own logs that an
/// empty cluster gives up for those of the database.
pub const IMPORT_ROWS: usize = 500;
pub const IMPORT_BYTES: usize = 512 << 10;
pub const IMPORT_TEXT: usize = 16 << 10;
pub const IMPORT_OWN_ROWS: u64 = 4_096;

/// The longest life of a token, in seconds; and how many revoked ones are remembered until they have ended by
/// themselves.
pub const TOKEN_SECONDS: u64 = 366 * 86_400;
pub const REVOKED: usize = 10_000;
/// The name of a token (`jti`). Bytes.
pub const TOKEN_ID: usize = 255;

/// How far a client's time-stamp may be ahead of the proposer's clock. Milliseconds.
pub const CLIENT_CLOCK_AHEAD_MS: u64 = 5_000;
/// A client's clock that is further off is warned of, and its times are corrected. Milliseconds.
pub const CLOCK_SKEW_MS: u64 = 2_000;
/// A client's time as it came, as far as it is kept. Bytes.
pub const TIME_TEXT: usize = 64;

/// Changes kept in memory for readers, by count and by bytes of data.
pub const RECENT_CHANGES: usize = 65_536;
pub const RECENT_BYTES: usize = 64 << 20;
/// Bytes of record data kept in memory for `data_request`.
pub const RECORD_CACHE_BYTES: usize = 128 << 20;
/// Rows applied but not yet on the disk of the state machine, and their bytes, before apply waits.
pub const PENDING_ROWS: usize = 65_536;
pub const PENDING_BYTES: usize = 64 << 20;
