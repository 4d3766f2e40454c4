// The disks that there are here; each place opens the same disk again.
import { MemoryDisk } from "../dist/index.js";

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
};
