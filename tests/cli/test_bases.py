"""The one base of several adapters, or an error that names those that disagree."""

import pytest

from manytune.cli.bases import common_base
from manytune.errors import StoreError


def test_adapters_of_one_base_have_it_in_common():
    assert common_base({"summaries": "tiny", "questions": "tiny"}) == "tiny"


def test_different_bases_are_listed_with_the_adapters_that_name_them():
    message = r"different bases \(summaries: tiny; questions: large\)\. Give those of one base .*--base"
    with pytest.raises(StoreError, match=message):
        common_base({"summaries": "tiny", "questions": "large"})


def test_an_adapter_that_names_no_base_is_named():
    with pytest.raises(
        StoreError, match=r"questions: the adapter doesn't say what its base is\. Name it with --base"
    ):
        common_base({"summaries": "tiny", "questions": None})
