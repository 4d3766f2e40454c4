// Written by tool/generate.py from the project's docs and the bounds of its TypeScript library. Do not edit.

/// The API's events.
abstract final class Events {
  /// Client → server: device_id, role, priority, capabilities, timestamp, cursor, subscribe, unsent.
  static const deviceOnline = 'device_online';
  /// Server → client: device_id, current_master, role, timestamp, term, cursor, clock_ahead_ms.
  static const deviceOnlineAck = 'device_online_ack';
  /// Client → server: device_id, reason, timestamp.
  static const deviceOffline = 'device_offline';
  /// Server → client: device_id, timestamp.
  static const deviceOfflineAck = 'device_offline_ack';
  /// Client → server: device_id, reason, timestamp.
  static const deviceShutdown = 'device_shutdown';
  /// Server → client: device_id, role, timestamp.
  static const registered = 'registered';
  /// Client → server: device_id, timestamp, unsent.
  static const heartbeat = 'heartbeat';
  /// Server → client: device_id, timestamp, clock_ahead_ms.
  static const heartbeatAck = 'heartbeat_ack';
  /// Client → server: timestamp.
  static const tokenRenew = 'token_renew';
  /// Server → client: device_id, class, token, expires, timestamp.
  static const tokenRenewed = 'token_renewed';
  /// Client → server: reason, initiated_by, timestamp.
  static const masterElection = 'master_election';
  /// Server → client: previous_master_id, new_master_id, election_reason, election_timestamp, devices_participating,
  /// election_method, term, initiated_by, by.
  static const masterElected = 'master_elected';
  /// Client → server and server → client: device_id, new_role, reason, timestamp, term.
  static const roleChange = 'role_change';
  /// Server → client: device_id, new_role, reason, timestamp.
  static const roleChangeAck = 'role_change_ack';
  /// Client → server: device_id, sync_type, last_sync_timestamp, requested_tables, timestamp, cursor.
  static const syncRequest = 'sync_request';
  /// Server → client: sync_type, timestamp, changes, master_device_id, sync_id, page, total, has_more, cursor.
  static const syncResponse = 'sync_response';
  /// Client → server: device_id, sync_timestamp, changes_count, sync_id, timestamp, cursor.
  static const syncComplete = 'sync_complete';
  /// Server → client: device_id, sync_timestamp, changes_count, timestamp.
  static const syncCompleteAck = 'sync_complete_ack';
  /// Client → server and server → client: device_id, table_name, record_id, conflict_type, conflict_data, timestamp,
  /// conflict_id, version, collision.
  static const syncConflict = 'sync_conflict';
  /// Client → server and server → client: table_name, record_id, resolution_method, resolved_data, timestamp,
  /// device_id, conflict_id, delete, new_record_id, version, deleted, seq, new_record_version.
  static const syncConflictResolved = 'sync_conflict_resolved';
  /// Client → server and server → client: device_id, error_message, error_code, sync_type, timestamp, retry, field,
  /// retry_after_ms, last, request_id.
  static const syncError = 'sync_error';
  /// Server → client: device_id, error_message, error_code, timestamp.
  static const syncErrorAck = 'sync_error_ack';
  /// Client → server and server → client: device_id, table_name, record_id, new_data, operation, timestamp,
  /// base_version, request_id, queue, n, after, bulk, seq, cursor, timestamp_as_sent.
  static const dataUpdate = 'data_update';
  /// Client → server: device_id, table_name, record_id, timestamp.
  static const dataRequest = 'data_request';
  /// Server → client: table_name, record_id, data, timestamp, version.
  static const dataResponse = 'data_response';
  /// Client → server: device_id, queue_type, timestamp.
  static const queueStatus = 'queue_status';
  /// Server → client: device_id, queue_type, pending_count, last_processed, status, timestamp.
  static const queueStatusResponse = 'queue_status_response';
  /// Client → server and server → client: event_type, payload, device_id, timestamp.
  static const criticalEvent = 'critical_event';
  /// Server → client: message, timestamp, event, device_id, table_name, record_id, seq, request_id, cursor, conflict,
  /// conflict_id, repeated, queue, n, sync_id, timestamp_taken.
  static const acknowledged = 'acknowledged';
  /// Server → client: class, tables, create_tables, forget, resync, timestamp.
  static const accessChanged = 'access_changed';
  /// Server → client: error, error_code, timestamp, retry, field, retry_after_ms, last, event, conflict_id, request_id.
  static const error = 'error';
}

/// What may be done with a request that was refused.
enum Retry { no, safe, sameRequestId }

/// Each error code's title, and what `retry` says with it.
const errorCodes = <String, (String, Retry)>{
  '1001': ('Connection timeout', Retry.sameRequestId),
  '1002': ('Network unreachable', Retry.safe),
  '1003': ('WebSocket connection failed', Retry.safe),
  '1004': ('Heartbeat timeout', Retry.safe),
  '1005': ('Reconnection failed', Retry.no),
  '2001': ('Sync request failed', Retry.no),
  '2002': ('Data conflict detected', Retry.no),
  '2003': ('Sync timeout', Retry.safe),
  '2004': ('Invalid sync data', Retry.no),
  '2005': ('Master unavailable', Retry.safe),
  '3001': ('Invalid credentials', Retry.no),
  '3002': ('Token expired', Retry.no),
  '3003': ('Insufficient permissions', Retry.no),
  '3004': ('Device not registered', Retry.no),
  '4001': ('Device registration failed', Retry.no),
  '4002': ('Role change failed', Retry.no),
  '4003': ('Master election failed', Retry.safe),
  '4004': ('Device offline', Retry.safe),
  '5001': ('Database connection failed', Retry.sameRequestId),
  '5002': ('Internal server error', Retry.sameRequestId),
  '5003': ('Service unavailable', Retry.safe),
  '5004': ('Configuration error', Retry.no),
};

/// Every bound of the library, and of what Tillsync takes. Times are milliseconds.
abstract final class Limits {
  /// Bytes of a record's data, its nesting, and bytes of a table's name.
  static const recordData = 256 * 1024;
  static const dataDepth = 30;
  static const tableName = 100;
  /// Entries that are sent and not answered yet, and their bytes, but for the first.
  static const window = 32;
  static const windowBytes = 1 << 20;
  /// How long an answer may take.
  static const patience = 30000;
  /// Before the next try to connect: the first pause, and the longest.
  static const backoff = 1000;
  static const backoffMax = 30000;
  /// Before an entry or a sync is sent again, where the cluster does not say.
  static const pause = 100;
  static const pauseMax = 25600;
  /// Before a refused token is tried again, and a renewal.
  static const refusedPause = 30000;
  static const renewPause = 60000;
  /// The longest life of a renewed token.
  static const pairedLife = 86400000;
  /// Syncs that the app asked for and that wait for their turn.
  static const syncsWanted = 64;
  /// Defaults of what the queue and its letters may hold together.
  static const queueEntries = 100000;
  static const queueBytes = 256 << 20;
  /// Events that came and are not taken over yet; with more the session is ended, and resumes.
  static const frames = 10000;
  /// The longest time without a look at what is due.
  static const idle = 5000;
  /// Rows that are read in one go.
  static const rows = 500;
}
