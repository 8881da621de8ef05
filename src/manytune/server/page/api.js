// Requests to the page's own server, with the key that was entered. The key is kept for this tab, until it is closed.
import { $ } from "./dom.js";

const KEPT = "manytune-key";

export function keepKey(changed) {
  const field = $("key");
  try { field.value = sessionStorage.getItem(KEPT) ?? ""; } catch { /* the browser keeps nothing */ }
  field.addEventListener("change", () => {
    try { sessionStorage.setItem(KEPT, field.value); } catch { /* the same */ }
    changed();
  });
}

function headers(body) {
  const found = body === undefined ? {} : { "Content-Type": "application/json" };
  if ($("key").value) found.Authorization = "Bearer " + $("key").value;
  return found;
}

async function errorOf(response) {
  let message = `The server answered with status ${response.status}.`;
  try { message = (await response.json()).error.message; } catch { /* not an error object */ }
  return Object.assign(new Error(message), { status: response.status });
}

// The response to a request; an error with the server's own words, and the status, if it is refused.
export async function call(path, { body, signal, method = body === undefined ? "GET" : "POST" } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method, signal, headers: headers(body), body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server can’t be reached. Is it still running?");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

export const json = async (path, options) => (await call(path, options)).json();

// The events of a stream as they come.
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const content = event.replace(/^data: /, "");
      if (content !== "[DONE]") yield JSON.parse(content);
    }
  }
}

// The value of a metric in Prometheus' text; of a server of many processes, the sum of theirs.
export const metric = (text, name) => [...text.matchAll(new RegExp(`^manytune_${name}(?:\\{[^}]*\\})? (\\S+)`, "gm"))]
  .reduce((sum, [, value]) => sum + Number(value), 0);
