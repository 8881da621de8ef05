"""LoRA with accelerate: `accelerate launch accelerate_loop.py` runs the same loop on several devices."""

import tempfile

import torch
from accelerate import Accelerator
from tiny import decoder, rows

from manytune import LoraConfig, PeftModel, get_peft_model

accelerator = Accelerator()
model = get_peft_model(decoder(), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
data = [{name: torch.tensor(ids) for name, ids in row.items()} for row in rows()]
loader = torch.utils.data.DataLoader(data, batch_size=32)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
losses = []
for _ in range(30):
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
accelerator.print(f"loss: {losses[0]:.3f} -> {losses[-1]:.3f}")

with tempfile.TemporaryDirectory() as directory:
    trained = accelerator.unwrap_model(model)
    trained.save_pretrained(directory)
    again = accelerator.prepare(PeftModel.from_pretrained(decoder(), directory))
    same = torch.equal(again(**batch).logits, trained.eval()(**batch).logits)
accelerator.print(f"loaded: {'the same' if same else 'different'} logits")
