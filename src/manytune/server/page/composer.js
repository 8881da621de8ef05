// What is asked next: a message, or the fields of the adapters' prompt templates. What was typed goes along from one to
// the other.
import { $, element } from "./dom.js";

let names = [];

export function showFields(fields) {
  names = fields;
  $("fields-switch").hidden = !names.length;
  switchTo(names.length > 0 && $("use-fields").checked);
}

export function switchTo(on) {
  const values = fieldValues(), was = !$("fields").hidden;
  if (on && !was) {
    const empty = names.find((name) => !values[name]?.trim());
    if ($("prompt").value.trim() && empty) { values[empty] = $("prompt").value; $("prompt").value = ""; }
  } else if (was && !on && !$("prompt").value.trim()) {
    const typed = Object.entries(values).find(([, text]) => text.trim());
    if (typed) { $("prompt").value = typed[1]; values[typed[0]] = ""; }
  }
  $("words").hidden = on;
  $("fields").hidden = !on;
  $("fields-note").hidden = !on;
  const kept = { ...values };
  $("fields").replaceChildren(...[...new Set([...names, ...Object.keys(kept).filter((name) => kept[name].trim())])].map((name) => {
    const area = element("textarea");
    area.name = name;
    area.value = kept[name] ?? "";
    const label = element("label", "", element("span", "label", name), area);
    label.hidden = !names.includes(name); // of an adapter that isn't chosen now
    return label;
  }));
}

const fieldValues = () => Object.fromEntries([...document.querySelectorAll("#fields textarea")].map((area) => [area.name, area.value]));

export const usesFields = () => !$("fields").hidden;

export function asked() {
  if (!usesFields()) return { text: $("prompt").value };
  const values = fieldValues();
  return { fields: Object.fromEntries(names.map((name) => [name, values[name] ?? ""])) };
}

export const isEmpty = ({ text, fields }) => (fields ? Object.values(fields).some((value) => !value.trim()) : !text.trim());
