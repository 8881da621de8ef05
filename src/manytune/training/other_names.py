"""What transformers, TRL, LLaMA-Factory, axolotl and torchtune call what a recipe has a key for."""

from __future__ import annotations

_KEYS = {
    "base": "model model_name model_name_or_path model_id base_model pretrained_model_name_or_path",
    "output": "output_dir save_path",
    "data.train": "dataset datasets train_file train_data train_dataset train_path data_path",
    "data.validation": "eval_dataset validation_file val_size valid_file valid_data eval_file val_set_size",
    "data.test": "test_file test_data test_dataset",
    "data.prompt": "instruction input question prompt_template prompt_column",
    "data.completion": "response answer target output_column completion_column",
    "data.system": "system_prompt system_message default_system",
    "data.max_length": "max_seq_length max_seq_len cutoff_len sequence_len model_max_length",
    "data.chat": "chat_template apply_chat_template",
    "data.learn": "assistant_only_loss train_on_inputs completion_only_loss train_on_prompt",
    "method.name": "adapter peft_type peft_method finetuning_type",
    "method.r": "lora_r lora_rank rank",
    "method.lora_alpha": "alpha",
    "method.lora_dropout": "dropout",
    "method.target_modules": "lora_target lora_targets lora_target_modules targets target",
    "training.epochs": "num_train_epochs num_epochs",
    "training.max_steps": "max_train_steps num_steps steps iterations max_steps_per_epoch",
    "training.batch_size": "per_device_train_batch_size train_batch_size micro_batch_size",
    "training.accumulation": "gradient_accumulation_steps gradient_accumulation accumulate_grad_batches",
    "training.learning_rate": "lr max_lr",
    "training.optimizer": "optim optimiser",
    "training.lr_scheduler": "lr_scheduler_type scheduler schedule scheduler_type",
    "training.lr_scheduler_options": "lr_scheduler_kwargs",
    "training.warmup": "warmup_ratio warmup_steps num_warmup_steps",
    "training.max_grad_norm": "clip_grad_norm gradient_clipping grad_clip",
    "training.batching": "packing sample_packing group_by_length padding_free",
    "training.seed": "random_seed data_seed",
    "training.eval_every": "eval_steps eval_strategy evaluation_strategy",
    "training.checkpoint_every": "save_steps save_strategy",
    "training.keep": "load_best_model_at_end",
    "training.best_metric": "metric_for_best_model",
    "training.early_stopping": "early_stopping_patience patience",
    "training.dtype": "bf16 fp16 bfloat16 precision mixed_precision torch_dtype",
    "training.sharding": "fsdp fsdp_config fsdp_version fsdp_sharding_strategy sharding_strategy",
    "training.gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing",
    "training.compile": "torch_compile",
}
#: Methods of others, and how a recipe writes them.
_METHODS = {
    "qlora": "method: {name: lora} with weights: nf4",
    "dora": "method: {name: lora, use_dora: true}",
    "rslora": "method: {name: lora, use_rslora: true}",
    "pissa": "method: {name: lora, init_lora_weights: pissa}",
    "olora": "method: {name: lora, init_lora_weights: olora}",
}
_BY_NAME = {name: key for key, names in _KEYS.items() for name in names.split()}


def method_called_here(name: str) -> str:
    """How a recipe writes a method that others call so; empty if it isn't known."""
    written = _METHODS.get(name.casefold())
    return f"{name!r} is {written} here" if written else ""


def called_here(name: str) -> str:
    """What a recipe calls what others call so, such as `'lr' is training.learning_rate here`; empty if unknown."""
    key = _BY_NAME.get(name.casefold().replace("-", "_"))
    return f"{name!r} is {key} here" if key else ""
