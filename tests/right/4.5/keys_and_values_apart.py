"""Keys and values of all slots in tensors of their own, twice as large when they are full; a prefill is causal SDPA."""

import torch
import torch.nn.functional as F


def rms_norm(x, norm):
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def rotate(x, positions, inv_freq):
    angles = positions[..., None, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SlotModel:
    def __init__(self, model, *, slots=16, window=None):
        config = model.config
        self.slots = slots
        self.window = config.max_position_embeddings if window is None else window
        eos = model.generation_config.eos_token_id
        self.eos_token_ids = set(eos) if isinstance(eos, (list, tuple)) else {eos}
        self._model = model
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_size = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._lengths = [0] * slots
        self._room = 0
        self._keys = [None] * config.num_hidden_layers  # each (slots, kv heads, room, head size)
        self._values = [None] * config.num_hidden_layers
        self._make_room(min(self.window, 128))

    @torch.no_grad()
    def _make_room(self, positions):
        if positions <= self._room:
            return
        room = min(self.window, max(positions, 2 * self._room))
        for caches in (self._keys, self._values):
            for layer, old in enumerate(caches):
                new = torch.zeros(self.slots, self._kv_heads, room, self._head_size)
                if old is not None:
                    new[:, :, : self._room] = old
                caches[layer] = new
        self._room = room

    def _forward(self, ids, positions, attend):
        """ids and positions: (rows, tokens). Returns the last hidden state of each row."""
        inner = self._model.model
        inv_freq = inner.rotary_emb.inv_freq
        rows, tokens = ids.shape
        x = F.embedding(ids, inner.embed_tokens.weight)
        for number, layer in enumerate(inner.layers):
            attention = layer.self_attn
            normed = rms_norm(x, layer.input_layernorm)
            q = attention.q_proj(normed).view(rows, tokens, self._heads, self._head_size)
            k = attention.k_proj(normed).view(rows, tokens, self._kv_heads, self._head_size)
            v = attention.v_proj(normed).view(rows, tokens, self._kv_heads, self._head_size)
            q, k = rotate(q, positions, inv_freq), rotate(k, positions, inv_freq)
            out = attend(number, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            x = x + attention.o_proj(out.transpose(1, 2).reshape(rows, tokens, -1))
            normed = rms_norm(x, layer.post_attention_layernorm)
            mlp = layer.mlp
            x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        return self._model.lm_head(rms_norm(x[:, -1], inner.norm))

    @torch.no_grad()
    def prefill(self, slot, ids):
        if slot not in range(self.slots):
            raise ValueError(f"there is no slot {slot}, only 0 to {self.slots - 1}")
        if not 1 <= len(ids) <= self.window:
            raise ValueError(f"{len(ids)} ids, but a slot takes 1 to {self.window}")
        count = len(ids)
        self._make_room(count)

        def attend(layer, q, k, v):
            self._keys[layer][slot, :, :count] = k[0]
            self._values[layer][slot, :, :count] = v[0]
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        logits = self._forward(torch.tensor([ids]), torch.arange(count)[None], attend)
        self._lengths[slot] = count
        return logits[0]

    @torch.no_grad()
    def step(self, slots, ids):
        if len(slots) != len(ids):
            raise ValueError(f"{len(slots)} slots, but {len(ids)} ids")
        if len(set(slots)) != len(slots):
            raise ValueError(f"a slot is named twice: {slots}")
        for slot in slots:
            if slot not in range(self.slots):
                raise ValueError(f"there is no slot {slot}, only 0 to {self.slots - 1}")
            if self._lengths[slot] == 0:
                raise ValueError(f"slot {slot} was never filled")
            if self._lengths[slot] == self.window:
                raise ValueError(f"slot {slot} is full")
        if not slots:
            return torch.empty(0, self._model.config.vocab_size)
        at = [self._lengths[slot] for slot in slots]
        longest = max(at) + 1
        self._make_room(longest)
        which, where = torch.tensor(slots), torch.tensor(at)
        mask = (torch.arange(longest) <= where[:, None])[:, None, None]

        def attend(layer, q, k, v):
            keys, values = self._keys[layer], self._values[layer]
            keys[which, :, where] = k[:, :, 0]
            values[which, :, where] = v[:, :, 0]
            return F.scaled_dot_product_attention(
                q, keys[which, :, :longest], values[which, :, :longest], attn_mask=mask, enable_gqa=True
            )

        logits = self._forward(torch.tensor(ids)[:, None], where[:, None], attend)
        for slot in slots:
            self._lengths[slot] += 1
        return logits
