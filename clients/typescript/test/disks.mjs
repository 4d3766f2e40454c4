// The disks that there are here; each place opens the same disk again.
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import "fake-indexeddb/auto";
import { IdbDisk } from "../dist/browser.js";
import { MemoryDisk } from "../dist/index.js";
import { FileDisk } from "../dist/node.js";

let names = 0;

export const disks = {
  memory: async () => {
    const disk = new MemoryDisk();
    return {
      open: async () => {
        disk.memory.fresh = null; // as what a killed program had not finished
        return disk;
      },
    };
  },
  indexeddb: async () => {
    const name = `vectors ${++names}`;
    return { open: () => IdbDisk.open(name) };
  },
  file: async () => {
    const folder = mkdtempSync(join(tmpdir(), "tillsync-"));
    return { folder, open: async () => new FileDisk(folder) };
  },
};
