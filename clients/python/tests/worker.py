"""A till that is killed by its test: worker.py URLS DEVICE FOLDER TABLE BEGIN. Prints the sale that is on the disk."""

import os
import sys

import tillsync

urls, device, folder, table, begin = sys.argv[1:]
till = tillsync.Till(urls.split(), os.environ["TILLSYNC_TOKEN"], folder, device=device)
for i in range(int(begin), 1 << 30):
    till.until(lambda status: status.pending < 200)
    till.insert(table, {"i": i})
    print(i, flush=True)
