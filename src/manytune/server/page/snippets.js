// The next request as a command or a program, to go on with outside of the page.

// What the openai package has as arguments; everything else goes into extra_body.
const ARGUMENTS = new Set(["messages", "max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty",
  "frequency_penalty", "logit_bias", "response_format"]);

export function asCurl(models, body, hasKey) {
  const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
  const key = hasKey ? ' -H "Authorization: Bearer $MANYTUNE_API_KEY"' : "";
  return `curl -N ${location.origin}/v1/compare -H 'Content-Type: application/json'${key} -d ` +
    quoted(JSON.stringify({ models, ...body }));
}

export function asPython(models, body, hasKey) {
  const given = { messages: [], ...body };
  const names = Object.keys(given);
  const extra = Object.fromEntries(names.filter((name) => !ARGUMENTS.has(name)).map((name) => [name, given[name]]));
  const parts = names.filter((name) => ARGUMENTS.has(name)).map((name) => [name, given[name]]);
  if (Object.keys(extra).length) parts.push(["extra_body", extra]);
  const lines = parts.map(([name, value]) => `        ${name}=${literal(value)},\n`).join("");
  return (hasKey ? "import os\n\n" : "") + "from openai import OpenAI\n\n" +
    `client = OpenAI(base_url=${literal(location.origin + "/v1")}, api_key=${hasKey ? 'os.environ["MANYTUNE_API_KEY"]' : '"none"'})\n` +
    `for model in ${literal(models)}:\n    answer = client.chat.completions.create(\n        model=model,\n${lines}    )\n` +
    "    print(model, answer.choices[0].message.content)\n";
}

// A value of JSON as Python writes it.
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${literal(name)}: ${literal(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}
