/// Changes as they are queued, and what is checked of them before.
library;

import 'dart:convert';
import 'dart:math';

import 'actions.dart';
import 'tables.dart';

/// A change that Tillsync would never take. Nothing was queued. [field] names what is wrong.
class InvalidChange implements Exception {
  const InvalidChange(this.field, this.why);

  final String field;
  final String why;

  @override
  String toString() => '$field $why';
}

/// The queue and its letters hold as much as they may. Nothing was queued.
class QueueFull implements Exception {
  const QueueFull(this.why);

  final String why;

  @override
  String toString() => why;
}

int sizeOf(Object? value) => utf8.encode(jsonEncode(value)).length;

final _random = Random.secure();

/// The greatest id that is exact in every language: 2^53 - 1.
const maxRecordId = 0x1fffffffffffff;

/// A record's id that no other device draws: 1 to 2^53 - 1. Counters on two tills collide; this does not.
int newRecordId() {
  for (;;) {
    final id = _random.nextInt(1 << 21) * 0x100000000 + _random.nextInt(0x100000000);
    if (id > 0) return id;
  }
}

/// 128 random bits.
String newQueueId() => List.generate(16, (_) => _random.nextInt(256).toRadixString(16).padLeft(2, '0')).join();

/// What a token says of itself. It is not verified: only the cluster can.
Json claimsOf(String token) {
  try {
    final body = utf8.decode(base64Url.decode(base64Url.normalize(token.split('.')[1])));
    final claims = jsonDecode(body);
    if (claims is Json && claims['sub'] is String) return claims;
  } on Object {
    // It is none.
  }
  throw const FormatException('the token is none, or names no device');
}

int _depthOf(Object? value, [int levels = 0]) {
  if (levels > Limits.dataDepth) return levels;
  final inner = switch (value) {
    final Map<dynamic, dynamic> map => map.values,
    final List<dynamic> list => list,
    _ => null,
  };
  if (inner == null) return levels;
  return inner.fold(levels + 1, (most, each) => max(most, _depthOf(each, levels + 1)));
}

/// What JSON has no place for, or Tillsync refuses.
String? _reasonAgainst(Object? value) => switch (value) {
      null || bool() || int() => null,
      final double number => number.isFinite ? null : 'has a number that is none',
      final String text => _isWellFormed(text) ? null : 'has half a surrogate pair',
      final List<dynamic> list => list.map(_reasonAgainst).nonNulls.firstOrNull,
      final Map<dynamic, dynamic> map when map.keys.any((key) => key is! String) => 'has a key that is no string',
      final Map<dynamic, dynamic> map => map.keys.followedBy(map.values).map(_reasonAgainst).nonNulls.firstOrNull,
      _ => 'has a value that is no JSON (${value.runtimeType})',
    };

bool _isWellFormed(String text) => text.runes.every((rune) => rune < 0xd800 || rune > 0xdfff);

/// The `data_update` of a change, if Tillsync can take it.
Json checked(
  String device, {
  required String table,
  required int id,
  Json? data,
  String operation = 'insert',
  int? baseVersion,
  String? timestamp,
}) {
  final isControl = RegExp(r'\p{Cc}', unicode: true);
  if (table.trim().isEmpty || isControl.hasMatch(table) || !_isWellFormed(table)) {
    throw const InvalidChange('table_name', 'must be a name that can be seen');
  }
  if (utf8.encode(table).length > Limits.tableName) {
    throw const InvalidChange('table_name', 'has more than ${Limits.tableName} bytes');
  }
  if (!const ['insert', 'update', 'delete'].contains(operation)) {
    throw const InvalidChange('operation', 'is unknown');
  }
  if (baseVersion != null && baseVersion < 0) throw const InvalidChange('base_version', 'must be a count');
  final update = <String, dynamic>{
    'device_id': device,
    'table_name': table,
    'record_id': id,
    'operation': operation,
  };
  if (operation != 'delete') {
    if (data == null) throw const InvalidChange('new_data', 'must be an object');
    if (_depthOf(data) > Limits.dataDepth) {
      throw const InvalidChange('new_data', 'is nested deeper than ${Limits.dataDepth} levels');
    }
    final why = _reasonAgainst(data);
    if (why != null) throw InvalidChange('new_data', why);
    if (sizeOf(data) > Limits.recordData) {
      throw const InvalidChange('new_data', 'has more than ${Limits.recordData} bytes');
    }
    update['new_data'] = jsonDecode(jsonEncode(data)); // the app may go on changing what it gave
  }
  if (baseVersion != null) update['base_version'] = baseVersion;
  if (timestamp != null) update['timestamp'] = timestamp;
  return update;
}
