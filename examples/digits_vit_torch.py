"""The same vision transformer in PyTorch, from the same weights, to compare losses and times."""

import numpy as np
import torch
from digits_vit import HEADS, HIDDEN, LAYERS, PATCH, SIDE, TOKENS, WIDTH


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Linear(PATCH**2, WIDTH)
        self.class_token = torch.nn.Parameter(torch.empty(1, 1, WIDTH))
        self.positions = torch.nn.Parameter(torch.empty(1 + TOKENS, WIDTH))
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, LAYERS, torch.nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = torch.nn.Linear(WIDTH, 10)

    def forward(self, images):
        rows = SIDE // PATCH
        patches = images.reshape(-1, rows, PATCH, rows, PATCH).transpose(2, 3).reshape(-1, TOKENS, PATCH**2)
        token = self.class_token.expand(len(images), 1, WIDTH)
        x = torch.cat([token, self.patches(patches)], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


def in_torch_names(state):
    """attnpy.nn's state dict of an encoder of these layers, as torch.nn has it."""
    found = {}
    for name, array in state.items():
        first, _, last = name.rpartition(".self_attn.")
        if not first:
            found[name.replace(".feed_forward.", ".")] = array
        elif last.startswith("output"):
            found[f"{first}.self_attn.out_proj.{last.removeprefix('output_')}"] = array
        elif last.startswith("query"):
            kind = last.removeprefix("query_")
            parts = [state[f"{first}.self_attn.{part}_{kind}"] for part in ("query", "key", "value")]
            found[f"{first}.self_attn.in_proj_{kind}"] = np.concatenate(parts)
    return {name: torch.tensor(array) for name, array in found.items()}


class Trainer:
    """As attnpy's: AdamW, and only matrices decay."""

    def __init__(self, model):
        self.model = Model()
        self.model.load_state_dict(in_torch_names(model.state_dict()))
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)

    def step(self, images, digits, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scores = self.model(torch.from_numpy(images))
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(digits), label_smoothing=0.05)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
