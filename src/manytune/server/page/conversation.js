// A conversation: turns of one question and its answers, side by side. The next question continues from one answer of each
// turn, so that all models are asked the same, and every rating compares answers to one prompt.
import { $, button, element, say } from "./dom.js";
import { Answer } from "./answer.js";
import { ratingButtons } from "./ratings.js";

let turns = [];

export const history = (before = turns.length) => {
  const system = $("system").value.trim();
  const said = turns.slice(0, before).filter((turn) => turn.asked.messages && turn.kept).flatMap((turn) => [
    { role: "user", content: turn.asked.text }, { role: "assistant", content: turn.kept.text },
  ]);
  return [...(system ? [{ role: "system", content: system }] : []), ...said];
};

export function clear() {
  turns = [];
  $("conversation").replaceChildren();
}

// Drop a turn and those after it.
export function dropFrom(turn) {
  const place = turns.indexOf(turn);
  for (const one of turns.splice(place)) one.box.remove();
}

export class Turn {
  // `asked` is what the user entered, {text} or {fields}; `again(turn, text)` asks it another time.
  constructor(asked, models, { again, ratings, blind, options }) {
    Object.assign(this, { again, ratings, options, id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, kept: null });
    this.isBlind = blind && models.length > 1;
    const before = history(turns.length);
    this.asked = asked.fields ? { ...asked } : { ...asked, messages: [...before, { role: "user", content: asked.text }] };
    const order = this.isBlind ? shuffled(models) : models;
    this.models = order;
    this.answers = order.map((model) => new Answer(model));
    if (this.isBlind) this.answers.forEach((answer, place) => { answer.title.textContent = "Answer " + "ABCDEFGHIJKLMNOP"[place]; });
    this.said = element("div", "said");
    this.bar = element("div", "bar", button("Edit", () => this.edit()), button("Retry", () => this.again(this, this.asked)));
    this.after = element("div");
    this.box = element("article", "turn",
      element("div", "asked", element("h2", "", "You"), this.said, this.bar),
      element("div", "answers", ...this.answers.map((answer) => answer.box)), this.after);
    this.showAsked();
    turns.push(this);
    $("conversation").append(this.box);
  }

  get body() { return this.asked.fields ? { fields: this.asked.fields } : { messages: this.asked.messages }; }

  showAsked() {
    if (!this.asked.fields) return this.said.replaceChildren(element("p", "written", this.asked.text));
    const list = element("dl");
    for (const [name, text] of Object.entries(this.asked.fields)) list.append(element("dt", "", name), element("dd", "written", text));
    this.said.replaceChildren(list);
  }

  // In place of what was asked, it can be changed; Escape leaves it as it was.
  edit() {
    const areas = Object.entries(this.asked.fields ?? { Message: this.asked.text }).map(([name, text]) => {
      const area = element("textarea");
      area.value = text;
      area.setAttribute("aria-label", name);
      area.addEventListener("keydown", (event) => {
        if (event.key === "Escape") stop();
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
      });
      return [name, area];
    });
    const stop = () => { this.showAsked(); this.bar.hidden = false; this.bar.firstChild.focus(); };
    const send = () => this.again(this, this.asked.fields
      ? { fields: Object.fromEntries(areas.map(([name, area]) => [name, area.value])) } : { text: areas[0][1].value });
    this.said.replaceChildren(
      ...areas.map(([name, area]) => (this.asked.fields ? element("label", "", element("span", "label", name), area) : area)),
      element("div", "bar", button("Ask again", send), button("Cancel", stop)));
    this.bar.hidden = true;
    areas[0][1].focus();
  }

  // All answers are there, or the rest of them won't come.
  end() {
    const whole = this.answers.filter((answer) => answer.isWhole);
    for (const answer of this.answers) if (!answer.first) answer.facts.textContent = "no answer";
    const first = whole[0] ?? this.answers.find((answer) => answer.text); // one that was stopped is better than none
    if (!first) return;
    this.keep(first);
    if (whole.length < 2) return;
    const bar = ratingButtons(whole, (better) => this.rated(whole, better));
    if (!this.asked.fields) {
      this.onward = whole.map((answer) => {
        const made = button("Continue from this", () => this.keep(answer), `Continue from the answer of ${answer.title.textContent}`);
        answer.bar.append(made);
        return made;
      });
      this.whole = whole;
      this.keep(whole[0]);
    }
    this.after.append(bar);
  }

  // The conversation goes on from this answer.
  keep(answer) {
    this.kept = answer;
    this.onward?.forEach((made, place) => made.setAttribute("aria-pressed", String(this.whole[place] === answer)));
    for (const one of this.answers) one.box.classList.toggle("kept", one === answer && this.answers.length > 1 && !this.asked.fields);
  }

  rated(whole, better) {
    const question = JSON.stringify(this.asked.fields ?? this.asked.messages);
    const answers = whole.map((answer) => ({
      model: answer.model, version: answer.root, text: answer.text, prompt: answer.prompt ?? this.asked.messages,
    }));
    this.ratings.rate(this.id, { question, answers, better, blind: this.isBlind, options: this.options });
    for (const answer of this.answers) answer.title.textContent = answer.model;
    whole.forEach((answer, place) => answer.box.classList.toggle("better", place === better));
    if (better !== null && !this.asked.fields) this.keep(whole[better]);
    say("Rated.");
  }
}

export const redraw = () => turns.forEach((turn) => turn.answers.forEach((answer) => answer.drawNow()));

function shuffled(list) {
  const found = [...list];
  for (let place = found.length - 1; place > 0; place -= 1) {
    const other = Math.floor(Math.random() * (place + 1));
    [found[place], found[other]] = [found[other], found[place]];
  }
  return found;
}
