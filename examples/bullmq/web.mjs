// POST / hands out a job and answers its id; GET /ID answers its result.
import { createServer } from "node:http";
import { Job, Queue } from "bullmq";
import { NAME, connection } from "./queue.mjs";

const queue = new Queue(NAME, { connection: connection({ maxRetriesPerRequest: 1 }) });
queue.on("error", () => {});

async function body(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString().slice(0, 1000);
}

async function answer(request) {
  if (request.method === "POST") {
    const keep = { removeOnComplete: { age: 3600 }, removeOnFail: { age: 86400 }, attempts: 3 };
    return [202, (await queue.add("shout", { text: await body(request) }, keep)).id];
  }
  if (request.url === "/" || request.url === "/healthz") return [200, "ok"];
  const job = await Job.fromId(queue, request.url.slice(1));
  return job ? [200, job.returnvalue ?? (await job.getState())] : [404, "no such job"];
}

createServer(async (request, response) => {
  const [status, text] = await answer(request).catch((error) => [503, `no queue now: ${error.message}`]);
  response.writeHead(status).end(`${text}\n`);
}).listen(process.env.PORT, "0.0.0.0");
