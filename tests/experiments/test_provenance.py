"""Where rows came from, as reports state it."""

from manytune.experiments.provenance import describe_sources


def test_a_file_has_its_hash_a_hub_name_has_none_and_each_is_named_once(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"abc")
    # The SHA-256 of "abc" is FIPS 180-2's first example.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe_sources([str(rows), "org/name", str(rows)]) == f"{rows} (SHA-256 {digest}), org/name"
