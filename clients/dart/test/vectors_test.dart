// The vectors that every library runs: their README says what the steps mean. Each runs on every disk of the library.
import 'dart:convert';
import 'dart:io';

import 'package:test/test.dart';
import 'package:tillsync_client/sqlite.dart';
import 'package:tillsync_client/src/actions.dart';
import 'package:tillsync_client/src/core.dart';
import 'package:tillsync_client/src/disk.dart';

const _wall = '2026-11-28T12:00:00.000Z';
const _all = 1 << 30;

/// A disk, and how the same one is opened again.
typedef Place = Disk Function();

Place _memory() {
  final disk = MemoryDisk();
  return () => disk;
}

Place _sqlite() {
  final folder = Directory.systemTemp.createTempSync('tillsync-').path;
  return () => SqliteDisk(folder);
}

class Bench {
  Bench(this.place, this.given) : disk = place();

  final Place place;
  String given;
  Disk disk;
  late Core core;
  double now = 0;
  List<List<dynamic>> sent = [];
  List<(String, Json)> told = [];
  int closes = 0;
  double? connectAt;

  Future<void> fill(Json held) async {
    final queue = held['queue'] as Json;
    final store = held['store'] as Json;
    await disk.apply([
      QueueIs(queue['id'] as String, queue['last'] as int, queue['sent'] as int),
      for (final [n as int, update as Json] in (queue['entries'] as List<dynamic>).cast<List<dynamic>>())
        Enqueue(n, update, jsonEncode(update).length, null),
      const Begin(null),
      for (final MapEntry(:key, :value) in (store['records'] as Json).entries)
        if ((key.split('/'), value) case ([final table, final id], [final int version, final Json data]))
          Put(table, int.parse(id), version, data, toCopy: false, toFresh: true),
      Switch(null, store['cursor'] as String?),
      Owed([...(store['owed'] as List<dynamic>? ?? const []).cast<String>()]),
    ]);
  }

  Future<void> begin() async {
    final snapshot = await disk.snapshot();
    var drawn = int.parse(snapshot.queueId?.substring(1) ?? '0');
    core = Core('till-1', given, snapshot, random: () => 0.5, newId: () => 'q${++drawn}');
    await take(core.start());
  }

  Future<void> take(List<Action> actions) async {
    await disk.apply([...actions.whereType<Write>()]);
    for (final action in actions) {
      switch (action) {
        case Send(:final event, :final data):
          sent.add([event, jsonDecode(jsonEncode(data))]);
        case Tell(:final kind, :final data):
          told.add((kind, jsonDecode(jsonEncode(data)) as Json));
        case Close():
          closes++;
        case Connect(:final at):
          connectAt = at;
        case Load(:final after, :final limit):
          await take(core.loadedEntries(await disk.entries(after, limit), now));
        case Write():
          break;
      }
    }
  }

  Future<void> queueUp(Json update, [Letter? letter]) async {
    final write = core.prepare(update, letter);
    await disk.apply([write]);
    await take(core.enqueued(write, now, letter?.size ?? 0));
  }

  Future<Letter> letter(int n) async => (await disk.letters(n - 1, 1)).single;

  Future<void> act(Json step) async {
    switch (step) {
      case {'push': final Json push}:
        await queueUp({'device_id': 'till-1', ...push});
      case {'connected': _}:
        core.connecting();
        await take(core.connected(now, _wall));
      case {'received': [final String event, final Json data]}:
        await take(core.received(event, data, now));
      case {'disconnected': final Json? error}:
        await take(core.disconnected(now, error));
      case {'tick': _}:
        await take(core.tick(now));
      case {'sync': final List<dynamic>? tables}:
        await take(core.sync(tables?.cast<String>(), now));
      case {'new_token': final String token}:
        await take(core.newToken(token, now));
      case {'restart': final Json restart}:
        await disk.close();
        given = restart['given'] as String? ?? given;
        disk = place();
        await begin();
      case {'forget': final int n}:
        final size = (await letter(n)).size;
        await disk.apply([Forget(n)]);
        core.forgotten(n, size);
      case {'resend': {'n': final int n, 'new_data': final Json data}}:
        final resent = await letter(n);
        await queueUp({...resent.update, 'new_data': data}, resent);
      default:
        fail('a step without an input');
    }
  }

  Future<Json> store() async => {
        for (final table in ['sales', 'stock', 'prices', 'old'])
          for (final row in await disk.records(table, null, _all)) '$table/${row.id}': [row.version, row.data],
      };

  Future<void> check(Json step) async {
    expect(sent, step['send'] ?? const <dynamic>[], reason: 'send');
    expect(closes, step['close'] == true ? 1 : 0, reason: 'close');
    final tell = [...(step['tell'] as List<dynamic>? ?? const []).cast<List<dynamic>>()];
    expect([for (final (kind, _) in told) kind], [for (final each in tell) each.first], reason: 'tell');
    for (final (at, each) in tell.indexed) {
      for (final MapEntry(:key, :value) in (each[1] as Json).entries) {
        expect(told[at].$2[key], value, reason: 'tell $key');
      }
    }
    final found = <String, Object? Function()>{
      'connect_at': () => connectAt,
      'queue_is': () => {'id': core.queueId, 'last': core.last, 'sent': core.sent},
      'cursor': () => core.cursor,
      'owed': () => core.owed,
      'token': () => core.token,
      'refused': () => core.refused?['error_code'],
    };
    for (final MapEntry(:key, :value) in found.entries) {
      if (step.containsKey(key)) expect(value(), step[key], reason: key);
    }
    if (step.containsKey('queue')) {
      final entries = await disk.entries(0, _all);
      expect([for (final entry in entries) [entry.n, core.stateOf(entry.n)]], step['queue'], reason: 'queue');
    }
    if (step.containsKey('letters')) {
      final letters = await disk.letters(0, _all);
      expect(
        [for (final letter in letters) [letter.n, letter.state, letter.error['error_code']]],
        step['letters'],
        reason: 'letters',
      );
    }
    if (step.containsKey('store')) expect(await store(), step['store'], reason: 'store');
  }

  /// The core's numbers are the disk's. (A snapshot of the memory's disk is a new beginning, so only the other one's.)
  Future<void> compare() async {
    if (disk is MemoryDisk) return;
    final held = await disk.snapshot();
    expect(
      [held.queueId, held.last, held.next, held.sent, held.entries, held.letters, held.size, held.cursor],
      [core.queueId, core.last, core.next, core.sent, core.entries, core.letters, core.size, core.cursor],
    );
  }
}

void main() {
  final folder = Directory('../vectors');
  final files = [...folder.listSync().whereType<File>().where((file) => file.path.endsWith('.json'))];
  test('there are vectors', () => expect(files, isNotEmpty));
  for (final file in files) {
    for (final each in (jsonDecode(file.readAsStringSync()) as List<dynamic>).cast<Json>()) {
      for (final (kind, place) in [('memory', _memory), ('sqlite', _sqlite)]) {
        test('${file.uri.pathSegments.last}, $kind: ${each['name']}', () async {
          final bench = Bench(place(), each['token'] as String? ?? 'token-1');
          if (each['disk'] case final Json held) await bench.fill(held);
          await bench.begin();
          for (final step in (each['steps'] as List<dynamic>).cast<Json>()) {
            bench
              ..now = (step['at'] as num? ?? bench.now).toDouble()
              ..sent = []
              ..told = []
              ..closes = 0;
            await bench.act(step);
            await bench.check(step);
            await bench.compare();
          }
          await bench.disk.close();
        });
      }
    }
  }
}
