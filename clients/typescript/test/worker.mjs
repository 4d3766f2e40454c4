// A till that is killed by its test: worker.mjs URLS DEVICE FOLDER TABLE BEGIN. Prints the sale that is on the disk.
import { Client } from "@tillsync/client";
import { FileDisk } from "@tillsync/client/node";

const [urls, device, folder, table, begin] = process.argv.slice(2);
const options = { url: urls.split(" "), token: process.env.TILLSYNC_TOKEN, device, disk: new FileDisk(folder) };
const till = await Client.open(options);
for (let i = Number(begin); ; i++) {
  await till.until(({ pending }) => pending < 200);
  await till.insert(table, { i });
  process.stdout.write(`${i}\n`);
}
