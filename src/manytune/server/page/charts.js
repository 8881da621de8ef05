// Small line charts as SVG. Lines stretch with the page; all text is HTML around them, so that it stays legible.
import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function area() {
  return shape("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
}

// The end of an axis: the next of 1, 2, 2.5, 5 and their tenfolds.
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((end) => end >= value * (1 - 1e-9));
}

// A path through points [time, value]; where a value is missing, the line is broken, and a lone point is a dot.
export function path(points, from, to, top) {
  let drawn = "", pen = false;
  points.forEach(([time, value], place) => {
    if (value === null || value === undefined) { pen = false; return; }
    const x = (100 * (time - from)) / (to - from), y = 100 - (100 * Math.min(value, top)) / top;
    const isLone = !pen && (points[place + 1]?.[1] ?? null) === null;
    drawn += `${pen ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}${isLone ? "h0.01" : ""}`;
    pen = true;
  });
  return drawn;
}

const clock = (time) => new Date(time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

export class Chart {
  // `series` are {name, of}: what a line is called, and its value in a sample, of which those that never have one aren't
  // shown; `write` writes a value with its unit, `limit` gives the end of the axis, and `unit` what it is a round number of.
  constructor(title, series, { write, limit = null, unit = () => 1 }) {
    Object.assign(this, { title, series, all: series, write, limit, unit, samples: [] });
    this.now = element("p", "now");
    this.top = element("span");
    this.svg = area();
    this.begin = element("span");
    this.end = element("span", "", "now");
    this.plot = element("div", "plot", this.top, element("span", "zero", "0"), this.svg);
    this.box = element("figure", "chart", element("figcaption", "", title), this.now, this.plot, element("div", "axis", this.begin, this.end));
    this.box.setAttribute("role", "group");
    this.plot.setAttribute("role", "img");
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.tell(this.samples.at(-1)));
  }

  draw(samples, from, to) {
    Object.assign(this, { samples, from, to });
    const isThere = (value) => value !== null && value !== undefined;
    this.series = this.all.filter(({ of }, place) => !place || samples.some((sample) => isThere(of(sample))));
    const limit = this.limit?.() ?? null;
    const values = samples.flatMap((sample) => this.series.map(({ of }) => of(sample))).filter(isThere);
    const highest = Math.max(0, ...values), top = limit ?? roundUp(highest / this.unit(highest)) * this.unit(highest);
    this.svg.replaceChildren(shape("path", { class: "grid", d: "M0 0H100M0 50H100" }));
    this.series.forEach(({ of }, place) => {
      this.svg.append(shape("path", { class: `line c${place}`, d: path(samples.map((sample) => [sample.time, of(sample)]), from, to, top) }));
    });
    this.top.textContent = this.write(top) + (limit === null ? "" : " limit");
    this.begin.textContent = clock(from);
    this.plot.setAttribute("aria-label", values.length
      ? `${this.title}: ${this.words(samples.at(-1))}; highest in the last hour ${this.write(highest)}` : `${this.title}: nothing yet`);
    this.tell(samples.at(-1));
  }

  words(sample) {
    return this.series.map(({ name, of }) => `${name} ${this.value(of(sample))}`).join(", ");
  }

  value(value) { return value === null || value === undefined ? "–" : this.write(value); }

  tell(sample, time = "") {
    this.now.replaceChildren(...this.series.map(({ name, of }, place) =>
      element("span", `key c${place}`, this.series.length > 1 ? `${name} ` : "", element("b", "", sample ? this.value(of(sample)) : "–"))), time ? element("span", "time", time) : "");
  }

  // The values at the time that is pointed at.
  point(event) {
    const place = this.svg.getBoundingClientRect();
    const time = this.from + ((event.clientX - place.left) / place.width) * (this.to - this.from);
    const near = this.samples.reduce((best, sample) => (!best || Math.abs(sample.time - time) < Math.abs(best.time - time) ? sample : best), null);
    if (near) this.tell(near, clock(near.time));
  }
}

// A line without axes, as high as its highest value.
export function sparkline(points, from, to) {
  const made = area();
  made.classList.add("spark");
  made.append(shape("path", { class: "line c0", d: path(points, from, to, Math.max(1e-9, ...points.map(([, value]) => value))) }));
  return made;
}
