// The samples of the last hour as the server has taken them, and what follows from them.
import { json } from "./api.js";

const HOUR = 3600;

export class History {
  constructor() { this.samples = []; }

  async fetch() {
    const after = this.samples.at(-1)?.time ?? 0;
    const found = await json(`/v1/history?after=${after}`);
    Object.assign(this, { seconds: found.seconds, kvBudget: found.kv_budget_tokens, adapterBudget: found.adapter_budget_bytes, columns: found.columns });
    const last = this.samples.at(-1)?.time ?? 0; // another answer may have come meanwhile
    const oldest = Date.now() / 1000 - HOUR - 2 * found.seconds;
    this.samples = [...this.samples, ...found.data.filter((one) => one.time > last)].filter((one) => one.time > oldest);
  }

  get to() { return Math.max(Date.now() / 1000, this.samples.at(-1)?.time ?? 0); }
  get from() { return this.to - HOUR; }

  // What one model or key had in a sample, by column; zeros if it wasn't asked.
  of(sample, table, name) {
    const row = sample[table][name];
    return Object.fromEntries(this.columns.map((column, place) => [column, row ? row[place] : 0]));
  }

  // The same of the whole hour.
  hour(table, name) {
    const total = Object.fromEntries(this.columns.map((column) => [column, 0]));
    for (const sample of this.samples) {
      const row = sample[table][name];
      if (row) this.columns.forEach((column, place) => { total[column] += row[place]; });
    }
    return total;
  }

  names(table) { return [...new Set(this.samples.flatMap((sample) => Object.keys(sample[table])))].sort(); }

  points(table, name) { return this.samples.map((sample) => [sample.time, sample[table][name]?.[0] ?? 0]); }

  // The samples as the charts have them: rates, and of one model's or key's requests if one is chosen.
  rates(table = "", name = "") {
    return this.samples.map((sample) => {
      const of = table ? this.of(sample, table, name) : sample;
      const mean = table ? (of.first_tokens ? of.first_seconds / of.first_tokens : null) : null;
      return {
        ...sample, isOne: Boolean(table), requests: (of.requests * 60) / this.seconds,
        prompt: of.prompt_tokens / this.seconds, generated: of.completion_tokens / this.seconds, mean,
      };
    });
  }
}
