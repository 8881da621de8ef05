// The table of adapters: found by words, sorted by a column, with what can be done to each.
import { json, metric } from "./api.js";
import { sparkline } from "./charts.js";
import { $, button, bytes, element, say, seconds, short } from "./dom.js";

const SHOWN = 200;

const state = (one) => (one.unservable ? "can’t be served" : one.pinned ? "pinned" : one.resident ? "in memory" : "on disk");
const scores = (one) => Object.entries(one.scores ?? {});

// What a column is called, what it is sorted by, and what is in its cells.
const COLUMNS = [
  { title: "Name", by: (one) => one.id },
  { title: "Method", by: (one) => one.method ?? "", show: (one) => one.method ?? "unreadable" },
  { title: "Scores", by: (one) => scores(one)[0]?.[1] ?? -Infinity, show: (one) => scores(one).slice(0, 2).map(([name, value]) => `${name} ${short(value ?? NaN)}`).join(", ") || "–" },
  { title: "Size", number: true, by: (one) => one.bytes ?? -1, show: (one) => bytes(one.bytes) },
  { title: "State", by: state, show: state },
  { title: "Answering", number: true, by: (one) => one.requests, show: (one) => String(one.requests) },
  { title: "Last hour", number: true, by: (one) => one.hour.requests },
  { title: "Tokens", number: true, by: (one) => one.hour.completion_tokens, show: (one) => one.hour.completion_tokens.toLocaleString("en") },
  { title: "First token", number: true, by: (one) => one.first ?? -1, show: (one) => (one.first === null ? "–" : seconds(one.first)) },
  { title: "Errors", number: true, by: (one) => one.errors, show: (one) => String(one.errors) },
];

export class Adapters {
  constructor(history, { versions, refresh }) {
    Object.assign(this, { history, versions, refresh, all: [], column: 0, descending: false });
    $("adapter-search").addEventListener("input", () => this.draw());
    $("adapter-heads").replaceChildren(...COLUMNS.map((column, place) => {
      const head = element("th", column.number ? "number" : "", button(column.title, () => this.sort(place)));
      head.scope = "col";
      return head;
    }), element("th", "", "Actions"));
    $("adapter-order").replaceChildren(...COLUMNS.map((column, place) => new Option(column.title, place)));
    $("adapter-order").addEventListener("change", () => this.sort(Number($("adapter-order").value)));
  }

  async fetch() {
    const found = await json("/v1/adapters");
    this.all = found.data.map((one) => {
      const hour = this.history.hour("models", one.id);
      return { ...one, hour, first: hour.first_tokens ? hour.first_seconds / hour.first_tokens : null };
    });
  }

  sort(place) {
    this.descending = place === this.column ? !this.descending : Boolean(COLUMNS[place].number);
    this.column = place;
    $("adapter-order").value = place;
    this.draw();
  }

  draw() {
    const words = $("adapter-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const { by } = COLUMNS[this.column], sign = this.descending ? -1 : 1;
    const found = this.all.filter((one) => words.every((word) => [one.id, one.method ?? "", state(one), ...(one.tags ?? [])].join("\n").toLowerCase().includes(word)));
    found.sort((one, other) => {
      const [a, b] = [by(one), by(other)];
      return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b) || one.id.localeCompare(other.id);
    });
    [...$("adapter-heads").children].forEach((head, place) => head.setAttribute("aria-sort", place === this.column ? (this.descending ? "descending" : "ascending") : "none"));
    $("adapters").replaceChildren(...found.slice(0, SHOWN).map((one) => this.row(one)));
    $("adapter-count").textContent = found.length > SHOWN ? `${SHOWN} of ${found.length} shown; search for others.`
      : this.all.length ? `${found.length} of ${this.all.length} adapters` : "The store has no adapters yet.";
  }

  row(one) {
    const head = element("th", "", one.id, ...(one.tags ?? []).map((tag) => element("small", "tag", tag)));
    head.scope = "row";
    const error = one.last_error ? "Last error: " + one.last_error : one.unservable ? "Can’t be served: " + one.unservable : "";
    if (error) head.append(element("span", "error", error));
    const cells = COLUMNS.slice(1).map((column) => {
      const cell = element("td", column.number ? "number" : "", column.show ? column.show(one) : "");
      cell.dataset.label = column.title;
      if (!column.show) cell.append(sparkline(this.history.points("models", one.id), this.history.from, this.history.to), one.hour.requests.toLocaleString("en"));
      return cell;
    });
    const verbs = $("key").value ? [one.resident ? "unload" : "load", one.pinned ? "unpin" : "pin", "verify"] : [];
    const actions = element("td", "actions", ...verbs.map((verb) => button(verb, () => this.act(one.id, verb), `${verb} ${one.id}`)),
      button("versions", () => this.versions(one.id), `versions of ${one.id}`));
    return element("tr", "", head, ...cells, actions);
  }

  async act(name, verb) {
    let said, wrong = false;
    try {
      const answer = await json(`/v1/adapters/${name}/${verb}`, { method: "POST" });
      said = verb === "verify" ? `${name} is sound: ${answer.files} files, ${answer.tensors} tensors.` : `${verb} ${name}: done.`;
    } catch (error) { [said, wrong] = [error.message, true]; }
    await this.refresh({ force: true }).catch(() => {});
    say(said, wrong);
    const after = { pin: "unpin", unpin: "pin", load: "unload", unload: "load" }[verb];
    (document.querySelector(`[aria-label="${verb} ${name}"]`) ?? document.querySelector(`[aria-label="${after} ${name}"]`))?.focus();
  }
}

export function sums(metrics, count) {
  const value = (name) => metric(metrics, name);
  const number = (name) => value(name).toLocaleString("en");
  return `${number("adapters_resident")} of ${count} adapters in memory: ${bytes(value("adapter_bytes"))} of ` +
    `${bytes(value("adapter_budget_bytes"))}. ${number("running_requests")} requests running, ${number("waiting_requests")} waiting.`;
}
