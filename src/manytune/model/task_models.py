"""`PeftModelFor…`: a model with adapters, with the call signature of its task.

The parameters are spelled out because trainers read a model's signature to see which columns it takes. One
that is None is not passed on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from manytune.methods.config import TaskType
from manytune.model.peft_model import PeftModel


class PeftModelForCausalLM(PeftModel, task_type=TaskType.CAUSAL_LM):
    """A decoder-only language model with adapters."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base with the adapters in use.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for tokens and 0 for padding.
            inputs_embeds: (batch, length, dim), instead of ids.
            labels: (batch, length); -100 marks positions without loss.
            **kwargs: Passed to the base.
        """
        return super().forward(
            **_given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                labels=labels,
            ),
            **kwargs,
        )


class PeftModelForSeq2SeqLM(PeftModel, task_type=TaskType.SEQ_2_SEQ_LM):
    """An encoder-decoder with adapters."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base with the adapters in use.

        Args:
            input_ids: (batch, length), for the encoder.
            attention_mask: (batch, length), 1 for tokens and 0 for padding.
            inputs_embeds: (batch, length, dim), instead of ids.
            decoder_input_ids: (batch, target length); made from the labels if there are any.
            decoder_attention_mask: (batch, target length).
            decoder_inputs_embeds: (batch, target length, dim), instead of ids.
            labels: (batch, target length); -100 marks positions without loss.
            **kwargs: Passed to the base.
        """
        return super().forward(
            **_given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                decoder_inputs_embeds=decoder_inputs_embeds,
                labels=labels,
            ),
            **kwargs,
        )

    def generate(self, **kwargs: Any) -> Any:
        """The base's own generation, with the adapters in use; inputs go by name."""
        return super().generate(**kwargs)


class _PeftModelForLabels(PeftModel):
    """A model that labels sequences or tokens, with adapters."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base with the adapters in use.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for tokens and 0 for padding.
            inputs_embeds: (batch, length, dim), instead of ids.
            labels: (batch,) for sequences, (batch, length) for tokens; as the base takes them.
            token_type_ids: (batch, length), for models that tell segments apart.
            **kwargs: Passed to the base.
        """
        return super().forward(
            **_given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                labels=labels,
                token_type_ids=token_type_ids,
            ),
            **kwargs,
        )


class PeftModelForSequenceClassification(_PeftModelForLabels, task_type=TaskType.SEQ_CLS):
    """A classifier of sequences with adapters. Its head (`classifier` or `score`) trains in full."""


class PeftModelForTokenClassification(_PeftModelForLabels, task_type=TaskType.TOKEN_CLS):
    """A classifier of tokens with adapters. Its head (`classifier` or `score`) trains in full."""


class PeftModelForQuestionAnswering(PeftModel, task_type=TaskType.QUESTION_ANS):
    """A model that marks answers in a text, with adapters. Its head (`qa_outputs`) trains in full."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base with the adapters in use.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for tokens and 0 for padding.
            token_type_ids: (batch, length), for models that tell segments apart.
            position_ids: (batch, length).
            inputs_embeds: (batch, length, dim), instead of ids.
            start_positions: (batch,), the answer's first position.
            end_positions: (batch,), its last.
            **kwargs: Passed to the base.
        """
        return super().forward(
            **_given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                start_positions=start_positions,
                end_positions=end_positions,
            ),
            **kwargs,
        )


class PeftModelForFeatureExtraction(PeftModel, task_type=TaskType.FEATURE_EXTRACTION):
    """A model without a head, with adapters."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base with the adapters in use.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for tokens and 0 for padding.
            inputs_embeds: (batch, length, dim), instead of ids.
            **kwargs: Passed to the base.
        """
        return super().forward(
            **_given(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds),
            **kwargs,
        )


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
