"""What events add to an answer: text, reasoning and log probabilities, each once."""

from manytune.data.encoding.answer_format import AnswerFormat
from manytune.engine.request import FinishReason, Output, TokenLogprobs, Usage
from manytune.server.answers.formats import Delta, PartialAnswer

FORMAT = AnswerFormat("<think></think>", "", "$", ("<think>", "</think>"))
END = 9


def output(
    text: str, token: int = 1, reason: FinishReason | None = None, *, logprobs: bool = False
) -> Output:
    found = TokenLogprobs(token, -0.5) if logprobs else None
    return Output("only", token, text, reason, found, Usage(3, 0, 1))


def added(answer: PartialAnswer, *outputs: Output) -> list[Delta]:
    return [answer.add(one) for one in outputs]


def test_the_templates_block_is_held_back_and_left_out() -> None:
    answer = PartialAnswer(FORMAT)
    deltas = added(answer, output("<think>"), output("</think>"), output("3"), output("", END, "stop"))
    assert [one.text for one in deltas] == ["", "", "3", ""]
    assert answer.message == {"role": "assistant", "content": "3", "refusal": None}
    assert (answer.reason, answer.usage.prompt_tokens) == ("stop", 3)


def test_reasoning_comes_as_reasoning() -> None:
    answer = PartialAnswer(FORMAT)
    deltas = added(answer, output("<think>so"), output(" on</think>3"), output("", END, "stop"))
    assert [(one.reasoning, one.text) for one in deltas] == [("so", ""), (" on", "3"), ("", "")]
    assert answer.message == {
        "role": "assistant",
        "content": "3",
        "reasoning_content": "so on",
        "refusal": None,
    }


def test_what_is_held_back_at_the_end_is_given_out() -> None:
    answer = PartialAnswer(FORMAT)
    assert [one.text for one in added(answer, output("<thi"), output("n", reason="length"))] == ["", "<thin"]


def test_every_token_has_log_probabilities_whatever_its_text_becomes() -> None:
    answer = PartialAnswer(FORMAT)
    deltas = added(
        answer,
        output("<think></think>", 4, logprobs=True),
        output("3", 5, logprobs=True),
        output("", END, "stop", logprobs=True),
    )
    assert [[one.token_id for one in delta.logprobs] for delta in deltas] == [[4], [5], [END]]
    assert [one.token_id for one in answer.logprobs] == answer.tokens == [4, 5, END]


def test_without_a_format_all_text_is_the_answer() -> None:
    answer = PartialAnswer()
    added(answer, output("<think>so</think>3", reason="stop"))
    assert (answer.text, answer.reasoning) == ("<think>so</think>3", "")
