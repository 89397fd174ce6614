// Does jobs. At SIGTERM the one in work is finished first; a job whose worker died is done again by another.
import { Worker } from "bullmq";
import { NAME, connection } from "./queue.mjs";

const worker = new Worker(NAME, async (job) => job.data.text.toUpperCase() + "!", {
  connection: connection({ maxRetriesPerRequest: null }),
  concurrency: 4,
});
worker.on("completed", (job, result) => console.log(job.id, result));
worker.on("error", (error) => console.error(error.message));
process.on("SIGTERM", async () => {
  await worker.close();
  process.exit(0);
});
