// Who answers: the base and the adapters, found by name, method or tag, with their scores.
import { $, element, short } from "./dom.js";

const SHOWN = 100; // more are found by their names

export class Models {
  constructor(changed) {
    this.all = [];
    this.chosen = [];
    this.changed = changed;
    $("model-search").addEventListener("input", () => this.draw());
    $("model-order").addEventListener("change", () => this.draw());
  }

  take(models) {
    this.all = models;
    const known = new Set(models.map((model) => model.id));
    this.chosen = this.chosen.filter((name) => known.has(name));
    if (!this.chosen.length) this.chosen = models.slice(0, 3).map((model) => model.id);
    const scores = [...new Set(models.flatMap((model) => Object.keys(model.scores ?? {})))].sort();
    const order = $("model-order").value;
    $("model-order").replaceChildren(...[["", "name"], ["newest", "newest"], ...scores.map((score) => ["score " + score, score])]
      .map(([value, text]) => new Option(text, value, false, value === order)));
    $("model-tools").hidden = models.length < 6;
    this.draw();
    this.changed();
  }

  // Each word must be in the name, the method or a tag.
  found() {
    const words = $("model-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (model) => words.every((word) => [model.id, model.method ?? "base", ...(model.tags ?? [])]
      .some((text) => text.toLowerCase().includes(word)));
    return this.all.filter(fits).sort(ORDERS[$("model-order").value.split(" ")[0]]);
  }

  draw() {
    const found = this.found();
    const shown = found.slice(0, SHOWN).map((model) => this.row(model));
    if (!found.length) shown.push(element("p", "soft", "None fits these words."));
    if (found.length > SHOWN) shown.push(element("p", "soft", `and ${found.length - SHOWN} more: search for their names`));
    $("models").replaceChildren(...shown);
    $("models-chosen").textContent = this.chosen.length ? this.chosen.join(", ") : "nobody";
  }

  row(model) {
    const box = element("input"), scores = Object.entries(model.scores ?? {});
    box.type = "checkbox";
    box.value = model.id;
    box.checked = this.chosen.includes(model.id);
    box.addEventListener("change", () => {
      this.chosen = this.all.map((one) => one.id).filter((name) => (name === model.id ? box.checked : this.chosen.includes(name)));
      $("models-chosen").textContent = this.chosen.join(", ") || "nobody";
      this.changed();
    });
    const about = element("span", "about", element("small", "", model.method || "base"));
    about.append(...(model.tags ?? []).map((tag) => element("small", "tag", tag)));
    about.append(...scores.slice(0, 2).map(([name, value]) => element("small", "score", `${name} ${short(value ?? NaN)}`)));
    const label = element("label", "model", box, element("span", "name", model.id), about);
    if (scores.length) label.title = scores.map(([name, value]) => `${name} ${short(value ?? NaN)}`).join("\n");
    return label;
  }

  none(text) {
    this.all = [];
    this.chosen = [];
    $("models").replaceChildren(element("p", "soft", text));
    $("models-chosen").textContent = "nobody";
  }

  // The fields of the chosen adapters' prompt templates.
  fields() {
    const chosen = this.all.filter((model) => this.chosen.includes(model.id));
    return [...new Set(chosen.flatMap((model) => model.fields ?? []))];
  }
}

const isBase = (model) => (model.method ? 1 : 0);
const ORDERS = {
  "": (one, other) => isBase(one) - isBase(other) || one.id.localeCompare(other.id, "en", { numeric: true }),
  newest: (one, other) => isBase(one) - isBase(other) || other.created - one.created,
  score: (one, other) => {
    const of = (model) => model.scores?.[$("model-order").value.slice("score ".length)] ?? -Infinity;
    return isBase(one) - isBase(other) || of(other) - of(one) || one.id.localeCompare(other.id);
  },
};
