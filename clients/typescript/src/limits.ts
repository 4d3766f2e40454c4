// Every bound of the library, and of what Tillsync takes. Times are milliseconds.

/** Bytes of a record's data, its nesting, and bytes of a table's name. */
export const RECORD_DATA = 256 * 1024;
export const DATA_DEPTH = 30;
export const TABLE_NAME = 100;
/** Entries that are sent and not answered yet, and their bytes, but for the first. */
export const WINDOW = 32;
export const WINDOW_BYTES = 1 << 20;
/** How long an answer may take. */
export const PATIENCE = 30_000;
/** Before the next try to connect: the first pause, and the longest. */
export const BACKOFF = 1_000;
export const BACKOFF_MAX = 30_000;
/** Before an entry or a sync is sent again, where the cluster does not say. */
export const PAUSE = 100;
export const PAUSE_MAX = 25_600;
/** Before a refused token is tried again, and a renewal. */
export const REFUSED_PAUSE = 30_000;
export const RENEW_PAUSE = 60_000;
/** The longest life of a renewed token. */
export const PAIRED_LIFE = 86_400_000;
/** Syncs that the app asked for and that wait for their turn. */
export const SYNCS_WANTED = 64;
/** Defaults of what the queue and its letters may hold together. */
export const QUEUE_ENTRIES = 100_000;
export const QUEUE_BYTES = 256 << 20;
/** Events that came and are not taken over yet; with more the session is ended, and resumes. */
export const FRAMES = 10_000;
/** The longest time without a look at what is due. */
export const IDLE = 5_000;
/** Rows that are read in one go. */
export const ROWS = 500;
