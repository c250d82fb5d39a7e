"""What people type who come from transformers, TRL, peft, ms-swift or LLaMA-Factory, and what it is here.

A test compares the table with the fields of the installed libraries: each of them is a setting of that name, or is
answered here.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

# Our key, or how the same is said here -> their names.
_HERE = {
    "run.dir": "output_dir logging_dir",
    "run.seed": "seed",
    "data.seed (the order of the data) and run.seed": "data_seed",
    "trainer.epochs": "num_train_epochs epochs num_epochs",
    "trainer.learning_rate": "lr",
    "trainer.parts.encoder.learning_rate, .projector and .llm": "vit_lr aligner_lr",
    "trainer.warmup_steps (below 1: a share of the steps)": "warmup_ratio warmup_proportion",
    "trainer.keep_checkpoints (and keep_every_steps)": "save_total_limit",
    "trainer.keep_best=eval/SET and trainer.keep_best_is": (
        "load_best_model_at_end metric_for_best_model greater_is_better"
    ),
    "trainer.gradient_checkpointing.llm and .encoder: none, selective or full": (
        "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs "
        "vit_gradient_checkpointing activation_offloading disable_gradient_checkpointing"
    ),
    "trainer.compile_layers": "torch_compile torch_compile_backend torch_compile_mode",
    "trainer.use_liger_kernel (for all layers that it knows)": "liger_kernel_config enable_liger_kernel use_liger",
    "trainer.bf16: auto, true or false (float16 would need loss scaling, which is not implemented)": (
        "fp16 fp16_full_eval bf16_full_eval fp16_opt_level half_precision_backend pure_bf16 mixed_precision"
    ),
    "model.dtype for the weights, trainer.bf16 for the arithmetic": "torch_dtype dtype",
    "trainer.batches_per_step: micro-batches of a step over all GPUs, so GPUs x accumulation": (
        "gradient_accumulation_steps global_batch_size train_batch_size"
    ),
    "data.tokens_per_batch: batches are filled by tokens, not by samples (qa-train plan STAGE shows what fits)": (
        "per_device_train_batch_size per_gpu_train_batch_size auto_find_batch_size batch_size micro_batch_size"
    ),
    "data.tokens_per_batch and data.max_duration_s: samples are never cut; those that fit into no batch are counted": (
        "max_length max_seq_length cutoff_len truncation_mode truncation_strategy max_prompt_length max_new_length"
    ),
    "data.num_workers": "dataloader_num_workers preprocessing_num_workers",
    "data.sources.NAME.shards=[PATHS], or data=MIXTURE; qa-train data import makes shards of other formats": (
        "dataset datasets train_file train_dataset dataset_dir dataset_name custom_train_dataset_path media_dir"
    ),
    "data.sources.NAME.weight, and data.mixture.by": "interleave_prob interleave_probs mix_strategy dataset_weights",
    "data.sources.NAME.max_samples": "max_samples max_train_samples",
    "evaluation.sets.NAME.shards=[PATHS]": "val_dataset eval_dataset validation_file custom_val_dataset_path",
    "split_share=0.1 of qa-train data import, and evaluation.sets.NAME": "split_dataset_ratio val_size",
    "evaluation.every (steps; 0: off) with evaluation.sets": (
        "eval_strategy evaluation_strategy eval_steps eval_delay eval_on_start do_eval"
    ),
    "evaluation.batch_size and evaluation.token_budget": (
        "per_device_eval_batch_size per_gpu_eval_batch_size eval_accumulation_steps"
    ),
    "model.checkpoint=FOLDER with the model's shape, as in model=qwen2_audio_7b": (
        "model_name_or_path model_id_or_path model_type model_id pretrained_model_name_or_path"
    ),
    "model.freeze=[encoder,projector,llm]": (
        "freeze_vit freeze_aligner freeze_llm freeze_vision_tower freeze_multi_modal_projector freeze_language_model "
        "freeze_parameters freeze_trainable_layers"
    ),
    "model.lora.parts=[llm] (empty: full training)": (
        "train_type tuner_type sft_type finetuning_type use_peft use_lora adapter_type"
    ),
    "model.lora.r": "r lora_rank lora_r",
    "model.lora.alpha": "lora_alpha",
    "model.lora.dropout": "lora_dropout",
    "model.lora.target_modules (null: all linear layers)": "lora_target lora_target_modules lora_modules",
    "dpo.reference: live or precomputed": (
        "precompute_ref_log_probs precompute_ref_batch_size ref_model ref_adapters reference_free"
    ),
    "dpo.loss_type=[sigmoid,sft] dpo.loss_weights=[1,WEIGHT]": "rpo_alpha pref_ftx",
    "dpo.loss_type (pretraining and sft use cross-entropy)": "pref_loss loss_type",
    "dpo.beta": "pref_beta",
    "qa-train pretrain, sft or dpo": "stage rlhf_type task do_train do_predict",
    "deepspeed=zero2 or zero3": "fsdp fsdp_config parallelism_config fsdp_num zero_stage deepspeed_config",
    "tracking.report_to=[wandb,tensorboard,mlflow,trackio], tracking.wandb or tracking=none": (
        "report_to use_wandb plot_loss wandb_mode trackio_space_id trackio_bucket_id trackio_static_space_id"
    ),
    "tracking.project": "project wandb_project swanlab_project",
}
# Why there is no such setting -> their names.
_NONE = {
    "every step is logged (RUN/metrics.jsonl)": (
        "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter "
        "include_num_input_tokens_seen include_tokens_per_second include_num_input_tokens"
    ),
    "TRANSFORMERS_VERBOSITY=info in the environment shows the library's messages": "log_level log_level_replica",
    "progress is printed by step, whatever the terminal": "disable_tqdm",
    "a run in W&B has the name of its run.dir": "run_name wandb_run_id",
    "held-out sets are answered and scored by task, on all ranks": (
        "prediction_loss_only eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics "
        "label_names predict_with_generate metric eval_packing"
    ),
    "a checkpoint is saved every trainer.save_steps and at the end, always complete; qa-train export writes weights": (
        "save_only_model save_strategy save_on_each_node save_safetensors"
    ),
    "SIGTERM, SIGUSR1 and RUN/SAVE already save at the next step": "enable_jit_checkpoint",
    "qa-train export checkpoint=RUN out=FOLDER push=owner/name": (
        "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
        "push_to_hub_model_id"
    ),
    "the same command continues a run at its exact place": (
        "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint overwrite_output_dir "
        "resume_only_model"
    ),
    "CUDA_VISIBLE_DEVICES= trains on the CPU; processes come from torchrun": (
        "use_cpu no_cuda local_rank accelerator_config ddp_backend"
    ),
    "the order of the data is a pure function of seed and index, so loaders are fixed": (
        "dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers dataloader_multiprocessing_context "
        "dataloader_in_order remove_unused_columns train_sampling_strategy length_column_name group_by_length "
        "shuffle_dataset shuffle streaming lazy_tokenize buffer_size dataset_shuffle train_dataloader_shuffle "
        "overwrite_cache load_from_cache_file dataset_num_proc split_batches dispatch_batches "
        "val_dataset_shuffle shuffle_buffer_size"
    ),
    "the model has no unused or shared gradients to look for, and DDP's own values are kept": (
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_timeout_seconds"
    ),
    "batches hold real tokens only, packed without crossing samples": (
        "packing packing_strategy padding_free pad_to_multiple_of neat_packing padding_side sequence_parallel_size"
    ),
    "the loss is on answers only (loss: false on a turn leaves it out)": (
        "completion_only_loss assistant_only_loss train_on_prompt mask_history loss_scale train_on_inputs"
    ),
    "rows have messages and audios; other columns are named in qa-train data import": (
        "dataset_text_field dataset_kwargs columns formatting column_mapping"
    ),
    "the template is that of the model; data.sources.NAME.template is base or chat": (
        "template chat_template chat_template_path eos_token pad_token system default_system use_chat_template"
    ),
    "code from a model's folder is never executed": "trust_remote_code",
    "all of the model's fields come from its checkpoint or model.*.config": (
        "model_init_kwargs router_aux_loss_coef use_cache auto_mapping model_kwargs"
    ),
    "attention is chosen by the device, without padding": "attn_impl attn_implementation flash_attn use_flash_attn",
    "weights are not quantized in training": (
        "quant_method quant_bits quantization_bit load_in_4bit load_in_8bit quantization_method bnb_4bit_quant_type"
    ),
    "the optimizer's own options are trainer.adam_*, weight_decay and parts": "optim_args optim_target_modules",
    "torch's defaults are used; NVIDIA_TF32_OVERRIDE and torch's environment variables change them": (
        "tf32 full_determinism torch_empty_cache_steps debug skip_memory_metrics average_tokens_across_devices"
    ),
    "dropout comes from the model's configuration": "disable_dropout attention_dropout",
    "adapters are plain LoRA by peft": (
        "task_type peft_type peft_version base_model_name_or_path revision inference_mode exclude_modules "
        "fan_in_fan_out bias use_rslora modules_to_save init_lora_weights layers_to_transform layers_pattern "
        "rank_pattern alpha_pattern megatron_config megatron_core trainable_token_indices loftq_config eva_config "
        "corda_config "
        "lora_ga_config use_dora velora_config alora_invocation_tokens use_qalora qalora_group_size monteclora_config "
        "layer_replication runtime_config lora_bias target_parameters use_bdlora arrow_config kasa_config "
        "ensure_weight_tying additional_target loraplus_lr_ratio lorap_lr_ratio pissa_init create_new_adapter"
    ),
}


# Options of commands -> their names; a command that has the option answers so.
_OPTIONS = {
    "checkpoint": (
        "model model_path model_name model_name_or_path model_id model_id_or_path pretrained ckpt ckpt_dir ckpt_path "
        "checkpoint_dir checkpoint_path adapters adapter_path adapter_name_or_path adapter_model run_dir"
    ),
    "out": "output_dir output output_path out_dir save_dir save_path export_dir merged_dir outfile result_path",
    "merge": "merge_lora merge_adapters merge_and_unload",
    "push=owner/name": "push_to_hub hub_model_id repo_id export_hub_model_id",
    "private": "hub_private_repo use_private_repo",
    # The first of these that a command has: audio is a clip for chat, and the codec where shards are made.
    "shards path data audio": (
        "input input_path input_file file data_path dataset dataset_path val_dataset eval_dataset test_file"
    ),
    "shards path audio": "audios audio_path audio_file audio_files wav clip",
    "text": "prompt query question instruction message",
    "max_new_tokens": "max_tokens max_length max_completion_tokens max_gen_toks",
    "host": "server_name ip bind address listen",
    "port": "server_port",
    "examples": "example_dir examples_dir",
    "max_requests": "max_concurrency max_num_seqs",
    "benchmarks": "tasks task suite",
    "batch_size": "per_device_eval_batch_size max_batch_size",
    "device": "device_map gpu use_cpu no_cuda cuda",
}
_NO_OPTION = {
    "answers are shown as they are made": "stream streaming streamer",
    "weights keep the type in which they were trained": "torch_dtype dtype bf16 fp16 export_dtype",
    "weights are written as safetensors, in parts if they are large": (
        "safe_serialization max_shard_size export_size export_legacy_format"
    ),
    "nothing is quantized here; tools that do so read an export (docs/serve.md)": (
        "quant_method quant_bits quantization quantize load_in_4bit load_in_8bit export_quantization_bit gguf to_gguf "
        "to_ollama outtype"
    ),
    "one engine answers here; vLLM and others serve an export (docs/serve.md)": (
        "infer_backend backend engine tensor_parallel_size pipeline_parallel_size gpu_memory_utilization "
        "max_model_len vllm_max_model_len enforce_eager attn_impl"
    ),
    "no new folder is written here; qa-train export checkpoint=RUN out=FOLDER writes a Hugging Face folder": (
        f"out {_OPTIONS['out']}"
    ),
    "names are given with the checkpoints: checkpoint={NAME: PATH}": "served_model_name model_alias alias",
    "code from a model's folder is never executed": "trust_remote_code",
    "the template is the model's: chat, or base for a pretrained one": "chat_template model_type",
}

# Groups for which people give a place instead of a name -> what to write.
PLACES = {
    "model": "model= names a shape; weights are model.checkpoint=FOLDER_OR_HUB_ID",
    "data": "data= names a mixture; your own shards are data=empty '+data.sources.NAME.shards=[PATHS]' (docs/data.md)",
}


def habit(key: str) -> str | None:
    """What a key of another tool, with or without a section before it, is here; None for an unknown one."""
    return _answers().get(key.rpartition(".")[2])


def option_habit(name: str, options: Collection[str]) -> str | None:
    """What an option of another tool is for a command with these ``options``; None for an unknown one."""
    for answer, names in _OPTIONS.items():
        known, _, value = answer.partition("=")
        option = next((each for each in known.split() if each in options), None)
        if option and name in names.split():
            return f"here it is {option}={value}"
    if "checkpoint" not in options:
        return None
    return next((f"not needed: {why}" for why, names in _NO_OPTION.items() if name in names.split()), None)


@cache
def _answers() -> dict[str, str]:
    here = {name: f"here it is {answer}" for answer, names in _HERE.items() for name in names.split()}
    return here | {name: f"not needed: {why}" for why, names in _NONE.items() for name in names.split()}
