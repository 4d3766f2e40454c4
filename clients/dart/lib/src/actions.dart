/// What the core hands out for others to do. Within one list all writes are committed before anything is sent or told.
library;

typedef Json = Map<String, dynamic>;

/// An entry of the queue: a change that is not answered for good yet.
class Entry {
  const Entry(this.n, this.update, this.size);

  final int n;
  final Json update;
  final int size;
}

/// What was refused for good ([state] is `refused`) or waits for a decision (`conflict`).
class Letter extends Entry {
  const Letter(super.n, super.update, super.size, this.state, this.error);

  final String state;
  final Json error;
}

/// A record as the cluster had it when it was heard from last.
class Row {
  const Row(this.id, this.version, this.data);

  final int id;
  final int version;
  final Json data;
}

sealed class Action {
  const Action();
}

sealed class Write extends Action {
  const Write();
}

// -- writes of the queue

sealed class QueueWrite extends Write {
  const QueueWrite();
}

/// A new entry; [replaces] is the letter that it was, if it is sent once more.
class Enqueue extends QueueWrite {
  const Enqueue(this.n, this.update, this.size, this.replaces);

  final int n;
  final Json update;
  final int size;
  final int? replaces;
}

/// Entries up to [n] may reach the cluster from now on.
class MarkSent extends QueueWrite {
  const MarkSent(this.n);

  final int n;
}

class Settle extends QueueWrite {
  const Settle(this.n, this.last);

  final int n;
  final int last;
}

class Bury extends QueueWrite {
  const Bury(this.n, this.state, this.error, this.last);

  final int n;
  final String state;
  final Json error;
  final int last;
}

class Forget extends QueueWrite {
  const Forget(this.n);

  final int n;
}

class QueueIs extends QueueWrite {
  const QueueIs(this.id, this.last, this.sent);

  final String id;
  final int last;
  final int sent;
}

class LastIs extends QueueWrite {
  const LastIs(this.last);

  final int last;
}

class TokenIs extends QueueWrite {
  const TokenIs(this.given, this.token);

  final String given;
  final String token;
}

// -- writes of the copy

sealed class StoreWrite extends Write {
  const StoreWrite();
}

/// A full sync begins: an empty new copy. One that was not finished goes.
class Begin extends StoreWrite {
  const Begin(this.tables);

  final List<String>? tables;
}

/// A record's change, unless that copy has a later one. [data] is null for a delete.
class Put extends StoreWrite {
  const Put(this.table, this.id, this.version, this.data, {required this.toCopy, required this.toFresh});

  final String table;
  final int id;
  final int version;
  final Json? data;
  final bool toCopy;
  final bool toFresh;
}

class CursorIs extends StoreWrite {
  const CursorIs(this.cursor);

  final String? cursor;
}

/// The new copy is whole, and is the copy from now on (of these tables, if it is of some).
class Switch extends StoreWrite {
  const Switch(this.tables, this.cursor);

  final List<String>? tables;
  final String? cursor;
}

class Abandon extends StoreWrite {
  const Abandon();
}

/// Tables that may not be read any more go: those named, or with [others] all that are not named.
class Drop extends StoreWrite {
  const Drop(this.tables, {required this.others});

  final List<String> tables;
  final bool others;
}

/// Tables that must still be synced in full, also after a restart.
class Owed extends StoreWrite {
  const Owed(this.tables);

  final List<String> tables;
}

// -- effects

class Send extends Action {
  const Send(this.event, this.data);

  final String event;
  final Json data;
}

/// The connection is to end; the driver says `disconnected` when it has.
class Close extends Action {
  const Close();
}

class Connect extends Action {
  const Connect(this.at);

  final double at;
}

/// Hand `loadedEntries` the entries after [after], at most [limit].
class Load extends Action {
  const Load(this.after, this.limit);

  final int after;
  final int limit;
}

class Tell extends Action {
  const Tell(this.kind, this.data);

  final String kind;
  final Json data;
}

/// What the disk holds when a program starts.
class Snapshot {
  const Snapshot({
    this.queueId,
    this.last = 0,
    this.next = 1,
    this.sent = 0,
    this.entries = 0,
    this.letters = 0,
    this.size = 0,
    this.conflicts = const {},
    this.cursor,
    this.owed = const [],
    this.tokenGiven,
    this.token,
  });

  final String? queueId;
  final int last;
  final int next;
  final int sent;
  final int entries;
  final int letters;
  final int size;

  /// The number and size of the letter that waits for the decision of each conflict.
  final Map<int, (int, int)> conflicts;
  final String? cursor;
  final List<String> owed;
  final String? tokenGiven;
  final String? token;
}
