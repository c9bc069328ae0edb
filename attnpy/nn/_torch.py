"""State dicts of torch.nn's attention and Transformer modules, in attnpy's names. Nothing here needs PyTorch."""

import numpy as np

PROJECTIONS = ("query", "key", "value", "output")
RENAMED = {"linear1": "feed_forward.linear1", "linear2": "feed_forward.linear2"}
ATTENTION = {"self_attn": "self_attn", "multihead_attn": "cross_attn"}


def arrays(state_dict):
    """Arrays of a state dict's tensors, without a copy where they lie in memory."""
    return {
        name: np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        for name, value in state_dict.items()
    }


def attention(state):
    """Of a torch.nn.MultiheadAttention."""
    state, found = dict(state), {}
    for name in ("bias_k", "bias_v"):
        if name in state:
            raise ValueError(f"state_dict has {name}: add_bias_kv is not supported; append the row to key and value")
    for kind in ("weight", "bias"):
        packed = state.pop(f"in_proj_{kind}", None)
        if packed is not None:
            if packed.shape[0] % 3:
                raise ValueError(f"state_dict['in_proj_{kind}'] has shape {packed.shape}; its first axis must be 3 N")
            found |= {f"{name}_{kind}": part for name, part in zip(PROJECTIONS, np.split(packed, 3))}
        for name in PROJECTIONS[:3]:
            if f"{name[0]}_proj_{kind}" in state:
                found[f"{name}_{kind}"] = state.pop(f"{name[0]}_proj_{kind}")
        if f"out_proj.{kind}" in state:
            found[f"output_{kind}"] = state.pop(f"out_proj.{kind}")
    missing = [f"{name}_weight" for name in PROJECTIONS if f"{name}_weight" not in found]
    if state or missing:
        raise ValueError(
            "state_dict is not that of a torch.nn.MultiheadAttention: "
            + (f"it has {', '.join(sorted(state))}" if state else f"it has nothing for {', '.join(missing)}")
        )
    return found


def block(state):
    """Of a torch.nn.TransformerEncoderLayer or TransformerDecoderLayer."""
    found = {}
    for theirs, ours in ATTENTION.items():
        part = {name.removeprefix(f"{theirs}."): x for name, x in state.items() if name.startswith(f"{theirs}.")}
        if part:
            found |= {f"{ours}.{name}": x for name, x in attention(part).items()}
    for name, x in state.items():
        first, _, rest = name.partition(".")
        if first not in ATTENTION:
            found[f"{RENAMED.get(first, first)}.{rest}"] = x
    return found


def transformer(state):
    """Of a torch.nn.Transformer, and how many layers its two stacks have."""
    found, parts, numbers = {}, {}, {"encoder": 0, "decoder": 0}
    for name, x in state.items():
        side, *rest = name.split(".")
        if side in numbers and rest[0] == "layers":
            numbers[side] = max(numbers[side], int(rest[1]) + 1)
            parts.setdefault(f"{side}.layers.{rest[1]}", {})[".".join(rest[2:])] = x
        else:
            found[name] = x
    for prefix, part in parts.items():
        found |= {f"{prefix}.{name}": x for name, x in block(part).items()}
    return found, numbers
