"""Write E2E's devset.csv as conversations: a text about a restaurant is answered with its facts as JSON.

Writes e2e-json.jsonl, one row for each set of facts, and the answers' JSON schema, e2e-json.schema.json.
"""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

KEYS = {"customer rating": "customerRating"}
FACT = re.compile(r"([^,\[]+)\[([^\]]*)\]")

texts: dict[str, list[str]] = {}
with open("devset.csv", encoding="utf-8", newline="") as file:
    for row in csv.DictReader(file):
        texts.setdefault(row["mr"], []).append(row["ref"])

answers: dict[str, dict[str, Any]] = {}
for mr in texts:
    facts = {KEYS.get(key.strip(), key.strip()): value for key, value in FACT.findall(mr)}
    answers[mr] = {key: value == "yes" if key == "familyFriendly" else value for key, value in facts.items()}


def values(key: str) -> list[Any]:
    """Every value of a fact."""
    return sorted({answer[key] for answer in answers.values() if key in answer})


properties: dict[str, Any] = {"name": {"type": "string"}}
properties |= {
    key: {"enum": values(key)} for key in ("eatType", "food", "priceRange", "customerRating", "area")
}
properties |= {"familyFriendly": {"type": "boolean"}, "near": {"type": "string"}}
schema = {"type": "object", "properties": properties, "required": ["name"], "additionalProperties": False}

keys = [
    f"{key} ({' | '.join(map(json.dumps, one['enum']))})".replace("\\u00a3", "£")
    if "enum" in one
    else f"{key} (true | false)"
    if one["type"] == "boolean"
    else key
    for key, one in properties.items()
]
system = (
    f"Write the facts of a text about a restaurant as a JSON object. Its keys: {', '.join(keys)}. "
    "Leave out keys that the text says nothing about."
)

draw, used = random.Random(0), set()
with open("e2e-json.jsonl", "w", encoding="utf-8") as file:
    for mr in sorted(texts):
        answer = {key: answers[mr][key] for key in properties if key in answers[mr]}
        # Some texts belong to two sets of facts; here a text has one answer.
        text = draw.choice([text for text in texts[mr] if text not in used])
        used.add(text)
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": text},
            {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)},
        ]
        file.write(json.dumps({"mr": mr, "messages": messages}, ensure_ascii=False) + "\n")
Path("e2e-json.schema.json").write_text(
    json.dumps(schema, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
)
