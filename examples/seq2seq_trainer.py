"""LoRA on an encoder-decoder with transformers' Seq2SeqTrainer, which generates while it evaluates."""

import tempfile

from tiny import encoder_decoder, rows
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, default_data_collator

from manytune import LoraConfig, get_peft_model

model = get_peft_model(
    encoder_decoder(), LoraConfig(task_type="SEQ_2_SEQ_LM", r=8, target_modules="all-linear")
)
data = rows(prompt_in_labels=False)


def correct(predicted) -> dict[str, float]:
    """The share of rows whose first generated token is the right one."""
    ids, labels = predicted.predictions, predicted.label_ids
    return {"correct": float((ids[:, 1] == labels[:, 0]).mean())}


with tempfile.TemporaryDirectory() as directory:
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            directory,
            max_steps=60,
            per_device_train_batch_size=32,
            learning_rate=2e-2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            predict_with_generate=True,
            generation_max_length=4,
        ),
        train_dataset=data,
        eval_dataset=data,
        data_collator=default_data_collator,
        compute_metrics=correct,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
print(f"loss: {before['eval_loss']:.3f} -> {after['eval_loss']:.3f}")
print(f"correct: {before['eval_correct']:.0%} -> {after['eval_correct']:.0%}")
