"""LoRA in a plain PyTorch loop: only the adapter trains, is saved, and is loaded onto a fresh base."""

import tempfile

import torch
from tiny import decoder, rows

from manytune import LoraConfig, PeftModel, get_peft_model

model = get_peft_model(decoder(), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
model.print_trainable_parameters()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
batch = {name: torch.tensor([row[name] for row in rows()]) for name in ("input_ids", "labels")}
losses = []
for _ in range(60):
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss: {losses[0]:.3f} -> {losses[-1]:.3f}")

with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    again = PeftModel.from_pretrained(decoder(), directory)
    same = torch.equal(again(**batch).logits, model.eval()(**batch).logits)
print(f"loaded: {'the same' if same else 'different'} logits")
