"""A list of caches, one a slot, that grow by torch.cat; a step pads them to one tensor. Attention by hand."""

import torch
from torch.nn.utils.rnn import pad_sequence


def rms(x, norm):
    return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class SlotModel:
    def __init__(self, model, *, slots=16, window=None):
        self.slots = slots
        self.window = window if window is not None else model.config.max_position_embeddings
        eos = model.generation_config.eos_token_id
        self.eos_token_ids = {eos} if isinstance(eos, int) else set(eos)
        self.model = model
        self.kv_heads = model.config.num_key_value_heads
        self.heads = model.config.num_attention_heads
        self.caches = [None] * slots

    def length(self, slot):
        return 0 if self.caches[slot] is None else self.caches[slot][0][0].shape[0]

    def prefill(self, slot, ids):
        if slot < 0 or slot >= self.slots:
            raise ValueError("no such slot")
        if len(ids) == 0 or len(ids) > self.window:
            raise ValueError("too few ids or too many")
        old = self.caches[slot]
        self.caches[slot] = None
        try:
            return self.forward([slot], [list(ids)])[0]
        except BaseException:
            self.caches[slot] = old
            raise

    def step(self, slots, ids):
        if len(set(slots)) != len(slots) or any(s < 0 or s >= self.slots for s in slots):
            raise ValueError("twice, or no such slot")
        if any(self.length(s) == 0 or self.length(s) >= self.window for s in slots):
            raise ValueError("empty or full")
        return self.forward(slots, [[id] for id in ids])

    @torch.no_grad()
    def forward(self, slots, ids):
        ids = torch.tensor(ids)
        rows, count = ids.shape
        before = torch.tensor([self.length(slot) for slot in slots])
        positions = before[:, None] + torch.arange(count)
        angles = positions[..., None].float() * self.model.model.rotary_emb.inv_freq
        angles = torch.cat((angles, angles), dim=-1)[:, :, None]
        cos, sin = angles.cos(), angles.sin()
        mask = torch.arange(int(positions.max()) + 1)[None, None] > positions[..., None]
        x = self.model.model.embed_tokens(ids)
        new = []
        for number, layer in enumerate(self.model.model.layers):
            a = layer.self_attn
            h = rms(x, layer.input_layernorm)
            q = rotate(a.q_proj(h).view(rows, count, self.heads, -1), cos, sin)
            k = rotate(a.k_proj(h).view(rows, count, self.kv_heads, -1), cos, sin)
            v = a.v_proj(h).view(rows, count, self.kv_heads, -1)
            held = []
            for row, slot in enumerate(slots):
                cache = self.caches[slot]
                if cache is None:
                    held.append((k[row], v[row]))
                else:
                    held.append((torch.cat((cache[number][0], k[row])), torch.cat((cache[number][1], v[row]))))
            new.append(held)
            keys = pad_sequence([key for key, _ in held], batch_first=True)
            values = pad_sequence([value for _, value in held], batch_first=True)
            keys = keys.repeat_interleave(self.heads // self.kv_heads, dim=2).permute(0, 2, 3, 1)
            values = values.repeat_interleave(self.heads // self.kv_heads, dim=2).transpose(1, 2)
            scores = q.transpose(1, 2) @ keys / q.shape[-1] ** 0.5
            weights = scores.masked_fill(mask[:, None], float("-inf")).softmax(dim=-1)
            x = x + a.o_proj((weights @ values).transpose(1, 2).reshape(rows, count, -1))
            h = rms(x, layer.post_attention_layernorm)
            x = x + layer.mlp.down_proj(torch.nn.functional.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
        for row, slot in enumerate(slots):
            self.caches[slot] = [held[row] for held in new]
        return self.model.lm_head(rms(x[:, -1], self.model.model.norm))
