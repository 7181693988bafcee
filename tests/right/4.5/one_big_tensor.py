"""One tensor for all layers, F.linear on the weights alone, joined projections, an additive mask, complex rotary."""

import math

import torch
import torch.nn.functional as F

STEP = 64


class SlotModel:
    def __init__(self, model, *, slots=16, window=None):
        config = model.config
        self.slots = slots
        self.window = config.max_position_embeddings if window is None else window
        eos = model.generation_config.eos_token_id
        self.eos_token_ids = frozenset(eos if isinstance(eos, list | tuple) else (eos,))
        self.weights = {name: weight.detach() for name, weight in model.named_parameters()}
        self.head = model.lm_head.weight.detach()
        self.layers = config.num_hidden_layers
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        theta = config.rope_parameters["rope_theta"]
        self.speeds = 1.0 / (theta ** (torch.arange(0, self.size, 2).float() / self.size))
        self.qkv = []
        for n in range(self.layers):
            parts = [f"model.layers.{n}.self_attn.{letter}_proj" for letter in "qkv"]
            self.qkv.append([torch.cat([self.weights[f"{p}.{kind}"] for p in parts]) for kind in ("weight", "bias")])
        self.cache = torch.zeros(self.layers, 2, slots, self.kv_heads, 0, self.size)
        self.held = {}

    def check(self, slots):
        for slot in slots:
            if not (isinstance(slot, int) and 0 <= slot < self.slots):
                raise ValueError(f"slot {slot}")

    def prefill(self, slot, ids):
        self.check([slot])
        if not ids or len(ids) > self.window:
            raise ValueError(f"{len(ids)} ids")
        x = self.pass_through([slot], torch.tensor(ids)[None], torch.arange(len(ids))[None])
        self.held[slot] = len(ids)
        return x.squeeze(0)

    def step(self, slots, ids):
        self.check(slots)
        if len(slots) > len(set(slots)):
            raise ValueError("twice")
        lengths = [self.held.get(slot, 0) for slot in slots]
        if 0 in lengths or max(lengths) >= self.window:
            raise ValueError("empty or full")
        x = self.pass_through(slots, torch.tensor(ids)[:, None], torch.tensor(lengths)[:, None])
        for slot in slots:
            self.held[slot] += 1
        return x

    def norm(self, x, name):
        return F.rms_norm(x, (x.shape[-1],), self.weights[name + ".weight"], self.eps)

    def turn(self, x, angles):
        first, second = x.float().chunk(2, -1)
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat([turned.real, turned.imag], -1)

    @torch.inference_mode()
    def pass_through(self, slots, ids, positions):
        count, end = ids.shape[1], int(positions.max()) + 1
        room = self.cache.shape[4]
        if end > room:
            room = min(math.ceil(end * 1.5 / STEP) * STEP, max(self.window, end))
            cache = torch.zeros(self.layers, 2, self.slots, self.kv_heads, room, self.size)
            cache[..., : self.cache.shape[4], :] = self.cache
            self.cache = cache
        mask = torch.full((len(slots), count, end), -math.inf)
        for row in range(len(slots)):
            mask[row].masked_fill_(torch.arange(end) <= positions[row, :, None], 0)
        angles = positions[..., None] * self.speeds
        x = F.embedding(ids, self.weights["model.embed_tokens.weight"])
        for n in range(self.layers):
            name = f"model.layers.{n}."
            qkv = F.linear(self.norm(x, name + "input_layernorm"), *self.qkv[n])
            qkv = qkv.view(len(slots), count, -1, self.size).transpose(1, 2)
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            q, k = self.turn(q, angles), self.turn(k, angles)
            for row, slot in enumerate(slots):
                start = int(positions[row, 0])
                self.cache[n, 0, slot, :, start : start + count] = k[row]
                self.cache[n, 1, slot, :, start : start + count] = v[row]
            keys, values = self.cache[n, :, slots, :, :end]
            groups = self.heads // self.kv_heads
            q = q.reshape(len(slots), self.kv_heads, groups * count, self.size)
            scores = q @ keys.transpose(-1, -2) / math.sqrt(self.size) + mask.repeat(1, groups, 1)[:, None]
            seen = (scores.softmax(-1) @ values).view(len(slots), self.heads, count, self.size)
            x = x + F.linear(seen.transpose(1, 2).flatten(2), self.weights[name + "self_attn.o_proj.weight"])
            h = self.norm(x, name + "post_attention_layernorm")
            gate = F.silu(F.linear(h, self.weights[name + "mlp.gate_proj.weight"]))
            up = F.linear(h, self.weights[name + "mlp.up_proj.weight"])
            x = x + F.linear(gate * up, self.weights[name + "mlp.down_proj.weight"])
        return F.linear(self.norm(x[:, -1], "model.norm"), self.head)
