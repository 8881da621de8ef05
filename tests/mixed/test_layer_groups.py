"""Which layers are taken to read the same tensor."""

import pytest

from manytune.mixed.layer_groups import LayerGroup, with_same_input


@pytest.mark.parametrize(
    ("parent", "names", "families"),
    [
        ("decoder.block.*.layer.0.SelfAttention", "qkvo", [["q", "k", "v"], ["o"]]),
        ("decoder.block.*.layer.1.EncDecAttention", "qkvo", [["q"], ["k", "v"], ["o"]]),
        ("layers.*.encoder_attn", ["q_proj", "k_proj", "v_proj"], [["q_proj"], ["k_proj", "v_proj"]]),
    ],
)
def test_queries_of_cross_attention_read_another_tensor_than_keys_and_values(parent, names, families):
    found = with_same_input([LayerGroup(f"{parent}.{name}", 8, 8) for name in names])
    assert [[group.path.rpartition(".")[2] for group in family] for family in found] == families
