export { newId } from "./records.js";
export { Tillsync, type ReplicateOptions, type TillsyncOptions } from "./tillsync.js";
export { Refused } from "./rest.js";
export type { Checkpoint } from "./replication.js";
