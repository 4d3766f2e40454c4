export type { Action, Entry, Json, Letter, Snapshot, Write } from "./actions.js";
export { type Change, checked, claimsOf, InvalidChange, newRecordId, QueueFull } from "./change.js";
export { Core, numberOf } from "./core.js";
export { type Disk, Memory, MemoryDisk, type Row } from "./disk.js";
export { Client, type ClientOptions, type Status } from "./client.js";
