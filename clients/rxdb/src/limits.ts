// Every bound of the plugin. Times are milliseconds.

/** How long an answer to a request may take. */
export const PATIENCE = 30_000;
/** Tries of a request, each at the next node, before RxDB is told; and the pause between two of them, which doubles. */
export const TRIES = 6;
export const PAUSE = 100;
/** Requests of one replication at a time. */
export const READS = 8;
/** The changes that `GET /sync/changes` gives at most. */
export const PAGE = 1000;
/** After a failure RxDB asks again. */
export const RETRY = 2_000;
/** Documents that are read in one go. */
export const ROWS = 1000;
