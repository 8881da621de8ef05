// One answer as it is written: its text, its reasoning, and how fast it came.
import { $, button, copy, element } from "./dom.js";
import { render } from "./markdown.js";

const ENDS = { stop: "complete", length: "cut off at the token limit", cancelled: "cancelled", failed: "failed", memory: "out of memory", constraint: "no token fits the form" };

export class Answer {
  constructor(model) {
    Object.assign(this, { model, text: "", thoughts: "", tokens: 0, began: performance.now(), reason: null, root: null, prompt: null });
    this.title = element("h3", "", model);
    this.facts = element("p", "facts", "waiting");
    this.shown = element("div", "text");
    this.reflection = element("p", "thoughts");
    this.reasoning = element("details", "", element("summary", "", "Reasoning"), this.reflection);
    this.reasoning.hidden = true;
    this.bar = element("div", "bar");
    this.box = element("div", "answer", this.title, this.facts, this.reasoning, this.shown, this.bar);
  }

  take(part) {
    const now = performance.now();
    this.first ??= now;
    this.tokens = part.usage?.completion_tokens ?? this.tokens + 1;
    this.text += part.text;
    this.root = part.system_fingerprint ?? this.root;
    if (part.reasoning_content) {
      this.thoughts += part.reasoning_content;
      this.reflection.textContent = this.thoughts;
      this.reasoning.hidden = false;
      this.reasoning.open = !this.text; // in sight while nothing else is
    } else if (part.text) this.reasoning.open = false;
    if (part.finish_reason) this.end(part.finish_reason);
    if (part.prompt) this.prompt = part.prompt;
    const seconds = (now - this.first) / 1000;
    const speed = this.tokens > 1 && seconds > 0 ? ((this.tokens - 1) / seconds).toFixed(1) + " tokens/s" : "";
    this.facts.textContent = [
      `${this.tokens} ${this.tokens === 1 ? "token" : "tokens"}`, speed, `first after ${((this.first - this.began) / 1000).toFixed(2)} s`, ENDS[this.reason],
    ].filter(Boolean).join(" · ");
    this.draw();
  }

  // Drawn once a frame at most, however fast tokens come.
  draw() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => { this.waits = false; this.drawNow(); });
  }

  drawNow() {
    const asWritten = !$("as-markdown").checked;
    this.shown.classList.toggle("written", asWritten);
    this.shown.replaceChildren(asWritten ? this.text : render(this.text));
  }

  end(reason) {
    this.reason = reason;
    this.bar.prepend(button("Copy", () => copy(this.text), `Copy the answer of ${this.title.textContent}`));
  }

  get isWhole() { return this.reason === "stop" || this.reason === "length"; }
}
