"""What every answer of a fixed list must look like: a grammar, compiled for how a base's answers are written."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

from manytune.data.encoding.encode import Encoder
from manytune.engine.base_model import end_token_ids
from manytune.engine.constraint import Constraint
from manytune.engine.constraints.compiled import CompiledGrammar
from manytune.engine.constraints.grammar import Grammar, schema_grammar
from manytune.engine.constraints.reasoning import before_answer
from manytune.engine.constraints.spelling import special_tokens
from manytune.engine.constraints.vocabulary import Vocabulary
from manytune.errors import DataError
from manytune.evaluation.answers import Question
from manytune.evaluation.metrics.structured import SchemaValid
from manytune.store.base import Base


def constraint_of(grammar: Grammar, base: Base, encoder: Encoder) -> Constraint:
    """A grammar compiled for a base's answers, with what a chat template or reasoning puts before them.

    Raises:
        GrammarError: It isn't valid, fits no answer, or is too complex.
    """
    answers, tokenizer = encoder.answers, copy.deepcopy(base.tokenizer)
    before, rules = before_answer(answers.opening, answers.reasoning, special_tokens(tokenizer))
    whole = replace(grammar, start=f"{before} ({grammar.start})", rules="\n".join([*rules, grammar.rules]))
    ends = end_token_ids(base.model, tokenizer) | {encoder.end_id}
    return CompiledGrammar(whole, Vocabulary(tokenizer, base.model.config.get_text_config().vocab_size, ends))


def schema_constraint(
    valid: SchemaValid, base: Base, encoder: Encoder, questions: Iterable[Question]
) -> Constraint:
    """What holds a base's answers to the schema that a metric scores them by.

    Raises:
        GrammarError: Answers can't be held to it.
        DataError: Rows of their own `chat_template_kwargs` have the template begin answers differently.
    """
    other = next((one for one in questions if one.form != encoder.answers), None)
    if other is not None:
        raise DataError(
            "its chat_template_kwargs change what the chat template writes around an answer, and answers are held to a "
            "schema in one way for all rows. Take them out, or set them for all rows in the recipe",
            where=f"{other.item.source}:{other.item.row}",
        )
    return constraint_of(schema_grammar(valid.schema, valid.title), base, encoder)
