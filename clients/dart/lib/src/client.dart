/// Drives the core over socket_io_client. Everything that touches the core or the disk happens one after the other.
library;

import 'dart:async';
import 'dart:math';

import 'package:socket_io_client/socket_io_client.dart' as io;

import 'actions.dart';
import 'change.dart';
import 'core.dart';
import 'disk.dart';
import 'tables.dart';

const _heard = [
  Events.acknowledged,
  Events.dataUpdate,
  Events.syncResponse,
  Events.deviceOnlineAck,
  Events.error,
  Events.syncError,
  Events.syncConflict,
  Events.syncConflictResolved,
  Events.accessChanged,
  Events.tokenRenewed,
];

/// A change for [Client.pushMany].
typedef Change = ({String table, int? id, Json? data, String operation, int? baseVersion});

/// A device. A change is on the disk when its method completes, and reaches the cluster as soon as that is reached:
/// once, and in the order in which it was made. Only one client at a time may use a disk.
class Client {
  Client._(this._urls, this._given, this._disk, this.device, this._listen, this._newToken, this._begun);

  /// Each of [urls] is a node that may be tried. [online] goes out with `device_online`. [newToken] gets the error that
  /// the token was refused with, and gives another token, or null. [listen] hears what happens: a kind, and its data.
  static Future<Client> open(
    List<String> urls, {
    required String token,
    required Disk disk,
    String? device,
    Json online = const {},
    FutureOr<String?> Function(Json error)? newToken,
    void Function(String kind, Json data)? listen,
    int maxEntries = Limits.queueEntries,
    int maxBytes = Limits.queueBytes,
  }) async {
    final name = device ?? claimsOf(token)['sub'] as String;
    final random = Random();
    Future<Core> begun(String given) async {
      final core = Core(
        name,
        given,
        await disk.snapshot(),
        random: random.nextDouble,
        newId: newQueueId,
        options: online,
        maxEntries: maxEntries,
        maxBytes: maxBytes,
      );
      await disk.apply([...core.start().whereType<Write>()]);
      return core;
    }

    final client = Client._(urls, token, disk, name, listen, newToken, begun);
    client._core = await begun(token);
    client._plan();
    return client;
  }

  final List<String> _urls;
  final Disk _disk;
  final String device;
  final void Function(String kind, Json data)? _listen;
  final FutureOr<String?> Function(Json error)? _newToken;
  final Future<Core> Function(String token) _begun;

  String _given;
  late Core _core;
  io.Socket? _socket;
  Timer? _timer;
  Future<void> _chain = Future.value();
  List<(String, Json)> _incoming = [];
  bool _draining = false;
  final _waiters = <void Function()>{};
  bool _closed = false;
  bool _asking = false;
  bool _broken = false;
  int _failures = 0;
  final _clock = Stopwatch()..start();

  double get _now => _clock.elapsedMicroseconds / 1000;

  /// What a core that failed knows may not be what is on the disk.
  Future<void> _mend() async {
    if (!_broken) return;
    final pause = _now + min(1000 * pow(2, min(_failures++, 16)), 30000);
    try {
      _core = await _begun(_given);
      _broken = false;
    } finally {
      _core.connectAt = pause.toDouble();
      _plan();
    }
  }

  /// One piece of work after the other.
  Future<T> _serial<T>(Future<T> Function() work) {
    final done = _chain.then((_) {
      if (_closed) throw StateError('the client is closed');
      return work();
    });
    _chain = done.then<void>((_) {}, onError: (Object _) {});
    return done;
  }

  // -- what the app calls

  /// A new record. Gives its id, which is drawn at random unless the app has one that is surely its own.
  Future<int> insert(String table, Json data, {int? id}) async => (await pushMany([
        (table: table, id: id, data: data, operation: 'insert', baseVersion: null),
      ]))
          .first;

  /// The whole record as it is now. With [baseVersion], a change by somebody else since then is a conflict.
  Future<void> update(String table, int id, Json data, {int? baseVersion}) =>
      pushMany([(table: table, id: id, data: data, operation: 'update', baseVersion: baseVersion)]);

  Future<void> delete(String table, int id, {int? baseVersion}) =>
      pushMany([(table: table, id: id, data: null, operation: 'delete', baseVersion: baseVersion)]);

  /// Many changes in one write to the disk, all or none. Gives their record ids.
  Future<List<int>> pushMany(List<Change> changes) async {
    final made = DateTime.now().toUtc().toIso8601String();
    final ids = [
      for (final (:id, :operation, data: _, table: _, baseVersion: _) in changes)
        if (id == null && operation != 'insert')
          throw const InvalidChange('record_id', 'is drawn for a new record only')
        else
          id ?? newRecordId(),
    ];
    final updates = [
      for (final (at, (:table, id: _, :data, :operation, :baseVersion)) in changes.indexed)
        checked(
          device,
          table: table,
          id: ids[at],
          data: data,
          operation: operation,
          baseVersion: baseVersion,
          timestamp: made,
        ),
    ];
    await _serial(() => _queue(updates));
    return ids;
  }

  Future<void> _queue(List<Json> updates, [Letter? letter]) async {
    await _mend();
    final core = _core;
    final (next, entries, size) = (core.next, core.entries, core.size);
    final writes = <Enqueue>[];
    try {
      for (final update in updates) {
        final write = core.prepare(update, letter);
        writes.add(write);
        core.next++;
        core.entries++;
        core.size += write.size;
      }
    } finally {
      core
        ..next = next
        ..entries = entries
        ..size = size;
    }
    await _disk.apply(writes);
    await _guarded(() => [for (final write in writes) ...core.enqueued(write, _now, letter?.size ?? 0)]);
  }

  /// A record as the cluster had it when it was heard from last.
  Future<Row?> get(String table, int id) => _serial(() => _disk.record(table, id));

  /// The records of a table by their ids.
  Stream<Row> records(String table) async* {
    int? after;
    for (;;) {
      final from = after;
      final rows = await _serial(() => _disk.records(table, from, Limits.rows));
      yield* Stream.fromIterable(rows);
      if (rows.isEmpty) return;
      after = rows.last.id;
    }
  }

  /// What was refused for good, or waits for a decision: for the app to show.
  Stream<Letter> letters() async* {
    var after = 0;
    for (;;) {
      final from = after;
      final letters = await _serial(() => _disk.letters(from, Limits.rows));
      yield* Stream.fromIterable(letters);
      if (letters.isEmpty) return;
      after = letters.last.n;
    }
  }

  /// Queues a letter once more, mended if [data] or [baseVersion] is given.
  Future<void> resend(int n, {Json? data, int? baseVersion}) => _serial(() async {
        final letter = await _letter(n);
        if (letter.state == 'conflict') throw StateError('the cluster keeps it with an open conflict: decide that');
        final was = letter.update;
        final update = checked(
          device,
          table: was['table_name'] as String,
          id: was['record_id'] as int,
          data: data ?? was['new_data'] as Json?,
          operation: was['operation'] as String,
          baseVersion: baseVersion ?? was['base_version'] as int?,
          timestamp: was['timestamp'] as String?,
        );
        await _queue([update], letter);
      });

  /// The app has dealt with a letter.
  Future<void> forget(int n) => _serial(() async {
        final letter = await _letter(n);
        await _disk.apply([Forget(n)]);
        _core.forgotten(n, letter.size);
        _settleWaiters();
      });

  Future<Letter> _letter(int n) async {
    final found = await _disk.letters(n - 1, 1);
    if (found.isEmpty || found.first.n != n) throw StateError('there is no letter $n');
    return found.first;
  }

  /// Asks for a full sync, of all or of these tables.
  Future<void> sync([List<String>? tables]) => _serial(() => _guarded(() => _core.sync(tables, _now)));

  /// Goes on with another token of the same device.
  Future<void> useToken(String token) => _serial(() {
        _given = token;
        return _guarded(() => _core.newToken(token, _now));
      });

  bool get isOnline => _core.isOnline;

  /// Changes in the queue: not answered for good yet.
  int get pending => _core.entries;

  /// Changes that were refused for good, or wait for a decision.
  int get letterCount => _core.letters;

  /// null: there is no whole copy of the data yet, or a new one is owed.
  String? get cursor => _core.cursor;

  /// Why the token is refused.
  Json? get refused => _core.refused;

  /// Waits until [holds]; false if it did not in time.
  Future<bool> until(bool Function(Client) holds, [Duration? patience]) {
    final done = Completer<bool>();
    void look() {
      if (!done.isCompleted && (_closed || holds(this))) done.complete(!_closed);
    }

    _waiters.add(look);
    void giveUp() {
      if (!done.isCompleted) done.complete(false);
    }

    final timer = patience == null ? null : Timer(patience, giveUp);
    look();
    return done.future.whenComplete(() {
      timer?.cancel();
      _waiters.remove(look);
    });
  }

  /// Waits until every change has its answer.
  Future<bool> flush([Duration? patience]) => until((client) => client.pending == 0, patience);

  /// Waits until there is a whole copy of the data.
  Future<bool> ready([Duration? patience]) => until((client) => client.cursor != null, patience);

  /// Ends the connection. What is in the queue stays on the disk.
  Future<void> close() async {
    if (_closed) return;
    await _serial(() async {
      _closed = true;
      _timer?.cancel();
      _drop();
      await _disk.close();
    });
    _settleWaiters();
  }

  // -- the driver

  /// Commits the writes, and only then lets out the rest.
  Future<void> _take(List<Action> actions) async {
    final writes = [...actions.whereType<Write>()];
    if (writes.isNotEmpty) await _disk.apply(writes);
    for (final action in actions) {
      switch (action) {
        case Send(:final event, :final data):
          _socket?.emit(event, data);
        case Tell(:final kind, :final data):
          _told(kind, data);
        case Close():
          _drop();
          await _take(_core.disconnected(_now));
          _told('offline', const {});
        case Load(:final after, :final limit):
          await _take(_core.loadedEntries(await _disk.entries(after, limit), _now));
        case Write() || Connect():
          break;
      }
    }
    _settleWaiters();
    _plan();
  }

  /// A failure is the session's, not the caller's: what is on the disk is all that counts, and it begins anew from it.
  Future<void> _guarded(List<Action> Function() work) async {
    try {
      await _take(work());
      _failures = 0;
    } on Object catch (error) {
      _drop();
      _broken = true;
      _told('failed', {'error': '$error'});
      try {
        await _mend();
      } on Object {
        // It is tried again before whatever comes next.
      }
    }
  }

  void _drop() {
    final socket = _socket;
    _socket = null;
    _incoming = [];
    socket
      ?..clearListeners()
      ..dispose();
  }

  void _told(String kind, Json data) {
    final newToken = _newToken;
    if (kind == 'token_refused' && newToken != null && !_asking) unawaited(_ask(data, newToken));
    try {
      _listen?.call(kind, data);
    } on Object catch (error) {
      Zone.current.print('$device: the listener failed: $error');
    }
  }

  Future<void> _ask(Json error, FutureOr<String?> Function(Json) newToken) async {
    _asking = true;
    try {
      final token = await newToken(error);
      if (token != null && !_closed) await useToken(token);
    } on Object catch (failed) {
      Zone.current.print('$device: no other token: $failed');
    } finally {
      _asking = false;
    }
  }

  void _settleWaiters() {
    for (final look in [..._waiters]) {
      look();
    }
  }

  /// Comes back when there is something to do.
  void _plan() {
    _timer?.cancel();
    if (_closed) return;
    final at = _core.connectAt ?? _core.deadline();
    final wait = at == null ? Limits.idle : (at - _now).clamp(0, Limits.idle).ceil();
    _timer = Timer(Duration(milliseconds: wait), () {
      _serial(() async {
        await _mend();
        final due = _core.connectAt;
        if (due != null && due <= _now && _socket == null) {
          _connect();
        } else {
          await _guarded(() => _core.tick(_now));
        }
      }).ignore();
    });
  }

  void _connect() {
    final url = _urls[_core.node % _urls.length];
    final token = _core.connecting();
    // The library reconnects nothing: when, where and with what is the core's to say.
    final how = io.OptionBuilder()
        .setTransports(['websocket'])
        .setAuth({'token': token})
        .disableReconnection()
        .enableForceNew()
        .disableAutoConnect()
        .build();
    final socket = _socket = io.io(url, how);
    _core.connectAt = null;
    void mine(List<Action> Function() work) => _serial(() async {
          if (identical(_socket, socket)) await _guarded(work);
        }).ignore();
    void ended(Json? error) => mine(() {
          _drop();
          return [..._core.disconnected(_now, error), const Tell('offline', {})];
        });
    socket
      ..onConnect((_) => mine(() => _core.connected(_now, DateTime.now().toUtc().toIso8601String())))
      ..onDisconnect((_) => _drained().then((_) => ended(null)))
      ..onConnectError((dynamic error) {
        final text = error is Map ? '${error['message'] ?? error}' : '$error';
        final refusal = RegExp(r'^(\d{4}): (.*)', dotAll: true).firstMatch(text);
        if (refusal == null) _told('not_connected', {'url': url, 'error': text});
        final more = error is Map && error['data'] is Json ? error['data'] as Json : const <String, dynamic>{};
        ended(refusal == null ? null : {...more, 'error_code': refusal[1], 'error': refusal[2]});
      });
    for (final event in _heard) {
      socket.on(event, (dynamic data) {
        if (!identical(_socket, socket)) return;
        _incoming.add((event, data as Json));
        if (_incoming.length > Limits.frames) return ended(null); // it resumes where it was
        if (!_draining) unawaited(_drained());
      });
    }
    socket.connect();
  }

  /// What came while the disk was busy is taken over together.
  Future<void> _drained() async {
    _draining = true;
    try {
      await _serial(() async {
        _draining = false;
        await _guarded(() {
          final events = _incoming;
          _incoming = [];
          return [for (final (event, data) in events) ..._core.received(event, data, _now)];
        });
      });
    } on StateError {
      // It was closed.
    }
  }
}
