// The client's disk without the copy, which RxDB keeps: the queue goes to the app's disk, the pages of a full sync to
// whoever waits for it.
import type { Disk, Snapshot, Write } from "@tillsync/client";

const OF_COPY = ["begin", "put", "cursorIs", "switch", "abandon", "drop", "owed"] as const;
export type CopyWrite = Extract<Write, { do: (typeof OF_COPY)[number] }>;
const isOfCopy = (write: Write): write is CopyWrite => OF_COPY.some((kind) => kind === write.do);

export class QueueDisk implements Disk {
  constructor(private readonly inner: Disk, private readonly heard: (write: CopyWrite) => void) {}

  snapshot = async (): Promise<Snapshot> => ({ ...(await this.inner.snapshot()), cursor: null, owed: [] });
  entries: Disk["entries"] = (after, limit) => this.inner.entries(after, limit);
  letters: Disk["letters"] = (after, limit) => this.inner.letters(after, limit);
  record: Disk["record"] = async () => null;
  records: Disk["records"] = async () => [];

  async apply(writes: readonly Write[]): Promise<void> {
    const ofQueue = writes.filter((write) => !isOfCopy(write));
    if (ofQueue.length) await this.inner.apply(ofQueue);
    for (const write of writes) if (isOfCopy(write)) this.heard(write);
  }

  close = (): Promise<void> => this.inner.close();
}
