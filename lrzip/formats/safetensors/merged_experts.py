"""Model types whose numbered experts transformers merges into one tensor as it loads them (transformers 5.24)."""

_NAMES = """
afmoe axk1 axk2 bailing_hybrid beam cohere2_moe deepseek_ocr2 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4
dots1 dots3_note_vision_encoder ernie4_5_moe ernie4_5_vl_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite
glm4v_moe glm5_next glm5_next_text glm_moe_dsa hunyuan_v1_moe hy_v3 inkling2_loop_text inkling2_text
inkling_mm_model jamba kimi_k25 kimi_linear kolibri1 laguna lfm2_moe longcat_flash mellum mimo_v2_flash minimax
minimax_m2 minimax_m3_vl mistral_large4_text mixtral nemo_speechlm nemotron_h olmoe phimoe qwen2_moe
qwen3_5_moe_text qwen3_moe qwen3_next qwen3_omni_moe qwen3_omni_moe_text qwen3_omni_moe_thinker qwen3_vl_moe
qwen4_exp_text sarvam_mla sarvam_moe solar_open
"""
MERGED_EXPERTS = frozenset(_NAMES.split())
