"""Keys of config files on the Hub that the library's own configs no longer list.

It translates some of them (``rope_theta``, ``torch_dtype``) and passes over the others, which
older versions wrote. They are listed, and not every unknown key let pass, so that a misspelt one
is an error.
"""

from __future__ import annotations

#: Of every architecture.
GENERAL = frozenset(
    {
        *("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
        *("_num_labels", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix"),
        *("gradient_checkpointing", "torchscript", "pruned_heads", "output_past", "use_bfloat16"),
        *("is_decoder", "cross_attention_hidden_size", "add_cross_attention", "sep_token_id"),
        *("cls_token_id", "tie_word_embeddings", "tie_encoder_decoder", "transformers.js_config"),
        *("semantic_loss_ignore_index", "unk_token_id", "n_special", "predict_special_tokens"),
    }
)

#: Positions: names that became ``rope_parameters``, or that one kind of position is left for.
POSITIONS = frozenset(
    {
        *("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct"),
        *("rope_interleaved", "rope_pct", "use_mrope", "n_ctx", "position_embedding_type"),
    }
)

#: Of one architecture or a few.
PARTICULAR = frozenset(
    {
        *("directionality", "pooler_fc_size", "pooler_num_attention_heads"),  # bert
        *("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
        *("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"),  # albert
        *("norm_rel_ebd", "share_att_key", "position_buckets", "cls_dropout"),  # deberta-v2
        *("conv_kernel_size", "conv_act", "conv_groups", "attention_head_size"),
        *("summary_first_dropout", "summary_proj_to_labels"),  # electra
        *("classifier_dropout", "head_dim"),  # read by several where they are
        *("tie_weights_", "generator_size", "path_norm"),  # distilbert, electra, swin
        *("activation_dropout", "hidden_activation", "is_llama_config"),  # opt, gemma, llama
        *("max_window_layers", "multi_query", "n_inner"),  # qwen2, falcon, gpt
        *("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion"),  # bloom
        *("offset_alibi", "seq_length", "skip_bias_add", "skip_bias_add_qkv"),
        *("reshape_last_stage", "downsampling_rates"),  # segformer
    }
)

CARRIED = GENERAL | POSITIONS | PARTICULAR
