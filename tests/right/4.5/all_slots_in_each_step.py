"""A step computes every slot, used or not, with a boolean mask; keys and values are stored where a slot was named."""

import torch
import torch.nn.functional as F


class SlotModel:
    def __init__(self, model, *, slots=16, window=None):
        config, inner = model.config, model.model
        self.slots = slots
        self.window = window or config.max_position_embeddings
        eos = model.generation_config.eos_token_id
        self.eos_token_ids = set([eos] if not isinstance(eos, list) else eos)
        self.inner, self.head = inner, model.lm_head
        self.n, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.d = inner.layers[0].self_attn.q_proj.weight.shape[0] // self.n
        self.lengths = torch.zeros(slots, dtype=torch.long)
        self.keys = [torch.zeros(slots, self.kv, 1, self.d) for _ in inner.layers]
        self.values = [torch.zeros(slots, self.kv, 1, self.d) for _ in inner.layers]

    @torch.inference_mode()
    def prefill(self, slot, ids):
        self.must_be([slot])
        if not 1 <= len(ids) <= self.window:
            raise ValueError("a prompt of no ids, or of too many")
        count = len(ids)
        self.room_for(count)

        def attend(number, q, k, v):
            self.keys[number][slot, :, :count] = k[0]
            self.values[number][slot, :, :count] = v[0]
            k, v = (each.repeat_interleave(self.n // self.kv, 1) for each in (k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        logits = self.compute(torch.tensor(ids)[None], torch.arange(count)[None], attend)
        self.lengths[slot] = count
        return logits[0]

    @torch.inference_mode()
    def step(self, slots, ids):
        self.must_be(slots)
        if len(set(slots)) < len(slots):
            raise ValueError("one slot twice")
        chosen = torch.tensor(slots)
        if (self.lengths[chosen] == 0).any() or (self.lengths[chosen] == self.window).any():
            raise ValueError("a slot that is empty or full")
        every = torch.zeros(self.slots, dtype=torch.long)
        every[chosen] = torch.tensor(ids)
        self.room_for(int(self.lengths[chosen].max()) + 1)
        room = self.keys[0].shape[2]
        sees = torch.arange(room) <= self.lengths[:, None]

        def attend(number, q, k, v):
            where = self.lengths[chosen]
            self.keys[number][chosen, :, where] = k[chosen, :, 0]
            self.values[number][chosen, :, where] = v[chosen, :, 0]
            k, v = (each.repeat_interleave(self.n // self.kv, 1) for each in (self.keys[number], self.values[number]))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=sees[:, None, None])

        logits = self.compute(every[:, None], self.lengths[:, None], attend)
        self.lengths[chosen] += 1
        return logits[chosen]

    def compute(self, ids, positions, attend):
        angles = positions[:, None, :, None] * self.inner.rotary_emb.inv_freq.tile(2)
        cos, sin = angles.cos(), angles.sin()
        x = self.inner.embed_tokens(ids)
        for number, layer in enumerate(self.inner.layers):
            h = self.norm(x, layer.input_layernorm)
            q, k, v = (
                getattr(layer.self_attn, name)(h).view(*ids.shape, -1, self.d).transpose(1, 2)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            q, k = (each * cos + self.half(each) * sin for each in (q, k))
            seen = attend(number, q, k, v).transpose(1, 2).reshape(*ids.shape, -1)
            x = x + layer.self_attn.o_proj(seen)
            h = self.norm(x, layer.post_attention_layernorm)
            x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
        return self.head(self.norm(x[:, -1], self.inner.norm))

    def half(self, x):
        return torch.cat((-x[..., self.d // 2 :], x[..., : self.d // 2]), dim=-1)

    def norm(self, x, norm):
        return torch.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)

    def must_be(self, slots):
        if any(slot < 0 or slot >= self.slots for slot in slots):
            raise ValueError("an unknown slot")

    def room_for(self, count):
        room = self.keys[0].shape[2]
        if count > room:
            more = torch.zeros(self.slots, self.kv, min(max(count, 2 * room), self.window) - room, self.d)
            self.keys = [torch.cat([each, more], dim=2) for each in self.keys]
            self.values = [torch.cat([each, more], dim=2) for each in self.values]
