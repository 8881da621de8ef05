// Which of several answers somebody found better: kept in this browser with the prompt, counted by pairs of models, and
// exported as preference rows: `prompt`, `chosen` and `rejected` as messages, which TRL's DPOTrainer reads.
import { $, button, element, save, say } from "./dom.js";

const KEPT = "manytune-ratings";

export class Ratings {
  constructor() {
    try { this.all = JSON.parse(localStorage.getItem(KEPT) ?? "[]"); } catch { this.all = []; }
    if (!Array.isArray(this.all)) this.all = [];
    $("export-preferences").addEventListener("click", () => this.export());
    $("export-ratings").addEventListener("click", () => save("ratings.jsonl", asLines(this.all), "application/jsonl"));
    $("clear-ratings").addEventListener("click", () => {
      if (confirm(`Delete ${this.all.length} ratings from this browser?`)) { this.all = []; this.keep(); }
    });
    this.draw();
  }

  // Rate a turn, or rate it again. `better` is the place of the best answer, null if none is better.
  rate(id, rating) {
    this.all = [...this.all.filter((one) => one.id !== id), { id, time: new Date().toISOString(), ...rating }];
    this.keep();
  }

  keep() {
    try { localStorage.setItem(KEPT, JSON.stringify(this.all)); }
    catch { say("This browser keeps no more ratings. Export them, and delete them here.", true); }
    this.draw();
  }

  export() {
    const rows = preferences(this.all);
    const left = this.all.length - new Set(rows.map((row) => row.id)).size;
    save("preferences.jsonl", asLines(rows.map(({ prompt, chosen, rejected }) => ({ prompt, chosen, rejected }))), "application/jsonl");
    say(`Exported ${rows.length} ${rows.length === 1 ? "row" : "rows"}.` + (left ? ` ${left} ratings give none: no answer was better, the two are alike, or they had different prompts.` : ""));
  }

  draw() {
    $("ratings").hidden = !this.all.length;
    $("ratings-count").textContent = `${this.all.length} ${this.all.length === 1 ? "rating" : "ratings"}`;
    const pairs = comparisons(this.all);
    $("ratings-pairs").replaceChildren(...pairs.map((pair) => element("li", "", sentence(pair))));
    $("ratings-note").hidden = pairs.length < 2;
  }
}

const asLines = (rows) => rows.map((row) => JSON.stringify(row) + "\n").join("");

// Each better answer with each worse one to the same prompt.
export function preferences(ratings) {
  const rows = [];
  for (const { id, answers, better } of ratings) {
    if (better === null) continue;
    const chosen = answers[better];
    for (const other of answers) {
      const isSame = JSON.stringify(other.prompt) === JSON.stringify(chosen.prompt);
      if (other === chosen || !isSame || other.text === chosen.text) continue;
      rows.push({ id, prompt: chosen.prompt, chosen: asMessages(chosen.text), rejected: asMessages(other.text) });
    }
  }
  return rows;
}

const asMessages = (content) => [{ role: "assistant", content }];

// For each pair of models how many prompts the one answered better, the other, and neither. A prompt that was rated more
// than once counts once, for the model that was better more often.
export function comparisons(ratings) {
  const pairs = new Map();
  for (const { question, answers, better } of ratings) {
    answers.forEach((one, place) => answers.slice(place + 1).forEach((other, more) => {
      const at = place + 1 + more;
      if (better !== null && better !== place && better !== at) return; // nothing was said of these two
      const [first, second] = [one.model, other.model].sort();
      const sign = better === null ? 0 : (better === place) === (one.model === first) ? 1 : -1;
      const key = JSON.stringify([first, second]);
      if (!pairs.has(key)) pairs.set(key, { first, second, signs: new Map() });
      const signs = pairs.get(key).signs;
      signs.set(question, (signs.get(question) ?? 0) + sign);
    }));
  }
  return [...pairs.values()].map(({ first, second, signs }) => {
    const count = (holds) => [...signs.values()].filter(holds).length;
    const wins = count((sign) => sign > 0), losses = count((sign) => sign < 0);
    return { first, second, wins, losses, ties: count((sign) => sign === 0), p: signTest(wins, losses) };
  });
}

// The exact two-sided sign test: the chance of a count at least as uneven if either model were better equally often.
export function signTest(wins, losses) {
  const total = wins + losses;
  let logFactor = 0, tail = 0; // the logarithm of C(total, k), and the sum of C(total, k) / 2^total
  for (let k = 0; k <= Math.min(wins, losses); k += 1) {
    if (k) logFactor += Math.log((total - k + 1) / k);
    tail += Math.exp(logFactor - total * Math.LN2);
  }
  return Math.min(1, 2 * tail);
}

function sentence({ first, second, wins, losses, ties, p }) {
  const chance = p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(p < 0.1 ? 3 : 2)}`;
  const finding = p < 0.05 ? `${wins > losses ? first : second} is better` : "no clear difference";
  return `${first} better ${wins}, ${second} better ${losses}, equal ${ties}: ${finding} (sign test, ${chance})`;
}

// The buttons with which a turn is rated; `rated` gets the place of the best answer, or null.
export function ratingButtons(answers, rated) {
  const made = answers.map((answer, place) => button("Better", () => choose(place), `${answer.title.textContent} is better`));
  const equal = button("Equally good", () => choose(null));
  const bar = element("div", "bar rate", equal);
  answers.forEach((answer, place) => answer.bar.append(made[place]));
  function choose(better) {
    made.forEach((one, place) => one.setAttribute("aria-pressed", String(place === better)));
    equal.setAttribute("aria-pressed", String(better === null));
    rated(better);
  }
  return bar;
}
