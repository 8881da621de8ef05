from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from manytune.store.digests import digest_in, digest_of, sha256_file
from manytune.store.manifest import Manifest

#: A manifest as manytune 0.1.0 wrote it, for one task and for several.
WRITTEN = {
    "format": 1,
    "method": "lora",
    "base": "embedded",
    "fingerprint": {"config": "c" * 64, "weights": "a" * 64, "tokenizer": "b" * 64},
    "template": {"prompt": "{{ text }}", "completion": "{{ réponse }}"},
    "encoding": "chat",
    "recipe": {"method": {"name": "lora"}},
    "scores": {"rouge1": 0.5},
    "files": {"adapter_config.json": "1" * 64, "adapter_model.safetensors": "2" * 64},
    "created": "2026-01-31T12:00:00Z",
    "manytune": "0.1.0",
}
TASKS = {"template": None, "templates": {"one": {"prompt": "p"}, "two": {"prompt": "q"}}}


def test_sha256_of_a_file_is_the_published_value_for_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected


@pytest.mark.parametrize("change", [{}, TASKS], ids=["one task", "several tasks"])
def test_the_digest_is_the_sha256_of_what_decides_an_answer(change: dict[str, object]) -> None:
    written = WRITTEN | change
    manifest = Manifest.from_json(json.dumps(written), where="here")
    deciding = [
        written["files"],
        written["fingerprint"],
        written["template"],
        written.get("templates", {}),
        written["encoding"],
    ]
    text = json.dumps(deciding, sort_keys=True, ensure_ascii=False)
    assert digest_of(manifest) == hashlib.sha256(text.encode()).hexdigest()


def test_options_of_the_encoding_decide_an_answer_too() -> None:
    plain = Manifest.from_json(json.dumps(WRITTEN), where="here")
    digests = {
        digest_of(dataclasses.replace(plain, encoding_options=options))
        for options in (None, {"date": "2026-01-31"}, {"date": "2026-02-01"}, {"max_prompt": 7})
    }
    assert len(digests) == 4


@pytest.mark.parametrize("field", ["method", "base", "recipe", "scores", "created", "manytune"])
def test_what_only_describes_an_adapter_leaves_its_digest(field: str) -> None:
    manifest = Manifest.from_json(json.dumps(WRITTEN), where="here")
    other = dataclasses.replace(manifest, **{field: {} if field in ("recipe", "scores") else "other"})
    assert digest_of(other) == digest_of(manifest)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("ab" * 32, "ab" * 32), ("ab" * 32 + "\n", None), ("AB" * 32, None), ("ab", None), ("", None)],
)
def test_only_a_whole_digest_is_read_from_a_file(content: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "name").write_text(content)
    assert digest_in(tmp_path / "name") == expected
    assert digest_in(tmp_path / "absent") is None
