"""Names of the arguments of attnpy._core's attention functions, in their order."""

ROTARY = ("rotary_cos", "rotary_sin", "rotary_interleaved", "query_positions", "key_positions")
POSITIONS = ("bias", "causal_offset", "window_size", "softcap", "alibi_slopes", "sinks", "query_lengths", "kv_lengths",
             "relative_bias", *ROTARY)  # fmt: skip
ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", *POSITIONS,
             "dropout_key", "return_lse", "out")  # fmt: skip
WEIGHTS = ("query", "key", "attn_mask", "is_causal", "scale", *POSITIONS, "rows", "out")
RECEIVED = (*WEIGHTS[:-2], "out")
VARLEN = ("query", "key", "value", "cu_seqlens_q", "cu_seqlens_k", "dropout_p", "is_causal", "scale", "causal_offset",
          "window_size", "softcap", "alibi_slopes", "sinks", "relative_bias", *ROTARY, "dropout_key",
          "return_lse", "out")  # fmt: skip
# In the order of `needs` in _core:
GRADIENTS = ("query", "key", "value", "attn_mask", "bias", "sinks", "alibi_slopes", "relative_bias")
