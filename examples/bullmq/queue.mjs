// The name of the queue, and connections to the Key Value. BullMQ wants `maxRetriesPerRequest: null` where it waits for jobs.
import { Redis } from "ioredis";

export const NAME = "shouts";

export function connection(options) {
  const redis = new Redis(process.env.QUEUE_URL, options);
  redis.on("error", (error) => console.error("the queue is not ready:", error.message));
  return redis;
}
