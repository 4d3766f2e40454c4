/// The protocol of a client (docs/client-protocol.md), as a pure state machine.
///
/// It has no clock, no dice, no disk and no network: times come in as milliseconds of any clock that only goes
/// forward, random numbers and ids from functions that it is given, and what is to be done goes out as actions. Whoever
/// drives it commits the writes of each list before it sends or tells anything of that list. A driver that fails in
/// between makes a new core from the disk: what is on the disk is all that counts.
library;

import 'dart:math';

import 'actions.dart';
import 'change.dart';
import 'tables.dart';

/// Nothing goes on without another token, or a person.
const _tokenCodes = ['3001', '3002', '3003'];

/// Without an event that they answer they are news, not the session's end.
const _toldOnly = ['2002', '2003', '4002', '4003', '4004'];

int numberOf(String cursor) => int.parse(cursor.substring(cursor.lastIndexOf('.') + 1));

bool _same(List<String>? a, List<String>? b) =>
    a == null || b == null ? a == b : a.length == b.length && a.indexed.every((each) => b[each.$1] == each.$2);

List<String> _names(Object? list) => [...(list as List<dynamic>).cast<String>()];

class Core {
  Core(
    this.device,
    this.given,
    Snapshot disk, {
    required this.random,
    required this.newId,
    this.options = const {},
    this.maxEntries = Limits.queueEntries,
    this.maxBytes = Limits.queueBytes,
  })  : token = disk.token != null && disk.tokenGiven == given ? disk.token! : given,
        queueId = disk.queueId ?? newId(),
        _isNew = disk.queueId == null,
        last = disk.last,
        next = disk.next,
        sent = disk.sent,
        _doubt = disk.sent,
        entries = disk.entries,
        letters = disk.letters,
        size = disk.size,
        conflicts = {...disk.conflicts},
        cursor = disk.cursor,
        owed = disk.owed,
        wanted = [if (disk.owed.isNotEmpty) disk.owed] {
    _used = token;
  }

  final String device;
  final double Function() random;
  final String Function() newId;

  /// Goes out with `device_online`: role, priority, capabilities.
  final Json options;
  final int maxEntries;
  final int maxBytes;

  String given;
  String token;
  String queueId;
  int last;
  int next;
  int sent;
  int entries;
  int letters;
  int size;
  final Map<int, (int, int)> conflicts;
  final window = <int, Entry>{};
  final flying = <int, double>{};
  String? cursor;
  List<String> owed;
  List<List<String>?> wanted;
  bool isOnline = false;
  Json? refused;

  /// The next node to try counts from here.
  int node = 0;
  double? connectAt = 0;
  double? syncSince;
  double? renewAt;

  /// The token of the session, or of the last try.
  late String _used;
  bool _isNew;

  /// Entries up to here may have been applied, and their answers were lost.
  int _doubt;
  int _loaded = 0;
  bool _loading = false;
  bool _goingBack = false;
  bool _renew = false;
  bool _unknown = false;
  bool _paused = false;
  int? _seq;

  /// A new copy is coming, of [_freshTables].
  bool _hasFresh = false;
  List<String>? _freshTables;
  String? _syncId;
  bool _restricted = false;
  int _covered = 0;
  final _newest = <String, int>{};
  bool _connected = false;
  bool _closing = false;
  double? _onlineSince;
  int _tries = 0;
  int _pauses = 0;
  int _syncPauses = 0;
  num _retryAfter = 0;
  double _pushNotBefore = 0;
  double _syncNotBefore = 0;
  bool _pushWaits = false;
  bool _syncWaits = false;
  String _wall = '';
  List<Action> _out = [];

  // -- the connection

  List<Action> start() {
    if (_isNew) _out.add(QueueIs(queueId, 0, 0));
    _isNew = false;
    return _taken();
  }

  /// The token to connect with.
  String connecting() => _used = token;

  /// A connection was made with what [connecting] gave; [wall] is the device's own time.
  List<Action> connected(double now, String wall) {
    _connected = true;
    _closing = isOnline = _restricted = false;
    connectAt = renewAt = null;
    _wall = wall;
    _comeOnline(now);
    return _taken();
  }

  /// The connection ended, or could not be made; [error] is what the server said as it refused it.
  List<Action> disconnected(double now, [Json? error]) {
    if (error != null) _endOfSession(error);
    _doubt = flying.keys.fold(_doubt, max);
    flying.clear();
    if (_paused) _pauses++;
    _goingBack = _renew = _unknown = _paused = false;
    _connected = isOnline = _closing = false;
    _onlineSince = syncSince = renewAt = null;
    _abandon();
    final backoff = min(Limits.backoff * pow(2, min(_tries, 16)), Limits.backoffMax) * (0.75 + random() / 2);
    final wait = max(backoff.toDouble(), _retryAfter * (1 + random() / 2));
    _tries++;
    node++;
    _retryAfter = 0;
    connectAt = now + wait;
    _out.add(Connect(connectAt!));
    return _taken();
  }

  /// The app has another token: it is tried at once.
  List<Action> newToken(String another, double now) {
    given = token = another;
    refused = null;
    if (!_connected) {
      connectAt = now;
      _out.add(Connect(now));
    }
    return _taken();
  }

  /// To be called at [deadline]; more often does no harm.
  List<Action> tick(double now) {
    _work(now);
    return _taken();
  }

  /// When [tick] has something to do.
  double? deadline() {
    if (!_connected || _closing) return null;
    final times = [
      for (final since in [...flying.values, _onlineSince, syncSince].nonNulls) since + Limits.patience,
      if (isOnline && _pushWaits) _pushNotBefore,
      if (isOnline && _syncWaits) _syncNotBefore,
      if (isOnline && renewAt != null) renewAt!,
    ];
    return times.isEmpty ? null : times.reduce(min);
  }

  void _comeOnline(double now) {
    _onlineSince = now;
    final from = cursor;
    _seq = from == null ? null : numberOf(from);
    _covered = _seq ?? 0;
    _newest.clear();
    _send(Events.deviceOnline, {
      ...options,
      'device_id': device,
      'timestamp': _wall,
      'unsent': entries,
      if (from != null) 'cursor': from,
    });
  }

  void _endOfSession(Json error) {
    _retryAfter = error['retry_after_ms'] as num? ?? 0;
    if (_tokenCodes.contains(error['error_code']) && _used == token) {
      refused = error;
      _retryAfter = max(_retryAfter, Limits.refusedPause);
      _tell('token_refused', error);
    }
  }

  void _close() {
    _closing = true;
    isOnline = false;
    _out.add(const Close());
  }

  // -- what is heard

  List<Action> received(String event, Json data, double now) {
    if (!_connected || _closing) return _taken();
    switch (event) {
      case Events.acknowledged:
        if (data['event'] == Events.dataUpdate) _acknowledged(data);
      case Events.dataUpdate:
        _live(data);
      case Events.syncResponse:
        _page(data, now);
      case Events.deviceOnlineAck:
        if (data['device_id'] == device) _cameOnline(data, now);
      case Events.error:
        _error(data, now);
      case Events.syncError:
        _syncError(data, now);
      case Events.syncConflict:
        _tell('conflict', data);
      case Events.syncConflictResolved:
        _resolved(data);
      case Events.accessChanged:
        _accessChanged(data);
      case Events.tokenRenewed:
        _renewed(data, now);
    }
    _work(now);
    return _taken();
  }

  void _cameOnline(Json ack, double now) {
    _onlineSince = null;
    isOnline = true;
    refused = null;
    if (cursor != null) _tries = 0;
    _planRenewal(ack['timestamp'], now);
    _tell('online', ack);
  }

  void _error(Json error, double now) {
    final code = error['error_code'] as String;
    final event = error['event'];
    final n = _flyingNumber(error);
    if (code == '1005') {
      _loseCursor(now);
    } else if (code == '3001' || code == '3002') {
      _endOfSession(error);
      _close();
    } else if (n != null) {
      _entryRefused(n, error, now);
    } else if (event == Events.tokenRenew) {
      renewAt = now + max(Limits.renewPause, error['retry_after_ms'] as num? ?? 0);
      _tell('error', error);
    } else if (event == Events.syncRequest) {
      _syncError(error, now);
    } else if (event == Events.deviceOnline || (event == null && !_toldOnly.contains(code))) {
      _endOfSession(error);
      _close();
    } else {
      _tell('error', error);
    }
  }

  // -- the queue

  /// The write that queues a change; [enqueued] takes note once it is on the disk. [letter] is what it replaces.
  Enqueue prepare(Json update, [Letter? letter]) {
    final bytes = sizeOf(update);
    final held = entries + letters - (letter == null ? 0 : 1);
    if (held >= maxEntries || size - (letter?.size ?? 0) + bytes > maxBytes) {
      throw QueueFull('$entries changes wait and $letters were refused ($size bytes)');
    }
    return Enqueue(next, update, bytes, letter?.n);
  }

  List<Action> enqueued(Enqueue entry, double now, [int letterSize = 0]) {
    if (entry.replaces != null) {
      letters--;
      size -= letterSize;
    }
    next = entry.n + 1;
    if (entries == window.length && window.length < 2 * Limits.window && !_loading) {
      window[entry.n] = Entry(entry.n, entry.update, entry.size);
      _loaded = entry.n;
    }
    entries++;
    size += entry.size;
    _work(now);
    return _taken();
  }

  /// The app has dealt with a letter, and it is off the disk.
  void forgotten(int n, int bytes) {
    letters--;
    size -= bytes;
    conflicts.removeWhere((_, letter) => letter.$1 == n);
  }

  List<Action> loadedEntries(List<Entry> loaded, double now) {
    _loading = false;
    if (loaded.isEmpty) entries = window.length; // the disk knows
    for (final entry in loaded) {
      window[entry.n] = entry;
      _loaded = entry.n;
    }
    _work(now);
    return _taken();
  }

  /// Of an entry that is in the queue. One that an earlier session sent without an answer is `sent`, too.
  String stateOf(int n) => flying.containsKey(n) || n <= _doubt ? 'sent' : 'pending';

  int? _flyingNumber(Json answer) {
    final id = '${answer['request_id'] ?? ''}';
    final at = id.lastIndexOf('-');
    if (at < 0 || id.substring(0, at) != queueId) return null;
    final digits = id.substring(at + 1);
    final n = RegExp(r'^\d+$').hasMatch(digits) ? int.tryParse(digits) : null;
    return flying.containsKey(n) ? n : null;
  }

  void _acknowledged(Json ack) {
    final n = _flyingNumber(ack);
    if (n == null) return;
    _take(n);
    last = max(last, n);
    _pauses = 0;
    _out.add(Settle(n, last));
    _tell('acknowledged', {...ack, 'n': n});
  }

  Entry _take(int n) {
    flying.remove(n);
    final entry = window.remove(n);
    if (entry == null) throw StateError('entry $n is not in the window');
    entries--;
    size -= entry.size;
    return entry;
  }

  /// An entry was refused. So are those behind it (`after`); they are sent again when all have their answers.
  void _entryRefused(int n, Json error, double now) {
    final field = error['field'];
    final retry = error['retry'];
    _goingBack = true;
    if (error['error_code'] == '3004') {
      _close(); // not known any more: it registers again as it comes back
    } else if (retry != 'no') {
      if (retry != 'safe') {
        _unknown = true;
        _doubt = max(_doubt, n);
      }
      flying.remove(n);
      _pauseQueue(now, error);
    } else if (field == 'after') {
      flying.remove(n);
      final told = error['last'];
      if (told is int && told != last) {
        last = told;
        _out.add(LastIs(last));
      }
      _pauseQueue(now, const {'retry_after_ms': 50});
    } else if (field == 'n' || (field == 'queue' && n > _doubt)) {
      // The queue's file was copied or set back, or the cluster has forgotten the queue; this entry was surely not
      // applied. What waits goes on in a new queue.
      flying.remove(n);
      _renew = true;
      _pauseQueue(now, error);
    } else {
      final entry = _take(n);
      var state = 'refused';
      final conflict = error['conflict_id'];
      if (conflict is int) {
        // It is kept with the conflict: for the cluster it was the queue's next entry.
        state = 'conflict';
        last = max(last, n);
        conflicts[conflict] = (n, entry.size);
      }
      letters++;
      size += entry.size;
      _out.add(Bury(n, state, error, last));
      _tell(state, {'n': n, 'update': entry.update, 'error': error});
    }
  }

  /// A pause grows with the rounds that were refused, however many entries of a round were.
  void _pauseQueue(double now, Json error) {
    _pushNotBefore = max(_pushNotBefore, now + _pause(_pauses, error));
    _paused = true;
  }

  double _pause(int pauses, Json error) {
    final least = error['retry_after_ms'] as num? ?? min(Limits.pause * pow(2, min(pauses, 16)), Limits.pauseMax);
    return (least * (1 + random() / 2)).toDouble();
  }

  void _resolved(Json resolved) {
    final letter = conflicts[resolved['conflict_id']];
    if (letter != null) {
      _out.add(Forget(letter.$1));
      forgotten(letter.$1, letter.$2);
    }
    _tell('resolved', resolved);
  }

  // -- the copy

  /// The app wants a full sync, of all or of these tables.
  List<Action> sync(List<String>? tables, double now) {
    if (!wanted.any((each) => _same(each, tables)) && wanted.length < Limits.syncsWanted) wanted.add(tables);
    _work(now);
    return _taken();
  }

  void _live(Json change) {
    final seq = change['seq'] as int;
    final table = change['table_name'] as String;
    final known = _seq;
    if (known != null) {
      if (seq <= known) return; // a sync brought it already
      final missed = change['after'] as int? ?? 0;
      if (!_restricted && seq > known + 1) {
        _tell('gap', change);
        return _close(); // it resumes where it was
      }
      if (_restricted && missed > max(_newest[table] ?? 0, _covered)) {
        _tell('gap', change);
        final from = cursor;
        if (from == null || missed > numberOf(from)) return _close();
        _forgetCursor(); // later changes moved it past what is missing
      }
    }
    _seq = seq;
    _newest[table] = seq;
    final data = change['operation'] == 'delete' ? null : change['new_data'] as Json;
    final toFresh = _hasFresh && (_freshTables?.contains(table) ?? true);
    final toCopy = cursor != null;
    if (toCopy || toFresh) {
      _out.add(Put(table, change['record_id'] as int, seq, data, toCopy: toCopy, toFresh: toFresh));
    }
    if (toCopy) {
      cursor = change['cursor'] as String;
      _out.add(CursorIs(cursor));
    }
    _tell('change', change);
  }

  /// The cursor is of another history, or too old: a full sync is owed. The old copy stays until it is there.
  void _loseCursor(double now) {
    _forgetCursor();
    _comeOnline(now);
  }

  void _forgetCursor() {
    cursor = null;
    _seq = null;
    _out.add(const CursorIs(null));
    wanted = [if (owed.isNotEmpty) owed];
    _abandon(); // pages that are under way are let pass before another sync is asked for
  }

  void _abandon() {
    if (_hasFresh) _out.add(const Abandon());
    _hasFresh = false;
  }

  void _syncError(Json error, double now) {
    final wasAsked = syncSince != null;
    syncSince = null;
    if (error['error_code'] == '1005') return _loseCursor(now);
    if (!wasAsked) return _tell('error', error);
    final tables = _hasFresh ? _freshTables : null;
    if (tables != null && const ['2004', '3003'].contains(error['error_code'])) {
      wanted.removeWhere((each) => _same(each, tables)); // it would be refused for ever
      _paid(tables);
    }
    _abandon();
    _syncNotBefore = now + _pause(_syncPauses, error);
    _syncPauses++;
    _tell('error', error);
  }

  void _page(Json page, double now) {
    if (syncSince == null) return;
    final more = page['has_more'] == true;
    if (!_hasFresh) {
      syncSince = more ? now : null; // of a sync that is not wanted any more
      return;
    }
    if (page['page'] == 1) _syncId = page['sync_id'] as String?;
    if (page['sync_id'] != _syncId) return;
    final tables = _freshTables;
    syncSince = now;
    for (final change in (page['changes'] as List<dynamic>).cast<Json>()) {
      final data = change['operation'] == 'delete' ? null : change['data'] as Json;
      final (table, id) = (change['table_name'] as String, change['record_id'] as int);
      _out.add(Put(table, id, change['seq'] as int, data, toCopy: false, toFresh: true));
    }
    if (more) return;
    _hasFresh = false;
    syncSince = null;
    _syncId = null;
    wanted.removeWhere((each) => _same(each, tables));
    final pageCursor = page['cursor'] as String;
    final reached = numberOf(pageCursor);
    if (tables == null) {
      final from = cursor;
      if (from == null || numberOf(from) < reached) cursor = pageCursor;
      _seq = max(_seq ?? 0, reached);
      _covered = max(_covered, reached);
    } else {
      for (final table in tables) {
        _newest[table] = max(_newest[table] ?? 0, reached);
      }
    }
    _out.add(Switch(tables, cursor));
    if (tables != null) _paid(tables);
    _tries = _pauses = _syncPauses = 0;
    _send(Events.syncComplete, {
      'device_id': device,
      'sync_id': page['sync_id'],
      'sync_timestamp': page['timestamp'],
      'changes_count': page['total'],
    });
    _tell('synced', {'tables': tables, 'cursor': pageCursor, 'total': page['total']});
  }

  void _paid(List<String> tables) {
    final left = [...owed.where((table) => !tables.contains(table))];
    if (left.length == owed.length) return;
    owed = left;
    _out.add(Owed(left));
  }

  void _accessChanged(Json access) {
    final rights = access['tables'] as Json;
    _restricted = rights.containsValue('none');
    if (rights['*'] == 'none') {
      final kept = [for (final MapEntry(:key, :value) in rights.entries) if (key != '*' && value != 'none') key];
      _out.add(Drop(kept, others: true));
    } else {
      final none = [for (final MapEntry(:key, :value) in rights.entries) if (value == 'none') key];
      final gone = [...{..._names(access['forget']), ...none}];
      if (gone.isNotEmpty) _out.add(Drop(gone, others: false));
      _paid(gone);
    }
    final resync = _names(access['resync']);
    if (resync.isNotEmpty) {
      owed = [...{...owed, ...resync}];
      _out.add(Owed(owed));
      if (!wanted.any((each) => _same(each, resync))) wanted.add(resync);
    }
    _tell('access', access);
  }

  // -- the token

  /// When half of its life is left, by the cluster's clock. A long life counts as that of a renewed one.
  void _planRenewal(Object? serverTime, double now) {
    renewAt = null; // one that says nothing of its end
    try {
      final claims = claimsOf(token);
      final (exp, iat) = (claims['exp'] as num, claims['iat'] as num);
      final then = DateTime.parse('$serverTime').millisecondsSinceEpoch;
      renewAt = now + (exp * 1000 - min((exp - iat) * 1000, Limits.pairedLife) / 2) - then;
    } on Object {
      // It is no token that can be read.
    }
  }

  void _renewed(Json renewed, double now) {
    token = renewed['token'] as String;
    _out.add(TokenIs(given, token));
    _planRenewal(renewed['timestamp'], now);
    final at = renewAt;
    if (at != null) renewAt = max(at, now + 1000); // one that lives for seconds only
    _tell('token_renewed', {'expires': renewed['expires']});
  }

  // -- what is to be done

  void _work(double now) {
    if (!_connected || _closing) return;
    final oldest = [...flying.values, _onlineSince ?? now, syncSince ?? now].reduce(min);
    if (now - oldest >= Limits.patience) return _close(); // come again, and send again
    if (!isOnline) return;
    final due = renewAt;
    if (due != null && now >= due) {
      renewAt = now + Limits.renewPause;
      _send(Events.tokenRenew, {});
    }
    _askForSync(now);
    _push(now);
  }

  void _askForSync(double now) {
    if (cursor == null && !wanted.contains(null)) wanted.insert(0, null);
    final idle = wanted.isNotEmpty && syncSince == null;
    _syncWaits = idle && now < _syncNotBefore;
    if (!idle || _syncWaits) return;
    final tables = wanted.first;
    syncSince = now;
    _hasFresh = true;
    _freshTables = tables;
    _syncId = null;
    _out.add(Begin(tables)); // what is heard from here on belongs to the new copy
    _send(Events.syncRequest, {
      'device_id': device,
      'sync_type': 'full',
      if (tables != null) 'requested_tables': tables,
    });
  }

  /// Sends the queue in order, a window ahead of the answers.
  void _push(double now) {
    _pushWaits = false;
    if (_loading || (_goingBack && flying.isNotEmpty)) return;
    if (_goingBack) {
      // What may have been applied under the old id must be known before there is a new one.
      if (_renew && !_unknown) {
        queueId = newId();
        last = sent = _doubt = 0;
        _out.add(QueueIs(queueId, 0, 0));
      }
      if (_paused) _pauses++;
      _goingBack = _renew = _unknown = _paused = false;
    }
    _pushWaits = entries > 0 && now < _pushNotBefore;
    if (_pushWaits) return;
    if (window.length < min(Limits.window, entries)) {
      _loading = true;
      _out.add(Load(_loaded, Limits.window));
      return;
    }
    var after = last;
    var ahead = 0;
    var bytes = 0;
    for (final entry in window.values) {
      bytes += entry.size;
      if (++ahead > Limits.window || (ahead > 1 && bytes > Limits.windowBytes)) break;
      if (!flying.containsKey(entry.n)) _sendEntry(entry, min(after, entry.n - 1), now);
      after = max(after, entry.n);
    }
  }

  /// [after] may be anything for an entry behind [last]: it was applied, and its answer got lost.
  void _sendEntry(Entry entry, int after, double now) {
    if (entry.n > sent) {
      sent = entry.n;
      _out.add(MarkSent(entry.n));
    }
    flying[entry.n] = now;
    _send(Events.dataUpdate, {
      ...entry.update,
      'queue': queueId,
      'n': entry.n,
      'after': after,
      'request_id': '$queueId-${entry.n}',
    });
  }

  void _send(String event, Json data) => _out.add(Send(event, data));

  void _tell(String kind, Json data) => _out.add(Tell(kind, data));

  List<Action> _taken() {
    final out = _out;
    _out = [];
    return out;
  }
}
