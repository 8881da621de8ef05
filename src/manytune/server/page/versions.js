// The versions of an adapter with their scores, and the way back to a former one.
import { json } from "./api.js";
import { $, button, element, say, short } from "./dom.js";

const date = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "before this was kept");

export async function showVersions(name, refresh) {
  let found;
  try { found = (await json(`/v1/adapters/${name}/versions`)).data; } catch (error) { return say(error.message, true); }
  const names = [...new Set(found.flatMap((one) => Object.keys(one.scores)))];
  const head = ["Version", "", "Method", ...names].map((text) => {
    const cell = element("th", "", text);
    cell.scope = "col";
    return cell;
  });
  const rows = found.map((one) => {
    const version = element("td", "", element("code", "", one.root.slice(0, 12)), element("small", "", date(one.since)));
    if (one.error) version.append(element("span", "error", one.error));
    const act = one.current ? "in use"
      : $("key").value ? button("Go back to this", () => goBack(name, one.root, refresh), `Go back to ${one.root.slice(0, 12)}`) : "";
    return element("tr", "", version, element("td", "", act), element("td", "", one.method ?? "–"),
      ...names.map((score) => element("td", "number", short(one.scores[score] ?? NaN))));
  });
  $("versions-title").textContent = `Versions of ${name}`;
  $("versions-table").replaceChildren(element("thead", "", element("tr", "", ...head)), element("tbody", "", ...rows));
  $("versions-note").textContent = found.length > 1 ? "Requests that run finish on the version that they began with."
    : "There is no former version: this one has had the name since it was added, or others were removed.";
  $("versions").showModal();
}

async function goBack(name, root, refresh) {
  try {
    await json(`/v1/adapters/${name}/rollback`, { body: { root } });
    $("versions").close();
    await refresh({ force: true });
    say(`${name} is version ${root.slice(0, 12)} again.`);
    document.querySelector(`[aria-label="versions of ${name}"]`)?.focus();
  } catch (error) {
    $("versions").close();
    say(error.message, true);
  }
}
