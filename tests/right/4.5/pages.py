"""Pages of 16 positions from one pool that grows, a table of pages for each slot, all rows' positions in one row.

A token sees the whole pool through a mask that hides the other slots' pages.
"""

import torch
import torch.nn.functional as F

PAGE = 16


class Attention:
    def __init__(self, layer, kv_heads, size):
        self.layer, self.kv_heads, self.size = layer, kv_heads, size
        self.keys = torch.zeros(0, kv_heads, size)
        self.values = torch.zeros(0, kv_heads, size)

    def __call__(self, x, turn, store, sees, pool):
        attention = self.layer.self_attn
        if len(self.keys) < pool:
            more = torch.zeros(pool - len(self.keys), self.kv_heads, self.size)
            self.keys, self.values = torch.cat([self.keys, more]), torch.cat([self.values, more])
        tokens = len(x)
        q = turn(attention.q_proj(x).view(tokens, -1, self.size))
        self.keys[store] = turn(attention.k_proj(x).view(tokens, -1, self.size))
        self.values[store] = attention.v_proj(x).view(tokens, -1, self.size)
        q = q.view(tokens, self.kv_heads, -1, self.size)
        scores = torch.einsum("tkgd,pkd->tkgp", q, self.keys) * self.size**-0.5
        scores = scores.masked_fill(~sees[:, None, None], float("-inf"))
        seen = torch.einsum("tkgp,pkd->tkgd", scores.softmax(-1), self.values)
        return attention.o_proj(seen.reshape(tokens, -1))


class SlotModel:
    def __init__(self, model, *, slots=16, window=None):
        self.slots, self.window = slots, window or model.config.max_position_embeddings
        found = model.generation_config.eos_token_id
        self.eos_token_ids = set(found) if type(found) is list else {found}
        self._model = model
        size = model.model.layers[0].self_attn.head_dim
        self._attentions = [Attention(layer, model.config.num_key_value_heads, size) for layer in model.model.layers]
        self._tables = {}
        self._lengths = {}
        self._free = []
        self._pages = 0

    def prefill(self, slot, ids):
        if slot not in range(self.slots):
            raise ValueError("unknown slot")
        if not 1 <= len(ids) <= self.window:
            raise ValueError("no ids, or too many")
        self._free += self._tables.pop(slot, [])
        self._tables[slot], self._lengths[slot] = [], 0
        return self._run([(slot, id, place) for place, id in enumerate(ids)])[-1].clone()

    def step(self, slots, ids):
        if not set(slots) <= set(range(self.slots)):
            raise ValueError("unknown slot")
        if len(set(slots)) < len(slots):
            raise ValueError("named twice")
        if any(self._lengths.get(slot, self.window) >= self.window for slot in slots):
            raise ValueError("full, or never filled")
        return self._run([(slot, id, self._lengths[slot]) for slot, id in zip(slots, ids, strict=True)])

    def _run(self, tokens):
        with torch.no_grad():
            store = []
            for slot, _, place in tokens:
                table = self._tables[slot]
                if place // PAGE == len(table):
                    if not self._free:
                        self._free.append(self._pages)
                        self._pages += 1
                    table.append(self._free.pop())
                store.append(table[place // PAGE] * PAGE + place % PAGE)
                self._lengths[slot] = place + 1
            owner = torch.full((self._pages * PAGE,), -1)
            position = torch.zeros(self._pages * PAGE, dtype=torch.long)
            for slot, table in self._tables.items():
                for number, page in enumerate(table):
                    owner[page * PAGE : (page + 1) * PAGE] = slot
                    position[page * PAGE : (page + 1) * PAGE] = torch.arange(number * PAGE, (number + 1) * PAGE)
            slots, ids, places = (torch.tensor(column) for column in zip(*tokens, strict=True))
            sees = (owner == slots[:, None]) & (position <= places[:, None])
            angles = torch.outer(places.float(), self._model.model.rotary_emb.inv_freq)[:, None]

            def turn(x):
                first, second = x.split(x.shape[-1] // 2, -1)
                turned = first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()
                return torch.cat(turned, -1)

            x = self._model.model.embed_tokens.weight[ids]
            for layer, attention in zip(self._model.model.layers, self._attentions, strict=True):
                normed = self._norm(x, layer.input_layernorm)
                x = x + attention(normed, turn, torch.tensor(store), sees, self._pages * PAGE)
                normed, mlp = self._norm(x, layer.post_attention_layernorm), layer.mlp
                x = x + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
            return self._model.lm_head(self._norm(x, self._model.model.norm))

    def _norm(self, x, norm):
        return x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight
