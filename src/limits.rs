//! Every bound on what a client or a peer can make a node hold, in one place (docs/design.md, section 11).

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
/// Different `table_name`s a cluster keeps; of them, those that one device may have made, and one that belongs to an
/// admin or a manager.
pub const TABLES: u32 = 256;
pub const TABLES_OF_DEVICE: usize = 16;
pub const TABLES_OF_PRIVILEGED: usize = 128;
/// Tables ever made, removed ones included: each had a number of its own.
pub const TABLE_NUMBERS: u32 = 65_536;
/// Records that one step of a table's removal deletes (each is told to every session) and looks at, and how long a
/// removal may rest before the leader goes on with it. Milliseconds.
pub const TABLE_REMOVE_RECORDS: usize = 64;
pub const TABLE_REMOVE_SCAN: usize = 10_000;
pub const TABLE_REMOVE_IDLE_MS: u64 = 30_000;
/// Devices ever registered; of them, those that one token of a manager or an admin may have registered for others.
pub const DEVICES: u32 = 100_000;
pub const DEVICES_OF_MANAGER: u32 = 1_000;
pub const DEVICES_OF_ADMIN: u32 = 25_000;
/// Numbers ever given to devices, forgotten ones included.
pub const DEVICE_NUMBERS: u32 = 1_000_000;
/// Devices whose tokens were taken back or that are suspended.
pub const DEVICE_GATES: usize = 100_000;
/// Devices that ask to be paired: in all, and from one address; the name that they give, in bytes; and how long a code
/// is good, in milliseconds.
pub const PAIRINGS: usize = 64;
pub const PAIRINGS_OF_ADDRESS: usize = 4;
pub const PAIR_NAME: usize = 100;
pub const PAIRING_MS: u64 = 600_000;
/// The body of such a request. Bytes.
pub const PAIR_BODY: usize = 1 << 10;
/// Wrong codes or secrets of pairings at once after a pause, then one a second of an address and 16 of all.
pub const WRONG_PAIRINGS: u64 = 10;
pub const ALL_WRONG_PAIRINGS: u64 = 64;
/// Addresses without a token whose rate a node remembers.
pub const STRANGER_ADDRESSES: usize = 65_536;
/// The default of the longest life of a token that a node signs itself: for a device that was paired, or in place of an
/// older one.
pub const PAIRED_TOKEN: Duration = Duration::from_secs(86_400);
/// The greatest number of changes that a device can say it has not sent yet.
pub const UNSENT: u64 = 1_000_000_000_000;
/// When whoever used up its share may ask again. Milliseconds.
pub const SHARE_RETRY_MS: u64 = 60_000;
/// When whoever finds the disks full may ask again. Milliseconds.
pub const ROOM_RETRY_MS: u64 = 5_000;
/// Defaults of the thresholds of free room, MiB.
pub const DISK_LOW_MB: u64 = 1_024;
pub const DISK_MIN_MB: u64 = 256;
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
/// was offline for days sends what it kept); bytes that it reads, in the same way (a full sync of 100,000 rows of 1 KB is
/// a fifth of it); elections, critical events, reports of conflicts and sync errors, and comings and goings a minute;
/// sessions and streams.
pub const DEVICE_RATE: u32 = 200;
pub const DEVICE_BURST: u32 = 20_000;
pub const DEVICE_BYTES: u32 = 1 << 20;
pub const DEVICE_BYTES_BURST: u32 = 64 << 20;
pub const DEVICE_READS: u32 = 4 << 20;
pub const DEVICE_READS_BURST: u32 = 512 << 20;
pub const ELECTION_RATE: u32 = 30;
pub const CRITICAL_RATE: u32 = 600;
pub const REPORT_RATE: u32 = 600;
pub const PRESENCE_RATE: u32 = 600;
pub const SESSIONS_OF_TOKEN: usize = 16;
/// Requests a second of an admin's or a manager's token, and how many times as much of what is counted by the minute
/// as a device it may send.
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
pub const CHANGE_BYTES: u64 = 512 << 20;
pub const CONFLICTS: u64 = 100_000;
pub const CONFLICT_BYTES: u64 = 1 << 30;
pub const ELECTIONS: u64 = 100_000;
/// Conflicts that wait for a decision, and their bytes: in all, in one table, and of one device. They are in memory.
pub const OPEN_CONFLICTS: usize = 10_000;
pub const OPEN_CONFLICT_BYTES: usize = 64 << 20;
pub const OPEN_CONFLICTS_OF_TABLE: usize = 4_000;
pub const OPEN_CONFLICT_BYTES_OF_TABLE: usize = 32 << 20;
pub const OPEN_CONFLICTS_OF_DEVICE: usize = 1_000;
pub const OPEN_CONFLICT_BYTES_OF_DEVICE: usize = 8 << 20;
/// The last quarter (one in `OPEN_CONFLICTS_SCARCE`) of the room of a table, and of the cluster, is shared out: a device
/// may then hold at most one in `OPEN_CONFLICTS_PART` of what is left.
pub const OPEN_CONFLICTS_SCARCE: usize = 4;
pub const OPEN_CONFLICTS_PART: usize = 16;
/// Open conflicts of one record that a repeated insert is compared with.
pub const OPEN_CONFLICTS_COMPARED: usize = 64;
/// Rows removed by one compaction command.
pub const COMPACT_STEP: u64 = 1_000;

/// How long a TLS handshake may take, and how long a peer may say nothing at all.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
pub const HANDSHAKE_SILENCE: Duration = Duration::from_secs(1);
/// Connections of the gateway on which no good token was seen: all, or half of `connections` if that is less, and of one
/// address.
pub const ANONYMOUS_CONNECTIONS: usize = 4_096;
pub const ANONYMOUS_CONNECTIONS_OF_ADDRESS: usize = 1_024;
/// Connections beside those of sessions that a node has room for: requests, polls, pages.
pub const CONNECTIONS_BESIDE: usize = 1_024;
/// Connections that were told to make room and have not closed yet; with more, newcomers are turned away.
pub const CLOSING_CONNECTIONS: usize = 128;
/// Addresses that somebody was vouched for at, and that are remembered for it.
pub const KNOWN_ADDRESSES: usize = 4_096;
/// Connections on the port of the nodes; of those, without a certificate seen: all, and of one address.
pub const NODE_CONNECTIONS: usize = 256;
pub const ANONYMOUS_NODES: usize = 128;
pub const ANONYMOUS_NODES_OF_ADDRESS: usize = 32;
/// File descriptors that are none of the gateway's: for the other nodes, the disk and the operator.
pub const DESCRIPTORS_RESERVED: usize = 640;
/// Engine.IO connections that have not said who they are: all, and of one address.
pub const ANONYMOUS_SOCKETS: usize = 1_024;
pub const ANONYMOUS_SOCKETS_OF_ADDRESS: usize = 256;

/// The request line and headers of a request, and the buffers of its connection. Bytes.
pub const HTTP_HEAD: usize = 16 << 10;
pub const HTTP_BUFFER: usize = 64 << 10;
/// A body before it is known who sends it. Bytes.
pub const ANONYMOUS_BODY: usize = 64 << 10;
/// The same as read from the connection, with what is read ahead.
pub const ANONYMOUS_READ: usize = ANONYMOUS_BODY + HTTP_BUFFER + HTTP_HEAD;
/// A connection on which nothing came for so long is probed, so often, and given up after so many probes.
pub const PROBE_AFTER: Duration = Duration::from_secs(30);
pub const PROBE_EVERY: Duration = Duration::from_secs(10);
pub const PROBES: i32 = 3;
/// Addresses whose refused tokens are told apart in the log, and lines about them a second.
pub const REFUSED_ADDRESSES: usize = 1_024;
pub const REFUSED_LINES: u32 = 16;

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

/// Elections that devices without privileges may ask for in a window of time: one of them; one of them in any case, when
/// all together have asked for `ELECTIONS_ASKED`; all together in any case. And the window, milliseconds.
pub const ELECTIONS_ASKED_OF_DEVICE: usize = 3;
pub const ELECTIONS_ASKED_SHARE: usize = 2;
pub const ELECTIONS_ASKED: usize = 6;
pub const ELECTIONS_ASKED_MOST: usize = 256;
pub const ELECTIONS_ASKED_MS: u64 = 60_000;
/// A device that was the master and left so often in that window ranks last in elections; and how many times that any
/// master left are remembered.
pub const MASTER_LEFT_OFTEN: usize = 3;
pub const MASTERS_LEFT: usize = 32;

/// Large answers (a whole listing, a page of conflicts) that wait for one of the same token to be sent, how long they
/// wait, and how long sending one may take.
pub const LISTINGS_WAITING: usize = 64;
pub const LISTING_WAIT: Duration = Duration::from_secs(10);
pub const LISTING_TIME: Duration = Duration::from_secs(60);
/// How long a backup may be built, and how long it may be taken away.
pub const BACKUP_BUILT: Duration = Duration::from_secs(600);
pub const BACKUP_TAKEN: Duration = Duration::from_secs(4 * 3_600);
/// Devices in one piece of the whole listing of devices.
pub const LISTING_PIECE: usize = 256;

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
/// Bytes of log lines that wait to be written; what comes then is dropped.
pub const LOG_BUFFER: usize = 1 << 20;
/// Threads that read rows and files beside the runtime's own. Each keeps freed memory of its own for a while, and the
/// runtime's tasks move through all of them: many cost more than reads at once gain.
pub const BLOCKING_THREADS: usize = 8;
/// Commands and bytes in one Raft entry.
pub const BATCH_COMMANDS: usize = 256;
pub const BATCH_BYTES: usize = 512 << 10;

/// An encoded command of another node: the greatest that a client can cause, and some room. Bytes.
pub const COMMAND_BYTES: usize = 1 << 20;
/// Devices in one note of those that were seen.
pub const DEVICES_SEEN: usize = 65_536;
/// The id of a sync, and of a token. Bytes.
pub const SYNC_ID: usize = 255;
pub const JTI: usize = 255;
/// The end of the year 9999: no time is later.
pub const TIME_MAX_MS: u64 = 253_402_300_799_999;
/// Nodes that a cluster ever had or took out.
pub const NODES_EVER: usize = 4_096;
/// Entries that two nodes compare to learn whether they hold one history.
pub const SHARED_ENTRIES: u64 = 16;
/// A `HOST:PORT`.
pub const ADDRESS: usize = 261;
/// Nodes of a cluster, and how long one change of them may take.
pub const NODES: usize = 16;
/// Voters that are known from other members' word only, while this node's log does not name them yet.
pub const NODES_VOUCHED: usize = 64;
/// How far the term of a vote may be ahead of this node's own: no number of honest elections comes near, and the last
/// term is as far away again.
pub const TERM_AHEAD: u64 = 1 << 32;
pub const MEMBERS_CHANGE: std::time::Duration = std::time::Duration::from_secs(600);
/// The greatest `pending_changes_count` that a database can bring.
pub const PENDING_CHANGES: u64 = 1_000_000_000_000;
/// Taking over a database: rows and bytes of one step, bytes of a row's text, and the rows of its own logs that an
/// empty cluster gives up for those of the database.
pub const IMPORT_ROWS: usize = 500;
pub const IMPORT_BYTES: usize = 512 << 10;
pub const IMPORT_TEXT: usize = 16 << 10;
pub const IMPORT_OWN_ROWS: u64 = 4_096;
/// Rows in one step however they come, and the greatest id of a row.
pub const IMPORT_STEP_ROWS: usize = 65_536;
pub const IMPORT_ROW_ID: u64 = 1 << 53;

/// The longest life of a token, in seconds; and how many revoked ones are remembered until they have ended by
/// themselves.
pub const TOKEN_SECONDS: u64 = 366 * 86_400;
pub const REVOKED: usize = 10_000;
/// For so many days after its token has ended a revocation is kept: the cluster's time may have been wrong when it
/// seemed to have ended.
pub const REVOKED_DAYS: u64 = 400;
/// How often the applied time of a cluster is brought back.
pub const TIME_CORRECTIONS: usize = 64;
/// The name of a token (`jti`). Bytes.
pub const TOKEN_ID: usize = 255;

/// How far a client's time-stamp may be ahead of the proposer's clock. Milliseconds.
pub const CLIENT_CLOCK_AHEAD_MS: u64 = 5_000;
/// A client's clock that is further off is warned of, and its times are corrected. Milliseconds.
pub const CLOCK_SKEW_MS: u64 = 2_000;
/// A client's time as it came, as far as it is kept. Bytes.
pub const TIME_TEXT: usize = 64;

/// Digests kept so that nodes can be compared at the same index: of the newest entries, and of every so manieth for
/// longer. And how many of them a node may say at once.
pub const DIGESTS_KEPT: usize = 4_096;
pub const DIGEST_STEP: u64 = 1_000;
pub const DIGESTS_KEPT_LONG: usize = 256;
pub const DIGESTS_SAID: usize = 4;
/// A node that lacks more entries of the log than these is not ready: it catches up.
pub const READY_LAG: u64 = 2_000;
/// Nodes are compared after so many entries even if their time has not come.
pub const DIGEST_COMPARE_ENTRIES: u64 = 10_000;

/// How far apart the clocks of two nodes may be, and how far a node's may be from most others' before it is told. Milliseconds.
pub const NODE_CLOCK_APART_MS: u64 = 5_000;
pub const NODE_CLOCK_OFF_MS: u64 = 1_000;

/// Changes kept in memory for readers, by count and by bytes of data.
pub const RECENT_CHANGES: usize = 65_536;
pub const RECENT_BYTES: usize = 16 << 20;
/// Bytes of record data kept in memory for `data_request`.
pub const RECORD_CACHE_BYTES: usize = 64 << 20;
/// Rows applied but not yet on the disk of the state machine, and their bytes, before apply waits.
pub const PENDING_ROWS: usize = 65_536;
pub const PENDING_BYTES: usize = 64 << 20;
/// Bytes a second that a scrub reads at most.
pub const SCRUB_BYTES: u64 = 8 << 20;
