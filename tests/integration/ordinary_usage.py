"""Everyday use of HF PEFT, as its documentation shows it; the tests run it with either library's import."""

import tempfile
import warnings

import peft
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)


def show(what, value):
    if isinstance(value, torch.Tensor):
        value = [round(number, 6) + 0.0 for number in value.detach().flatten()[:6].tolist()]
    print(f"{what}: {value}")


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, pad_token_id=0, **sizes))


ids = torch.randint(1, 64, (4, 8), generator=torch.Generator().manual_seed(1))

# Attach LoRA, look at what trains, train.
config = peft.LoraConfig(
    task_type=peft.TaskType.CAUSAL_LM, r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]
)
model = peft.get_peft_model(llama(), config)
model.print_trainable_parameters()
show("class", type(model).__name__)
show("config", (config.r, sorted(config.target_modules), config.peft_type == "LORA", config.inference_mode))
show("targets", model.targeted_module_names)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for step in range(5):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    show(f"loss {step}", loss)
model.eval()
trained = model(input_ids=ids).logits
show("logits", trained)
with model.disable_adapter():
    show("base", model(input_ids=ids).logits)
show("generated", model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[:, 8:].tolist())

# Save and load.
with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    show("kind", peft.PeftConfig.from_pretrained(directory).peft_type.value)
    loaded = peft.PeftModel.from_pretrained(llama(), directory)
    show("loaded", torch.equal(loaded(input_ids=ids).logits, trained))
    show("trainable", loaded.get_nb_trainable_parameters())
    show("keys", sorted(loaded.load_adapter(directory, adapter_name="again").missing_keys))
    loaded.set_adapter("again")
    show("again", loaded.active_adapter)

# Several adapters: add, switch, combine, delete.
torch.manual_seed(3)
model.add_adapter("second", peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
model.set_adapter("second")
show("second", model(input_ids=ids).logits)
model.add_weighted_adapter(["default", "second"], [0.7, 0.3], "both", combination_type="cat")
model.set_adapter("both")
show("both", model(input_ids=ids).logits)
names = ["default", "__base__", "second", "both"]
show("per sample", model(input_ids=ids, adapter_names=names).logits[:, 0, 0])
model.delete_adapter("both")
model.set_adapter("default")
show("adapters", sorted(model.peft_config))
try:
    model.set_adapter("nobody")
except ValueError as error:
    show("error", str(error)[:14])

# Merge, unmerge, and take the plain model.
model.merge_adapter()
show("merged", model(input_ids=ids).logits)
model.unmerge_adapter()
status = model.get_model_status()
show("status", (status.enabled, status.active_adapters, status.num_adapter_layers, status.total_params))
state = peft.get_peft_model_state_dict(model)
show("state", sorted((key, tuple(value.shape)) for key, value in state.items()))
show("plain", model.merge_and_unload()(input_ids=ids).logits)

# Other methods and tasks.
for other in (
    peft.IA3Config(task_type="CAUSAL_LM"),
    peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
):
    model = peft.get_peft_model(llama(), other)
    model.print_trainable_parameters()
    model.eval()
    show(str(other.peft_type.value), tuple(model(input_ids=ids).logits.shape))
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
classifier = BertForSequenceClassification(BertConfig(vocab_size=64, **sizes)).eval()
model = peft.get_peft_model(classifier, peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, use_dora=True))
show("classes", model(input_ids=ids, labels=torch.tensor([0, 1, 1, 0])).loss)
show("heads", sorted(model.modules_to_save))
show("trains", sorted(n for n, p in model.named_parameters() if p.requires_grad)[-2:])
network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
network = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0", "2"], r=2), network)
show("injected", [name for name, p in network.named_parameters() if p.requires_grad])
