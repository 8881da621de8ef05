"""What people get wrong, what they read then, and that `docs/troubleshooting.md` says it.

`python -m tests.mistakes.page` writes the page again after a message has changed; look at what changed in it.
"""

import pytest
from tests.mistakes.page import PAGE, all_answers, render


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str, str]]]:
    return all_answers(tmp_path_factory.mktemp("mistakes"))


def test_every_message_says_what_to_do_next(answers) -> None:
    found = [answer for section in answers.values() for answer in section]
    assert len(found) >= 40
    assert [(what, message) for what, message, step in found if step not in message] == []


def test_no_message_is_a_traceback_or_a_librarys_own_words(answers) -> None:
    for section in answers.values():
        for what, message, _ in section:
            for unwanted in ("Traceback", "Errno", "Error:", "errors.pydantic", "NoneType", "0x7f"):
                assert unwanted not in message, what
            assert 20 < len(message) < 900, (what, message)


def test_the_page_on_troubleshooting_is_what_the_program_says(answers) -> None:
    assert PAGE.read_text() == render(answers), "run: python -m tests.mistakes.page"
