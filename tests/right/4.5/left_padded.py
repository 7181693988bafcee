"""Each slot's cache is a dict of its own; a step pads them on the left, so that all end in one column. SDPA."""

import torch
import torch.nn.functional as F


class SlotModel:
    def __init__(self, model, *, slots=16, window=None):
        self.slots = slots
        self.window = window or model.config.max_position_embeddings
        ends = model.generation_config.eos_token_id
        self.eos_token_ids = {ends} if isinstance(ends, int) else {*ends}
        self.m = model
        self.groups = model.config.num_attention_heads // model.config.num_key_value_heads
        self.caches = {}

    def prefill(self, slot, ids):
        if not 0 <= slot < self.slots:
            raise ValueError(slot)
        if not 0 < len(ids) <= self.window:
            raise ValueError(len(ids))
        cache = {"length": 0}
        logits = self._pass([cache], torch.tensor([ids]))
        self.caches[slot] = cache
        return logits[0]

    def step(self, slots, ids):
        if len({*slots}) != len(slots):
            raise ValueError(slots)
        for slot in slots:
            if slot not in self.caches or self.caches[slot]["length"] + 1 > self.window:
                raise ValueError(slot)
        return self._pass([self.caches[slot] for slot in slots], torch.tensor(ids).unsqueeze(1))

    @torch.no_grad()
    def _pass(self, caches, ids):
        inner, (rows, count) = self.m.model, ids.shape
        lengths = torch.tensor([cache["length"] for cache in caches]).unsqueeze(1)
        most = int(lengths.max())
        positions = lengths + torch.arange(count)
        # column c of a row is its position c - (most - length): left of 0 is padding
        columns = torch.arange(most + count) - (most - lengths)
        mask = (columns[:, None] >= 0) & (columns[:, None] <= positions[:, :, None])
        x = F.embedding(ids, inner.embed_tokens.weight)
        for number, layer in enumerate(inner.layers):
            normed = F.rms_norm(x, x.shape[-1:], layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
            q, k, v = (
                each(normed).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
                for each in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            q, k = self._turn(q, positions), self._turn(k, positions)
            joined = []
            for kind, new in (("k", k), ("v", v)):
                padded = []
                for cache, row in zip(caches, new, strict=True):
                    if cache["length"]:
                        row = torch.cat([cache[kind, number], row], dim=1)
                    cache[kind, number] = row
                    padded.append(F.pad(row, (0, 0, most + count - row.shape[1], 0)))
                joined.append(torch.stack(padded).repeat_interleave(self.groups, dim=1))
            seen = F.scaled_dot_product_attention(q, *joined, attn_mask=mask[:, None])
            x = x + F.linear(seen.transpose(1, 2).reshape(rows, count, -1), layer.self_attn.o_proj.weight)
            norm = layer.post_attention_layernorm
            normed = F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
            x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed))
        for cache in caches:
            cache["length"] += count
        x = F.rms_norm(x[:, -1], x.shape[-1:], inner.norm.weight, inner.norm.variance_epsilon)
        return self.m.lm_head(x)

    def _turn(self, x, positions):
        angles = torch.einsum("rt,f->rtf", positions.float(), self.m.model.rotary_emb.inv_freq)[:, None]
        first, second = x.tensor_split(2, dim=-1)
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
        )
