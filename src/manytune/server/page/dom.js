// Elements of a page. All that a model, an adapter or a user wrote goes into text nodes, never into HTML.

export const $ = (id) => document.getElementById(id);

export function element(tag, className = "", ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

export function button(text, act, label = "") {
  const made = element("button", "", text);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

export function say(text, wrong = false) {
  $("state").textContent = text;
  $("state").classList.toggle("wrong", wrong);
}

// A file that the browser saves; nothing is sent anywhere.
export function save(name, content, type) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch { // a page that isn't served from this machine or over TLS has no clipboard
    const area = element("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    say(done ? "Copied." : text, !done);
  }
}

// Three significant digits, and no more zeros than these have.
export const short = (number) => (Number.isFinite(number) ? String(Number(number.toPrecision(3))) : "–");

export const seconds = (value) => (value < 1 ? `${short(value * 1000)} ms` : `${short(value)} s`);

// The number of bytes that is one of the unit in which so many are written.
export const unitOf = (count) => 1024 ** Math.max(0, Math.floor(Math.log2(count) / 10));

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  for (; count >= 1024 && place < units.length - 1; place += 1) count /= 1024;
  return `${short(count)} ${units[place]}`;
}
