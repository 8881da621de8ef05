"""LoRA with transformers' Trainer: a manytune model goes where a model goes."""

import tempfile

from tiny import decoder, rows
from transformers import Trainer, TrainingArguments, default_data_collator

from manytune import LoraConfig, PeftModel, get_peft_model

model = get_peft_model(decoder(), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
with tempfile.TemporaryDirectory() as directory:
    trainer = Trainer(
        model,
        # The Trainer would save the base along with the adapter; save_pretrained saves the adapter alone.
        TrainingArguments(
            directory,
            max_steps=60,
            per_device_train_batch_size=32,
            learning_rate=2e-2,
            save_strategy="no",
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

    model.save_pretrained(directory)
    trainer.model = PeftModel.from_pretrained(decoder(), directory)
    same = abs(trainer.evaluate()["eval_loss"] - after) < 1e-6
print(f"loaded: {'the same' if same else 'different'} loss")
