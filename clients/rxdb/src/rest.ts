// Requests beside the session, to whichever node answers.
import type { Json } from "@tillsync/client";
import { PATIENCE, PAUSE, TRIES } from "./limits.js";

/** The cluster's answer is no, and would be again. */
export class Refused extends Error {
  constructor(readonly error: Json) {
    super(`${error.error_code}: ${error.error ?? error.error_message}`);
  }

  get code(): string {
    return String(this.error.error_code);
  }
}

export class Rest {
  private node = 0;

  constructor(
    private readonly urls: readonly string[],
    private readonly token: () => string,
    private readonly request: typeof fetch,
  ) {}

  async get(path: string): Promise<Json> {
    for (let tries = 1; ; tries++) {
      let pause = PAUSE * 2 ** (tries - 1);
      let why: unknown;
      try {
        const answer = await this.ask(path);
        const body = await answer.json();
        if (answer.ok) return body;
        if (body.retry === "no") throw new Refused(body);
        pause = Math.max(pause, body.retry_after_ms ?? 0);
        why = new Error(`${body.error_code}: ${body.error}`);
      } catch (error) {
        if (error instanceof Refused) throw error;
        why = error; // the node is gone, or what answers is none
      }
      this.node += 1;
      if (tries === TRIES) throw why;
      await new Promise((resolve) => setTimeout(resolve, pause * (1 + Math.random() / 2)));
    }
  }

  private async ask(path: string): Promise<Response> {
    const url = this.urls[this.node % this.urls.length] as string;
    const patience = new AbortController();
    const timer = setTimeout(() => patience.abort(new Error(`${url} does not answer`)), PATIENCE);
    try {
      const headers = { authorization: `Bearer ${this.token()}`, accept: "application/json" };
      const answer = await this.request(url + path, { headers, signal: patience.signal });
      const text = await answer.text(); // within the patience, too
      return new Response(text, { status: answer.status });
    } finally {
      clearTimeout(timer);
    }
  }
}
