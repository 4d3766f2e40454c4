/// A till that sells through any outage, and ends with what its Tillsync cluster has.
library;

export 'src/actions.dart' show Entry, Json, Letter, Row;
export 'src/change.dart' show InvalidChange, QueueFull, newRecordId;
export 'src/client.dart';
export 'src/disk.dart' show Disk, MemoryDisk;
export 'src/tables.dart' show Events, Retry, errorCodes;
