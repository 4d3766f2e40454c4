//! What is known of a record in memory, and where the rest of it stands.

use crate::ids::{DeviceNumber, RecordId, Seq, TableId, UnixMs};
use bytes::Bytes;

/// What can be said of a record without reading rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordNow {
    Absent,
    /// Its data: `None` for a deleted record.
    Here {
        version: Seq,
        timestamp_ms: UnixMs,
        data: Option<Bytes>,
    },
    /// Read the row `RowKey::Record { table, id }`.
    InRows(StoredData),
}

/// Where a record's data stands: in its change `seq`, or in its own row when that was compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredData {
    pub table: TableId,
    pub id: RecordId,
    pub seq: Seq,
    pub timestamp_ms: UnixMs,
    /// The number of the device that wrote it.
    pub device: DeviceNumber,
}
