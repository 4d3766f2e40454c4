/// What keeps the queue and the copy.
library;

import 'dart:convert';

import 'actions.dart';

/// The queue and the copy of a device. Only one client at a time may use one.
abstract interface class Disk {
  Future<Snapshot> snapshot();

  /// Entries behind [after], in order.
  Future<List<Entry>> entries(int after, int limit);

  /// Letters behind [after], in order.
  Future<List<Letter>> letters(int after, int limit);

  Future<Row?> record(String table, int id);

  /// Records of a table by their id, behind [after].
  Future<List<Row>> records(String table, int? after, int limit);

  /// Commits the writes together. What it completed for survives the program, writes of the queue a power cut, too.
  Future<void> apply(List<Write> writes);

  Future<void> close();
}

typedef _Copy = Map<String, Map<int, (int, Json?)>>;

/// Keeps nothing beyond the program. For tests.
class MemoryDisk implements Disk {
  String? _queueId;
  int _last = 0;
  int _next = 1;
  int _sent = 0;
  final _entries = <int, Entry>{};
  final _letters = <int, Letter>{};
  String? _tokenGiven;
  String? _token;
  _Copy _copy = {};
  _Copy? _fresh;
  String? _cursor;
  List<String> _owed = [];

  @override
  Future<Snapshot> snapshot() async {
    _fresh = null; // what a program that was killed had not finished
    final all = [..._entries.values, ..._letters.values];
    return Snapshot(
      queueId: _queueId,
      last: _last,
      next: all.fold(_next, (next, each) => each.n >= next ? each.n + 1 : next),
      sent: _sent,
      entries: _entries.length,
      letters: _letters.length,
      size: all.fold(0, (sum, each) => sum + each.size),
      conflicts: {
        for (final letter in _letters.values)
          if (letter.state == 'conflict') letter.error['conflict_id'] as int: (letter.n, letter.size),
      },
      cursor: _cursor,
      owed: _owed,
      tokenGiven: _tokenGiven,
      token: _token,
    );
  }

  @override
  Future<List<Entry>> entries(int after, int limit) async => _behind(_entries.values, after, limit);

  @override
  Future<List<Letter>> letters(int after, int limit) async => _behind(_letters.values, after, limit);

  static List<E> _behind<E extends Entry>(Iterable<E> all, int after, int limit) {
    final found = [...all.where((each) => each.n > after)]..sort((a, b) => a.n.compareTo(b.n));
    return found.take(limit).toList();
  }

  @override
  Future<Row?> record(String table, int id) async => _row(id, _copy[table]?[id]);

  @override
  Future<List<Row>> records(String table, int? after, int limit) async {
    final rows = _copy[table] ?? const {};
    final ids = [...rows.keys.where((id) => after == null || id > after)]..sort();
    return [...ids.take(limit).map((id) => _row(id, rows[id])).nonNulls];
  }

  static Row? _row(int id, (int, Json?)? row) => switch (row) {
        (final version, final Json data) => Row(id, version, data),
        _ => null,
      };

  @override
  Future<void> apply(List<Write> writes) async => writes.forEach(_apply);

  void _apply(Write write) {
    switch (write) {
      case Enqueue(:final n, :final update, :final size, :final replaces):
        _entries[n] = Entry(n, jsonDecode(jsonEncode(update)) as Json, size);
        _next = n + 1;
        _letters.remove(replaces);
      case MarkSent(:final n):
        _sent = n;
      case Settle(:final n, :final last):
        _entries.remove(n);
        _last = last;
      case Bury(:final n, :final state, :final error, :final last):
        final entry = _entries.remove(n);
        if (entry != null) _letters[n] = Letter(n, entry.update, entry.size, state, error);
        _last = last;
      case Forget(:final n):
        _letters.remove(n);
      case QueueIs(:final id, :final last, :final sent):
        (_queueId, _last, _sent) = (id, last, sent);
      case LastIs(:final last):
        _last = last;
      case TokenIs(:final given, :final token):
        (_tokenGiven, _token) = (given, token);
      case Begin():
        _fresh = {};
      case Put(:final toCopy, :final toFresh):
        if (toCopy) _put(_copy, write, keepDeleted: false);
        final fresh = _fresh;
        if (toFresh && fresh != null) _put(fresh, write, keepDeleted: true);
      case CursorIs(:final cursor):
        _cursor = cursor;
      case Switch(:final tables, :final cursor):
        final fresh = _fresh;
        if (fresh == null) throw StateError('there is no new copy to switch to');
        for (final rows in fresh.values) {
          rows.removeWhere((_, row) => row.$2 == null);
        }
        if (tables == null) {
          _copy = fresh;
        } else {
          for (final table in tables) {
            _copy[table] = fresh[table] ?? {};
          }
        }
        _fresh = null;
        _cursor = cursor;
      case Abandon():
        _fresh = null;
      case Drop(:final tables, :final others):
        for (final copy in [_copy, _fresh].nonNulls) {
          copy.removeWhere((table, _) => tables.contains(table) != others);
        }
      case Owed(:final tables):
        _owed = tables;
    }
  }

  static void _put(_Copy copy, Put write, {required bool keepDeleted}) {
    final rows = copy.putIfAbsent(write.table, () => {});
    if ((rows[write.id]?.$1 ?? 0) > write.version) return;
    if (write.data == null && !keepDeleted) {
      rows.remove(write.id);
    } else {
      rows[write.id] = (write.version, write.data);
    }
  }

  @override
  Future<void> close() async {}
}
