/// The disk of an app: two SQLite files in one folder.
///
/// The queue's file is synced at every commit: what a call completed for survives a power cut. The store's is not: what
/// is lost of it at a power cut comes again, because a change and the cursor after it are written together.
library;

import 'dart:convert';
import 'dart:io';

import 'package:sqlite3/sqlite3.dart';

import 'src/actions.dart' hide Row;
import 'src/actions.dart' as actions;
import 'src/disk.dart';

const _queueSchema = '''
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (n INTEGER PRIMARY KEY, size INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS letters (
    n INTEGER PRIMARY KEY, size INTEGER NOT NULL, state TEXT NOT NULL, body TEXT NOT NULL, error TEXT NOT NULL
);
''';

const _storeSchema = '''
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    copy INTEGER NOT NULL, tab TEXT NOT NULL, id INTEGER NOT NULL, version INTEGER NOT NULL, data TEXT,
    PRIMARY KEY (copy, tab, id)
) WITHOUT ROWID;
''';

Database _opened(String path, String schema, String synchronous) {
  final file = sqlite3.open(path);
  try {
    file
      ..execute('PRAGMA locking_mode=EXCLUSIVE') // held as long as the file is open
      ..execute('PRAGMA journal_mode=WAL')
      ..execute('PRAGMA synchronous=$synchronous')
      ..execute('BEGIN EXCLUSIVE')
      ..execute(schema)
      ..execute('COMMIT');
    return file;
  } on Object {
    file.dispose();
    rethrow;
  }
}

class SqliteDisk implements Disk {
  SqliteDisk._(this._queue, this._store);

  /// [folder] is one that the app may write to, and that nothing else uses.
  factory SqliteDisk(String folder) {
    Directory(folder).createSync(recursive: true);
    final queue = _opened('$folder/queue.sqlite', _queueSchema, 'FULL');
    try {
      final disk = SqliteDisk._(queue, _opened('$folder/store.sqlite', _storeSchema, 'NORMAL'));
      disk._together(disk._store, disk._abandon); // what a full sync had written when the program ended
      return disk;
    } on Object {
      queue.dispose();
      rethrow;
    }
  }

  final Database _queue;
  final Database _store;

  // -- what is on it

  static T? _meta<T>(Database file, String name) {
    final rows = file.select('SELECT value FROM meta WHERE name = ?', [name]);
    return rows.isEmpty ? null : rows.first['value'] as T?;
  }

  static void _setMeta(Database file, String name, Object? value) =>
      file.execute('INSERT OR REPLACE INTO meta VALUES (?, ?)', [name, value]);

  static Json _json(Object? text) => jsonDecode(text as String) as Json;

  @override
  Future<Snapshot> snapshot() async {
    final entries = _queue.select('SELECT count(*) AS c, ifnull(sum(size), 0) AS s, max(n) AS n FROM entries').first;
    final letters = _queue.select('SELECT count(*) AS c, ifnull(sum(size), 0) AS s, max(n) AS n FROM letters').first;
    final conflicts = _queue.select("SELECT n, size, error FROM letters WHERE state = 'conflict'");
    final used = [(entries['n'] as int? ?? 0) + 1, (letters['n'] as int? ?? 0) + 1];
    return Snapshot(
      queueId: _meta(_queue, 'queue'),
      last: _meta(_queue, 'last') ?? 0,
      next: used.fold(_meta<int>(_queue, 'next') ?? 1, (next, each) => each > next ? each : next),
      sent: _meta(_queue, 'sent') ?? 0,
      entries: entries['c'] as int,
      letters: letters['c'] as int,
      size: (entries['s'] as int) + (letters['s'] as int),
      conflicts: {
        for (final row in conflicts)
          _json(row['error'])['conflict_id'] as int: (row['n'] as int, row['size'] as int),
      },
      cursor: _meta(_store, 'cursor'),
      owed: [...(jsonDecode(_meta<String>(_store, 'owed') ?? '[]') as List<dynamic>).cast<String>()],
      tokenGiven: _meta(_queue, 'token_given'),
      token: _meta(_queue, 'token'),
    );
  }

  @override
  Future<List<Entry>> entries(int after, int limit) async {
    final rows = _queue.select('SELECT n, size, body FROM entries WHERE n > ? ORDER BY n LIMIT ?', [after, limit]);
    return [for (final row in rows) Entry(row['n'] as int, _json(row['body']), row['size'] as int)];
  }

  @override
  Future<List<Letter>> letters(int after, int limit) async {
    final rows = _queue.select('SELECT * FROM letters WHERE n > ? ORDER BY n LIMIT ?', [after, limit]);
    return [
      for (final row in rows)
        Letter(row['n'] as int, _json(row['body']), row['size'] as int, row['state'] as String, _json(row['error'])),
    ];
  }

  static actions.Row _row(Map<String, dynamic> row) =>
      actions.Row(row['id'] as int, row['version'] as int, _json(row['data']));

  @override
  Future<actions.Row?> record(String table, int id) async {
    const select = 'SELECT * FROM records WHERE copy = ? AND tab = ? AND id = ? AND data IS NOT NULL';
    final rows = _store.select(select, [_copy, table, id]);
    return rows.isEmpty ? null : _row(rows.first);
  }

  @override
  Future<List<actions.Row>> records(String table, int? after, int limit) async {
    final rows = _store.select(
      'SELECT * FROM records WHERE copy = ? AND tab = ? AND (? IS NULL OR id > ?) AND data IS NOT NULL '
      'ORDER BY id LIMIT ?',
      [_copy, table, after, after, limit],
    );
    return [for (final row in rows) _row(row)];
  }

  // -- writes

  @override
  Future<void> apply(List<Write> writes) async {
    final ofStore = writes.whereType<StoreWrite>();
    final ofQueue = writes.whereType<QueueWrite>();
    if (ofStore.isNotEmpty) _together(_store, () => ofStore.forEach(_writeStore));
    if (ofQueue.isNotEmpty) _together(_queue, () => ofQueue.forEach(_writeQueue));
  }

  void _together(Database file, void Function() work) {
    file.execute('BEGIN IMMEDIATE');
    try {
      work();
      file.execute('COMMIT');
    } on Object {
      if (!file.autocommit) file.execute('ROLLBACK');
      rethrow;
    }
  }

  void _writeQueue(QueueWrite write) {
    switch (write) {
      case Enqueue(:final n, :final update, :final size, :final replaces):
        _queue.execute('INSERT INTO entries VALUES (?, ?, ?)', [n, size, jsonEncode(update)]);
        _setMeta(_queue, 'next', n + 1);
        if (replaces != null) _queue.execute('DELETE FROM letters WHERE n = ?', [replaces]);
      case MarkSent(:final n):
        _setMeta(_queue, 'sent', n);
      case Settle(:final n, :final last):
        _queue.execute('DELETE FROM entries WHERE n = ?', [n]);
        _setMeta(_queue, 'last', last);
      case Bury(:final n, :final state, :final error, :final last):
        const move = 'INSERT INTO letters SELECT n, size, ?, body, ? FROM entries WHERE n = ?';
        _queue
          ..execute(move, [state, jsonEncode(error), n])
          ..execute('DELETE FROM entries WHERE n = ?', [n]);
        _setMeta(_queue, 'last', last);
      case Forget(:final n):
        _queue.execute('DELETE FROM letters WHERE n = ?', [n]);
      case QueueIs(:final id, :final last, :final sent):
        _setMeta(_queue, 'queue', id);
        _setMeta(_queue, 'last', last);
        _setMeta(_queue, 'sent', sent);
      case LastIs(:final last):
        _setMeta(_queue, 'last', last);
      case TokenIs(:final given, :final token):
        _setMeta(_queue, 'token_given', given);
        _setMeta(_queue, 'token', token);
    }
  }

  int get _copy => _meta<int>(_store, 'copy') ?? 0;

  int? get _fresh => _meta<int>(_store, 'fresh');

  void _writeStore(StoreWrite write) {
    switch (write) {
      case Begin():
        _abandon();
        _setMeta(_store, 'fresh', _copy + 1);
      case Put(:final toCopy, :final toFresh):
        if (toCopy) _put(_copy, write, keepDeleted: false);
        final fresh = _fresh;
        if (toFresh && fresh != null) _put(fresh, write, keepDeleted: true);
      case CursorIs(:final cursor):
        _setMeta(_store, 'cursor', cursor);
      case Switch(:final tables, :final cursor):
        _switch(tables);
        _setMeta(_store, 'cursor', cursor);
      case Abandon():
        _abandon();
      case Drop(:final tables, :final others):
        final marks = List.filled(tables.length, '?').join(',');
        _store.execute('DELETE FROM records WHERE tab ${others ? 'NOT ' : ''}IN ($marks)', tables);
      case Owed(:final tables):
        _setMeta(_store, 'owed', jsonEncode(tables));
    }
  }

  void _put(int copy, Put write, {required bool keepDeleted}) {
    final key = [copy, write.table, write.id];
    final data = write.data;
    if (data == null && !keepDeleted) {
      const older = 'DELETE FROM records WHERE copy = ? AND tab = ? AND id = ? AND version <= ?';
      return _store.execute(older, [...key, write.version]);
    }
    _store.execute(
      'INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE '
      'SET version = excluded.version, data = excluded.data WHERE version <= excluded.version',
      [...key, write.version, if (data == null) null else jsonEncode(data)],
    );
  }

  void _switch(List<String>? tables) {
    final (copy, fresh) = (_copy, _fresh);
    if (fresh == null) throw StateError('there is no new copy to switch to');
    if (tables == null) {
      _setMeta(_store, 'copy', fresh);
      _store.execute('DELETE FROM records WHERE copy = ?', [copy]);
    } else {
      final marks = List.filled(tables.length, '?').join(',');
      _store
        ..execute('DELETE FROM records WHERE copy = ? AND tab IN ($marks)', [copy, ...tables])
        ..execute('DELETE FROM records WHERE copy = ? AND data IS NULL', [fresh])
        ..execute('UPDATE records SET copy = ? WHERE copy = ? AND tab IN ($marks)', [copy, fresh, ...tables]);
    }
    _store
      ..execute('DELETE FROM records WHERE copy = ? AND data IS NULL', [fresh])
      ..execute("DELETE FROM meta WHERE name = 'fresh'");
  }

  void _abandon() {
    final fresh = _fresh;
    if (fresh == null) return;
    _store
      ..execute('DELETE FROM records WHERE copy = ?', [fresh])
      ..execute("DELETE FROM meta WHERE name = 'fresh'");
  }

  @override
  Future<void> close() async {
    _queue.dispose();
    _store.dispose();
  }
}
