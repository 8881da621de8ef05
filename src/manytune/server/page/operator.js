// The operator's page: the last hour as charts, the adapters, the keys, and what admins did.
import { call, json, keepKey } from "./api.js";
import { Adapters, sums } from "./adapters.js";
import { Chart } from "./charts.js";
import { $, bytes, element, say, seconds, short, unitOf } from "./dom.js";
import { History } from "./history.js";
import { showVersions } from "./versions.js";

const history = new History();
const adapters = new Adapters(history, { versions: (name) => showVersions(name, refresh), refresh });
let isShown = false;

const rate = (value) => `${short(value)}/min`, speed = (value) => `${short(value)}/s`;
const count = (value) => Math.round(value).toLocaleString("en");
const CHARTS = [
  new Chart("Requests", [{ name: "ended", of: (one) => one.requests }], { write: rate }),
  new Chart("Tokens", [{ name: "generated", of: (one) => one.generated }, { name: "read", of: (one) => one.prompt }], { write: speed }),
  new Chart("Time to first token", [{ name: "median", of: (one) => (one.isOne ? one.mean : one.first_token_p50) },
    { name: "95%", of: (one) => (one.isOne ? null : one.first_token_p95) }], { write: seconds }),
  new Chart("Queue", [{ name: "running", of: (one) => one.running }, { name: "waiting", of: (one) => one.waiting }], { write: count }),
  new Chart("KV cache", [{ name: "requests", of: (one) => one.kv_tokens }, { name: "prefixes", of: (one) => one.prefix_tokens }],
    { write: (value) => `${count(value)} tokens`, limit: () => history.kvBudget }),
  new Chart("Adapters in memory", [{ name: "adapters", of: (one) => one.adapter_bytes }], { write: bytes, limit: () => history.adapterBudget }),
  new Chart("Memory", [{ name: "process", of: (one) => one.memory_bytes }, { name: "device", of: (one) => one.device_bytes }], { write: bytes, unit: unitOf }),
];
$("charts").append(...CHARTS.map((chart) => chart.box));

function drawCharts() {
  const [table, ...rest] = $("whose").value.split(" ");
  const samples = history.rates(table, rest.join(" "));
  CHARTS[2].series[0].name = table ? "mean" : "median";
  for (const chart of CHARTS) chart.draw(samples, history.from, history.to);
  $("whose-note").hidden = !table;
}

function drawChoices() {
  const group = (label, table) => {
    const made = element("optgroup");
    made.label = label;
    made.append(...history.names(table).map((name) => new Option(name, `${table} ${name}`)));
    return made;
  };
  const chosen = $("whose").value;
  if (document.activeElement === $("whose")) return;
  $("whose").replaceChildren(new Option("all requests", ""), group("Models", "models"), group("Keys", "keys"));
  $("whose").value = [...$("whose").options].some((one) => one.value === chosen) ? chosen : "";
}

function drawKeys() {
  const rows = history.names("keys").map((name) => ({ name, ...history.hour("keys", name) })).sort((one, other) => other.requests - one.requests);
  $("keys").replaceChildren(...rows.map((one) => {
    const head = element("th", "", one.name);
    head.scope = "row";
    return element("tr", "", head, ...[one.requests, one.prompt_tokens, one.completion_tokens].map((value) => element("td", "number", count(value))),
      element("td", "number", one.first_tokens ? seconds(one.first_seconds / one.first_tokens) : "–"));
  }));
  $("keys-section").hidden = !rows.length;
}

function drawAudit(actions) {
  $("audit").replaceChildren(...actions.map((one) => {
    const [, name, verb] = one.path.match(/^\/v1\/adapters\/(?:(.+)\/)?(\w+)$/) ?? [null, one.path, one.method];
    const cells = [new Date(one.time).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }), one.key,
      [verb, name].filter(Boolean).join(" "), one.status < 400 ? "done" : `refused (${one.status})`, one.detail ?? ""];
    return element("tr", "", ...cells.map((text) => element("td", "", text)));
  }));
  $("audit-note").hidden = actions.length > 0;
}

// `force` draws the table of adapters even where one of its buttons has the focus, which it then loses.
async function refresh({ force = false } = {}) {
  await history.fetch();
  const [metrics, audit] = await Promise.all([call("/metrics").then((response) => response.text()), json("/v1/audit"), adapters.fetch()]);
  $("dashboard").hidden = false;
  isShown = true;
  $("sums").textContent = sums(metrics, adapters.all.length);
  drawChoices();
  drawCharts();
  drawKeys();
  drawAudit(audit.data);
  if (force || !document.querySelector("#adapters :focus")) adapters.draw();
}

async function show() {
  try {
    await refresh({ force: true });
    say($("key").value ? "" : "Start the server with keys to load, pin, verify or roll back adapters.");
  } catch (error) {
    $("dashboard").hidden = true;
    isShown = false;
    say(error.status === 401 && !$("key").value ? "Enter an admin key to see this server’s dashboard." : error.message, Boolean($("key").value));
  }
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); show(); });
$("whose").addEventListener("change", drawCharts);
$("versions-close").addEventListener("click", () => $("versions").close());
keepKey(show);
show();
setInterval(() => {
  if (!document.hidden && isShown && !$("versions").open) refresh().catch((error) => say(error.message, true));
}, 5000);
