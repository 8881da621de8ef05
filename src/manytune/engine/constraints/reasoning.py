"""What comes before a constrained answer: what a chat template writes there, and reasoning, which is free."""

from __future__ import annotations

from collections.abc import Mapping

from manytune.engine.constraints.spelling import in_regex, spelled


def before_answer(
    opening: str, reasoning: tuple[str, str] | None, special: Mapping[str, int]
) -> tuple[str, list[str]]:
    """A part of a rule for what may come before an answer, and the rules that it names.

    Args:
        opening: What the chat template writes between the prompt and an answer.
        reasoning: What the model writes before and after reasoning; None if it doesn't reason. The first is empty if
            the prompt itself ends with it.
        special: Numbers of the tokenizer's special tokens.
    """
    if reasoning is None:
        return (f"({spelled(opening, special)})?", []) if opening else ("", [])
    begin, end = (mark.strip() for mark in reasoning)
    rules = [r"GAP: /\n+/"]
    if end in special:  # no text contains a special token
        opened = f"{spelled(begin, special)} " if begin else ""
        rules += ["THOUGHTS: /(?s:.)*/", f"reasoning: {opened}THOUGHTS {spelled(end, special)}"]
    elif begin in special:
        rules += [
            f"thoughts[lazy]: /(?s:.)*{in_regex(end)}/",
            f"reasoning: {spelled(begin, special)} thoughts",
        ]
    else:
        rules += [f"reasoning[lazy]: /{in_regex(begin)}(?s:.)*{in_regex(end)}/"]
    # Where the prompt itself begins the reasoning, no answer comes without it.
    return ("(reasoning GAP?)?" if begin else "reasoning GAP?"), rules
