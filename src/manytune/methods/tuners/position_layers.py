"""Layers of encoder-decoders that see positions, not tokens: they can't tell the rows of a mixed batch apart."""

from __future__ import annotations

from manytune.methods.tuners.terms import INSTEAD, Terms, TermsError

#: Last name of the modules that embed positions, in BART's relatives.
POSITION_TABLE = "embed_positions"
_NAMES = (POSITION_TABLE, "relative_attention_bias")


def check_positions(terms: Terms) -> None:
    """Refuse an adapter that changes what an encoder-decoder makes of positions.

    Raises:
        TermsError: It does.
    """
    for path in (*terms.updates, *terms.factors):
        if path.rpartition(".")[2] in _NAMES:
            raise TermsError(
                f"{path}: the adapter changes a layer of positions, which all rows of a batch share in an "
                f"encoder-decoder. {INSTEAD}"
            )
