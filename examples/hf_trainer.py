"""LoRA with transformers' Trainer: a manytune model goes where a model goes."""

import tempfile
from pathlib import Path

from tiny import decoder, rows
from transformers import Trainer, TrainingArguments, default_data_collator

from manytune import AdapterCheckpoints, LoraConfig, PeftModel, get_peft_model


class AdapterTrainer(AdapterCheckpoints, Trainer):
    """A Trainer that knows adapters, with `peft` installed or without."""


model = get_peft_model(decoder(), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
with tempfile.TemporaryDirectory() as directory:
    trainer = AdapterTrainer(
        model,
        TrainingArguments(
            directory,
            max_steps=60,
            per_device_train_batch_size=32,
            learning_rate=2e-2,
            # Checkpoints hold the adapter alone, resume and load the best model; see AdapterCheckpoints.
            save_strategy="steps",
            save_steps=20,
            eval_strategy="steps",
            eval_steps=20,
            load_best_model_at_end=True,
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=rows(),
        eval_dataset=rows(),
        data_collator=default_data_collator,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"loss: {before:.3f} -> {after:.3f}")

    best = Path(trainer.state.best_model_checkpoint or directory)
    trainer.model = PeftModel.from_pretrained(decoder(), best)
    same = abs(trainer.evaluate()["eval_loss"] - after) < 1e-6
print(f"loaded: {'the same' if same else 'different'} loss")
