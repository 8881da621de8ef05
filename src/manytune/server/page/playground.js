// The playground: choose models, hold a conversation with them side by side, and rate their answers.
import { call, eventsOf, json, keepKey, metric } from "./api.js";
import { asked, isEmpty, showFields, switchTo, usesFields } from "./composer.js";
import { Turn, clear, dropFrom, history, redraw } from "./conversation.js";
import { $, copy, element, say } from "./dom.js";
import { Models } from "./models.js";
import { chosenOptions, showOptions } from "./options.js";
import { Ratings } from "./ratings.js";
import { asCurl, asPython } from "./snippets.js";

const models = new Models(() => showFields(models.fields()));
const ratings = new Ratings();
let running = null, mayMeasure = true;

async function loadModels() {
  mayMeasure = true;
  try {
    models.take((await json("/v1/models")).data);
    say(models.all.length === 1 ? "The store has no adapters yet; the base answers alone." : "");
  } catch (error) {
    const wantsKey = error.status === 401;
    models.none(wantsKey ? "This server needs an API key." : "No models.");
    if (wantsKey) $("settings").open = true;
    say(wantsKey ? ($("key").value ? error.message : "Enter your API key.") : error.message, true);
  }
}

function ask(what = asked(), former = null) {
  if (!models.chosen.length) return say("Choose who answers.", true);
  if (isEmpty(what)) return say(what.fields ? "Fill in all fields." : "Write a message first.", true);
  let options;
  try { options = chosenOptions({ hasFields: Boolean(what.fields) }); } catch (error) { return say(error.message, true); }
  running?.abort();
  if (former) dropFrom(former);
  const turn = new Turn(what, models.chosen, {
    ratings, options, blind: $("blind").checked, again: (one, changed) => ask(changed, one),
  });
  if (!former && !what.fields) $("prompt").value = "";
  turn.box.scrollIntoView({ block: "nearest" });
  return answer(turn);
}

async function answer(turn) {
  const mine = running = new AbortController();
  $("stop").disabled = false;
  say("Answering …");
  const watch = setInterval(() => { if (running === mine) showLoad(turn.answers, performance.now()); }, 500);
  try {
    const body = { models: turn.models, ...turn.body, ...turn.options };
    for await (const part of eventsOf(await call("/v1/compare", { body, signal: mine.signal }))) {
      if (part.error) throw new Error(part.error.message);
      turn.answers[part.index].take(part);
    }
    await showLoad(turn.answers, performance.now());
    turn.answers.forEach((one) => one.drawNow());
    turn.end();
    if (running === mine) say("Done.");
  } catch (error) {
    turn.end();
    if (running === mine) say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    clearInterval(watch);
    if (running === mine) { running = null; $("stop").disabled = true; }
  }
}

// What the answers come to together; and what the server does meanwhile, where the key may read its metrics.
async function showLoad(answers, end) {
  const first = Math.min(...answers.map((one) => one.first || Infinity));
  const tokens = answers.reduce((sum, one) => sum + one.tokens, 0), seconds = (end - first) / 1000;
  const facts = { Total: `${tokens} tokens` + (tokens > answers.length && seconds > 0 ? `, ${(tokens / seconds).toFixed(1)} tokens/s` : "") };
  const metrics = mayMeasure ? await call("/metrics").then((response) => response.text()).catch(() => null) : null;
  if (metrics === null) mayMeasure = false; // one refusal is enough
  else {
    const number = (name) => metric(metrics, name).toLocaleString("en");
    facts.Batch = `${number("running_requests")} running, ${number("waiting_requests")} waiting`;
    facts.Adapters = `${number("adapters_resident")} in memory, ${number("adapter_hits_total")} hits, ${number("adapter_loads_total")} loads`;
    facts.Cache = `${number("kv_tokens")} of ${number("kv_budget_tokens")} tokens`;
  }
  $("load").hidden = false;
  $("load").replaceChildren(...Object.entries(facts).map(([name, text]) => element("div", "", element("dt", "", name), element("dd", "", text))));
}

// The request that would be sent now.
function next() {
  const what = asked(), options = chosenOptions({ hasFields: usesFields() });
  return { ...(what.fields ? what : { messages: [...history(), { role: "user", content: what.text }] }), ...options };
}

const copied = (write) => () => {
  try { copy(write(models.chosen, next(), Boolean($("key").value))); } catch (error) { say(error.message, true); }
};

showOptions();
$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); }
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => { running?.abort(); clear(); say(""); $(usesFields() ? "use-fields" : "prompt").focus(); });
$("copy-curl").addEventListener("click", copied(asCurl));
$("copy-python").addEventListener("click", copied(asPython));
$("use-fields").addEventListener("change", () => switchTo($("use-fields").checked));
$("as-markdown").addEventListener("change", redraw);
keepKey(loadModels);
if (matchMedia("(max-width: 899px)").matches) $("settings").open = false;
loadModels();
