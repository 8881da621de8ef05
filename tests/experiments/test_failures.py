"""How a trial failed is kept next to its record, and read again."""

import pytest

from manytune.errors import RunError
from manytune.experiments.failures import Failure, failure_of, forget_failure, keep_failure


def test_a_failure_is_read_as_it_was_written_until_it_is_forgotten(tmp_path):
    assert failure_of(tmp_path, "r=1/seed-0") is None
    keep_failure(tmp_path, "r=1/seed-0", Failure("lost.", lost=3))
    assert failure_of(tmp_path, "r=1/seed-0") == Failure("lost.", lost=3)
    for _ in range(2):
        forget_failure(tmp_path, "r=1/seed-0")
    assert failure_of(tmp_path, "r=1/seed-0") is None


def test_a_file_of_another_form_is_named(tmp_path):
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "a.json").write_text("[]")
    with pytest.raises(RunError, match=r"a\.json: how the trial failed can't be read"):
        failure_of(tmp_path, "a")
