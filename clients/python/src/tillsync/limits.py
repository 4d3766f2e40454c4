"""Every bound of the library, and of what Tillsync takes."""

RECORD_DATA = 256 * 1024
"""Bytes of a record's data."""
DATA_DEPTH = 30
"""Nesting of a record's data: the frame takes 32 levels, and two are its own."""
TABLE_NAME = 100
"""Bytes of a table's name."""
RECORD_IDS = 1 << 53
"""Ids are drawn below this: JavaScript's numbers are exact to here."""

WINDOW = 32
"""Entries that are sent and not answered yet."""
WINDOW_BYTES = 1 << 20
"""Their bytes, but for the first."""
PATIENCE = 30_000
"""Milliseconds that an answer may take."""
BACKOFF = 1_000
BACKOFF_MAX = 30_000
"""Milliseconds before the next try to connect: the first, and the longest."""
PAUSE = 100
PAUSE_MAX = 25_600
"""Milliseconds before an entry or a sync is sent again, where the cluster does not say."""
REFUSED_PAUSE = 30_000
"""Milliseconds before a refused token is tried again."""
RENEW_PAUSE = 60_000
"""Milliseconds before a renewal is tried again."""
PAIRED_LIFE = 86_400_000
"""Milliseconds that a renewed token lives at most."""
SYNCS_WANTED = 64
"""Syncs that the app asked for and that wait for their turn."""

QUEUE_ENTRIES = 100_000
QUEUE_BYTES = 256 << 20
"""Defaults of what the queue and its letters may hold together."""
FRAMES = 64
"""Frames that are read ahead, and taken over in one transaction."""
IDLE = 5.0
SHRINKING = 0.1
"""Seconds after which a session that has nothing to do looks after its disk, and between two looks while the
disk gives room back."""
CALM = 60_000
"""Milliseconds without a failure of the disk after which the pause before a new beginning is short again."""
ROWS = 500
"""Rows that are read or cleared in one go."""
