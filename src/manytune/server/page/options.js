// How the models answer: every option of /v1/compare, each sent only if it was filled in.
import { $, element } from "./dom.js";

const number = (text) => { if (!Number.isFinite(Number(text))) throw new Error("expected a number"); return Number(text); };
const lines = (text) => text.split("\n").filter(Boolean);
const object = (text) => {
  const found = JSON.parse(text);
  if (typeof found !== "object" || Array.isArray(found)) throw new Error("expected an object in JSON");
  return found;
};
const schema = (text) => ({ type: "json_schema", json_schema: { name: "answer", schema: object(text) } });

export const OPTIONS = [
  { name: "max_tokens", label: "Token limit", value: "256", min: 1, step: 1, read: number, first: true },
  { name: "temperature", label: "Temperature", value: "0", min: 0, max: 2, step: 0.1, read: number, first: true },
  { name: "top_p", label: "Top p", hint: "1", min: 0, max: 1, step: 0.05, read: number, first: true },
  { name: "seed", label: "Seed", hint: "random", step: 1, read: number, first: true },
  { name: "top_k", label: "Top k", hint: "all", min: 1, step: 1, read: number },
  { name: "min_p", label: "Min p", hint: "0", min: 0, max: 1, step: 0.05, read: number },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "1", min: 0, max: 10, step: 0.05, read: number },
  { name: "presence_penalty", label: "Presence penalty", hint: "0", min: -2, max: 2, step: 0.1, read: number },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "0", min: -2, max: 2, step: 0.1, read: number },
  { name: "stop", label: "Stop strings", hint: "one per line", area: true, read: lines },
  { name: "stop_token_ids", label: "Stop tokens", hint: "such as 2, 32000", read: (text) => text.split(/[\s,]+/).filter(Boolean).map(number) },
  { name: "logit_bias", label: "Logit bias", hint: '{"50256": -100}', read: object },
  { name: "regex", label: "Regular expression", hint: "of the whole answer", read: String },
  { name: "grammar", label: "Grammar", hint: 'start: "yes" | "no"', area: true, read: String },
  { name: "response_format", label: "JSON schema", hint: '{"type": "object"}', area: true, read: schema },
  { name: "chat_template_kwargs", label: "Chat template variables", hint: '{"enable_thinking": true}', read: object },
  { name: "task", label: "Task", hint: "of an adapter of several", read: String },
  { name: "special_tokens_in_text", label: "Special tokens in text", choices: { "": "as in training", true: "are tokens", false: "are text" }, read: (text) => text === "true" },
  { name: "ignore_eos", label: "Continue after the end token", check: true },
  { name: "skip_special_tokens", label: "Leave special tokens out", check: true },
];

const idOf = (option) => option.name.replaceAll("_", "-");

export function showOptions() {
  for (const option of OPTIONS) $(option.first ? "options" : "more-options").append(control(option));
}

function control(option) {
  const tag = option.choices ? "select" : option.area ? "textarea" : "input";
  const field = element(tag);
  field.id = idOf(option);
  if (tag === "input") field.type = option.check ? "checkbox" : option.step ? "number" : "text";
  for (const limit of ["min", "max", "step"]) if (option[limit] !== undefined) field[limit] = option[limit];
  if (option.hint) field.placeholder = option.hint;
  for (const [value, text] of Object.entries(option.choices ?? {})) {
    const choice = element("option", "", text);
    choice.value = value;
    field.append(choice);
  }
  if (option.value) field.value = option.value;
  const name = element("span", "label", option.label);
  const label = element("label", option.check ? "check" : option.area ? "wide" : "");
  label.append(...(option.check ? [field, name] : [name, field]));
  return label;
}

// The options that were filled in, as the API has them.
export function chosenOptions({ hasFields }) {
  const found = {};
  for (const option of OPTIONS) {
    const field = $(idOf(option));
    if (option.name === "task" && !hasFields) continue;
    if (option.check) {
      if (field.checked) found[option.name] = true;
    } else if (field.value.trim() || (field.value && option.area)) {
      try { found[option.name] = option.read(field.value); }
      catch (error) { throw new Error(`${option.label}: ${error.message}`); }
    }
  }
  return found;
}
