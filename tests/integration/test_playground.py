"""The playground as somebody uses it: by keyboard alone, on a phone, in the dark."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scipy.stats import binomtest
from tests.integration.conftest import Pages
from tests.integration.readable import check_readable, show_on
from tests.server.browser import FOUND, Page
from tests.server.world import alone, chat_ids, plain_ids
from trl.data_utils import apply_chat_template, is_conversational

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Segment
from manytune.store.base import Base

pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOUND is None, reason="no browser here")]

DONE = "document.querySelector('#state').textContent === 'Done.'"
LISTED = "document.querySelectorAll('#models input').length === 6"


@pytest.fixture
def tab(pages: Pages) -> Page:
    """The playground, with its models, in formatted or plain text as it is at first."""
    page = pages.open("/")
    page.wait(LISTED)
    return page


def ask(page: Page, text: str, *, tokens: int = 3) -> None:
    """Type a message and send it, by keyboard."""
    fill(page, "#max-tokens", str(tokens))
    fill(page, "#prompt", text)
    page.see("document.querySelector('#state').textContent = ''")
    page.press("Enter", control=True)
    page.wait(DONE)


def fill(page: Page, selector: str, text: str) -> None:
    page.tab_to(selector)
    page.see("document.activeElement.select()")
    page.write(text)


def turns(page: Page) -> Any:
    """What was asked in each turn, and what each model answered."""
    page.see(
        "document.querySelector('#as-markdown').checked && document.querySelector('#as-markdown').click()"
    )
    return page.see(
        "[...document.querySelectorAll('.turn')].map((turn) => [turn.querySelector('.said').textContent,"
        " Object.fromEntries([...turn.querySelectorAll('.answer')].map((card) =>"
        " [card.querySelector('h3').textContent, card.querySelector('.text').textContent]))])"
    )


def ids(base: Base, *texts: str, system: str = "") -> tuple[int, ...]:
    """A conversation of user and assistant in turn, as the adapters have it."""
    segments = [Segment("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts)]
    if system:
        segments.insert(0, Segment("system", system))
    return Encoder(base.tokenizer, max_length=None, chat=False).prompt_ids(segments)


def test_by_keyboard_alone_one_holds_a_conversation_edits_retries_and_continues_from_another_answer(
    tab: Page, pages: Pages, base: Base
) -> None:
    def answer(name: str, *texts: str, system: str = "") -> str:
        return alone(base, pages.store, name, ids(base, *texts, system=system), max_new_tokens=3).text

    ask(tab, "abc", tokens=3)
    ((asked, first),) = turns(tab)
    assert asked == "abc" and list(first) == ["base", "one", "two"]
    assert first["base"] == alone(base, pages.store, None, chat_ids(base, "abc"), max_new_tokens=3).text
    assert first["one"] == answer("one", "abc") and first["two"] == answer("two", "abc")
    assert tab.see("document.querySelector('#prompt').value") == ""
    tab.tab_to("[aria-label='Continue from the answer of two']")
    tab.press("Enter")
    ask(tab, "d")
    assert turns(tab)[1] == ["d", turns(tab)[1][1]]
    assert turns(tab)[1][1]["one"] == answer("one", "abc", first["two"], "d")
    # Escape leaves a turn as it was; another text drops what followed.
    tab.tab_to(".turn:first-child .asked button")
    tab.press("Enter")
    tab.press("Escape")
    assert [one[0] for one in turns(tab)] == ["abc", "d"]
    tab.press("Enter")
    tab.see("document.activeElement.select()")
    tab.write("b")
    tab.see("document.querySelector('#state').textContent = ''")
    tab.press("Enter", control=True)
    tab.wait(DONE)
    ((asked, changed),) = turns(tab)
    assert asked == "b" and changed["one"] == answer("one", "b")
    # With a system message and fewer models, the same is asked again.
    fill(tab, "#system", "a")
    tab.tab_to("#models input[value=base]")
    tab.press(" ")
    tab.tab_to(".turn .asked button:nth-child(2)")
    tab.see("document.querySelector('#state').textContent = ''")
    tab.press("Enter")
    tab.wait(DONE)
    ((asked, again),) = turns(tab)
    assert asked == "b" and list(again) == ["one", "two"] and again["one"] == answer("one", "b", system="a")
    tab.tab_to("#new")
    tab.press("Enter")
    assert turns(tab) == [] and tab.see("document.activeElement.id") == "prompt"


def test_two_answers_are_rated_by_a_click_kept_counted_and_exported_as_preferences(
    tab: Page, pages: Pages, base: Base
) -> None:
    tab.see(
        "document.querySelector('#models input[value=base]').click(); document.querySelector('#blind').click()"
    )
    ask(tab, "abc")
    assert sorted(turns(tab)[0][1]) == ["Answer A", "Answer B"]
    assert not tab.see("document.querySelector('.turn').outerHTML.match(/\\b(one|two)\\b/)")
    tab.tab_to(".answer:first-child [aria-label='Answer A is better']")
    tab.press("Enter")
    assert sorted(turns(tab)[0][1]) == ["one", "two"]
    (kept,) = json.loads(tab.see("localStorage.getItem('manytune-ratings')"))
    assert kept["better"] == 0 and kept["blind"] is True and kept["options"]["max_tokens"] == 3
    better, worse = kept["answers"]
    answers = {one["model"]: one["text"] for one in kept["answers"]}
    assert answers == {
        n: alone(base, pages.store, n, plain_ids(base, "abc"), max_new_tokens=3).text for n in answers
    }
    said = tab.see("document.querySelector('#ratings-pairs').textContent")
    assert "equal 0: no clear difference (sign test, p = 1.00)" in said
    assert f"{better['model']} better 1" in said and f"{worse['model']} better 0" in said
    tab.see("window.saved = []; URL.createObjectURL = (blob) => { saved.push(blob.text()); return 'data:,' };"
            " document.querySelector('#export-preferences').click()")  # fmt: skip
    (row,) = map(json.loads, tab.see("saved[0]").splitlines())
    assert row == {
        "prompt": [{"role": "user", "content": "abc"}],
        "chosen": [{"role": "assistant", "content": better["text"]}],
        "rejected": [{"role": "assistant", "content": worse["text"]}],
    }
    assert is_conversational(row)
    assert apply_chat_template(row, base.tokenizer)["chosen"].startswith(better["text"])
    # A second thought replaces the first one; a rating outlives the page.
    tab.see("document.querySelector('.rate button').click()")
    tab.open(pages.address + "/", width=1400)
    tab.wait(LISTED)
    assert "equal 1" in tab.see("document.querySelector('#ratings-pairs').textContent")


def test_the_sign_test_is_scipys_and_a_prompt_counts_once_for_a_pair(tab: Page) -> None:
    for wins, losses in ((0, 0), (1, 0), (7, 2), (2, 7), (5, 5), (60, 30), (900, 100)):
        found = tab.see(f"import('/page/ratings.js').then((module) => module.signTest({wins}, {losses}))")
        expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert found == pytest.approx(expected, rel=1e-9)

    def rating(question: str, better: int | None, *models: str) -> dict[str, Any]:
        return {"question": question, "better": better, "answers": [{"model": one} for one in models]}

    ratings = [
        *(
            rating("p", 0, "b", "a"),
            rating("p", 0, "b", "a"),
            rating("p", 1, "b", "a"),
        ),  # b, twice of three times
        *(rating("q", 1, "b", "a"), rating("r", None, "a", "b")),
        rating("s", 2, "a", "b", "c"),  # of a and b, nothing is known
    ]
    found = tab.see(f"import('/page/ratings.js').then((module) => module.comparisons({json.dumps(ratings)}))")
    counts = {(one["first"], one["second"]): (one["wins"], one["losses"], one["ties"]) for one in found}
    assert counts == {("a", "b"): (1, 1, 1), ("a", "c"): (0, 1, 0), ("b", "c"): (0, 1, 0)}


def test_models_are_found_by_words_and_tags_and_sorted_by_scores(tab: Page) -> None:
    def found() -> Any:
        return tab.see("[...document.querySelectorAll('#models .name')].map((one) => one.textContent)")

    assert found() == ["base", "one", "two", "zeta/1", "zeta/2", "zeta/3"]
    tab.tab_to("#model-search")
    tab.write("prod")
    assert found() == ["two"]
    about = tab.see("document.querySelector('#models .about').textContent")
    assert about == "loraproductionvalidation_loss 10rouge1 0.412"
    assert tab.see("document.querySelector('#models-chosen').textContent") == "base, one, two"
    tab.see("document.activeElement.select()")
    tab.write("zeta lora")
    assert found() == ["zeta/1", "zeta/2", "zeta/3"]
    tab.see("document.activeElement.select()")
    tab.write("  ")
    tab.see("document.querySelector('#model-order').value = 'score validation_loss';"
            " document.querySelector('#model-order').dispatchEvent(new Event('change'))")  # fmt: skip
    assert found() == ["base", "two", "zeta/3", "zeta/2", "zeta/1", "one"]


def test_what_was_typed_goes_along_into_the_template_and_back_and_options_are_sent(
    tab: Page, pages: Pages, base: Base
) -> None:
    fill(tab, "#prompt", "abc")
    tab.see("document.querySelector('#use-fields').click()")
    assert tab.see("document.querySelector('#fields textarea').value") == "abc"
    tab.see("document.querySelector('#use-fields').click()")
    assert tab.see("document.querySelector('#prompt').value") == "abc"
    tab.see("document.querySelector('#use-fields').click()")
    tab.see("document.querySelector('#logit-bias').value = '{\"5\": -100, \"6\": -100}';"
            "document.querySelector('#stop').value = 'q\\nz';"
            "document.querySelector('#max-tokens').value = 4")  # fmt: skip
    tab.see("document.querySelector('#ask').click()")
    tab.wait(DONE)
    bias: dict[str, Any] = {"logit_bias": {5: -100.0, 6: -100.0}, "stop": ("q", "z"), "max_new_tokens": 4}
    assert turns(tab)[0][1]["one"] == alone(base, pages.store, "one", plain_ids(base, "abc"), **bias).text
    # The program that does the same is one, and passes what the openai package has no name for in extra_body.
    tab.see("window.copied = ''; navigator.clipboard.writeText = async (text) => { copied = text; };"
            " document.querySelector('#ignore-eos').click();"
            " document.querySelector('#copy-python').click()")  # fmt: skip
    compile(tab.see("copied"), "copied", "exec")
    assert 'extra_body={"fields": {"text": "abc"}, "ignore_eos": True}' in tab.see("copied")
    tab.see("document.querySelector('#copy-curl').click()")
    assert f"curl -N {pages.address}/v1/compare" in tab.see("copied")
    tab.see("document.querySelector('#logit-bias').value = '[1]'; document.querySelector('#ask').click()")
    assert tab.see("document.querySelector('#state').textContent") == "Logit bias: expected an object in JSON"


def test_a_key_is_wanted_kept_for_the_tab_and_metrics_are_asked_for_no_more_once_refused(
    pages: Pages,
) -> None:
    page = pages.open("/", key="")
    page.wait("document.querySelector('#state').textContent === 'Enter your API key.'")
    page.tab_to("#key")
    page.write("user")
    page.press("Tab")
    page.wait(LISTED)
    before = pages.app.state.service.metrics.http_errors.labels("403")._value.get()
    for _ in range(2):
        ask(page, "abc", tokens=2)
    assert "Total" in page.see("document.querySelector('#load').textContent")
    assert pages.app.state.service.metrics.http_errors.labels("403")._value.get() == before + 1
    page.open(pages.address + "/", width=800)
    page.wait(LISTED)
    assert page.see("sessionStorage.getItem('manytune-key')") == "user"
    assert not page.see("JSON.stringify(localStorage).includes('user')")


def test_reasoning_is_shown_while_it_is_written_and_the_page_can_be_read_on_every_screen(tab: Page) -> None:
    ask(tab, "abc")
    tab.see("document.querySelector('.answer .bar button:nth-child(2)').click()")
    tab.see("document.querySelector('#settings details').open = true")
    ask(tab, "d")
    for width, dark in ((360, False), (360, True), (800, False), (1400, True)):
        show_on(tab, width, dark=dark)
        check_readable(tab, width, dark=dark)
    seen = "[card.reasoning.hidden, card.reasoning.open, card.reflection.textContent, card.text]"
    tab.see("import('/page/answer.js').then((module) => { window.card = new module.Answer('one');"
            " card.take({text: '', reasoning_content: 'Two <b>and</b> '}); })")  # fmt: skip
    assert tab.see(seen) == [False, True, "Two <b>and</b> ", ""]
    tab.see("card.take({text: '', reasoning_content: 'two.'}); card.take({text: 'Four'})")
    assert tab.see(seen) == [False, False, "Two <b>and</b> two.", "Four"]
