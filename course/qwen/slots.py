"""A Qwen2 with room for many sequences, each with a key-value cache of its own: what an engine that batches
continuously stands on. Tuned for the CPU: the answers of transformers from fewer and cheaper operations.

What each trick is for, and in brackets how many times as long a step takes without it, at 1, 4, 16 and 64 rows of the
tiny Qwen (`python -m course.qwen.measure_slots --rounds 25`, a CPU with AVX-512: 0.05 more or less is chance):

- Weights are packed as float16 where that changes none of them (`_Linear`): half the bytes to read for each step, the
  arithmetic stays float32 [1.06, 1.54, 1.84, 1.62; by addmm in place of linear 0.87, 1.86, 1.86, 1.56].
- Query, key and value are one product, gate and up another: 3 calls less in each layer [1.26, 1.27, 1.21, 1.07].
- Slots are given lowest first, so the rows of a step are a view of the caches, and nothing is copied to gather them
  [1.15, 1.83, 3.03, 3.40]. A hole among them is computed along; its key and value go to a position that nobody sees.
- `bmm` in place of scaled_dot_product_attention, which is slower for one query a row [1.06, 1.12, 1.09, 1.01].
- The rotary embedding is one product of complex numbers over query, key and value at once (the values' factors are 1)
  [1.04, 1.10, 1.05, 1.07].
- A norm divides by the vector's length, which is one operation; `rms_norm` is five on a CPU [1.04, 1.08, 1.02, 0.99].
- The prompts of a chat begin alike, with the default system line: its keys and values are kept (`prefix`), and a
  prefill computes only what follows [four short questions take 0.80 of the time with it].
- A prefill's last layer computes keys and values of all tokens, and all else of the last one only
  [a prompt of 99 ids takes 1.18 times as long without it].

Exercise 4.5's plain one takes 1.75, 2.40, 2.47 and 1.82 times as long, transformers' `generate` 2.63, 3.61, 3.08 and
1.57 times.

Several newcomers padded into one pass would save up to a third of their prefills' time, and cannot be had: exercise
4.1's loop asks for one slot at a time, and takes its logits before it asks for the next.

Not covered: GPUs (`slots_cuda.py`), sliding windows, rope scaling.
"""

import torch
import torch.nn.functional as F


class SlotModel:
    """A model with room for `slots` sequences. Both calls block; one at a time, from any thread.

    Logits are those that transformers gives for the same sequence alone, to 1e-4, whatever is in the other
    slots. What was returned stays as it is.

    Attributes:
        slots: how many there are, numbered from 0; given lowest first they cost least.
        window: how many positions each has.
        eos_token_ids: the set of ids that end an answer.
    """

    def __init__(self, model, *, slots=16, window=None, prefix=()):
        """Takes the weights of a transformers Qwen2ForCausalLM on the CPU, in float32.

        Args:
            model: with tied or untied embeddings, grouped key-value heads or not, any rope_theta.
            slots: how many sequences have room.
            window: positions for each; None means the model's own, and memory is taken as it is used.
            prefix: ids with which many prompts begin.
        """
        config = model.config
        self.slots = slots
        self.window = window or config.max_position_embeddings
        end = model.generation_config.eos_token_id
        self.eos_token_ids = set(end if isinstance(end, list) else [end])
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size = model.model.layers[0].self_attn.q_proj.out_features // self._heads
        # a norm divides by the root of the mean square: the length by this
        root = config.hidden_size**0.5
        self._least = torch.tensor(config.rms_norm_eps**0.5 * root)
        self._embeddings = model.model.embed_tokens.weight.detach().float()
        self._layers = [_Layer(layer, self._heads, self._kv_heads, root) for layer in model.model.layers]
        self._last = self._layers[-1]
        self._norm = model.model.norm.weight.detach().float() * root
        self._head = _Linear(model.lm_head.weight)
        self._inv_freq = model.model.rotary_emb.inv_freq.detach().float()
        self._lengths = [0] * slots
        self._room = 0
        self._make_room(min(256, self.window))
        self._prefix = []
        with torch.inference_mode():
            self._keep_prefix(list(prefix))

    @torch.inference_mode()
    def prefill(self, slot, ids):
        """Forgets what the slot held, runs a prompt; returns the next token's logits: (vocabulary,).

        Raises:
            ValueError: an unknown slot, no ids, or more than `window`; nothing has changed.
        """
        self._require_slots([slot])
        if not 0 < len(ids) <= self.window:
            raise ValueError(f"a prefill takes 1 to {self.window} ids, not {len(ids)}")
        self._make_room(len(ids))
        known = len(self._prefix)
        if known >= len(ids) or list(ids[:known]) != self._prefix:
            known = 0
        for cache, kept in zip(self._caches, self._prefix_caches if known else (), strict=False):
            cache[:, slot, :, :known] = kept
        x = self._run_prompt(slot, ids[known:], known)
        self._lengths[slot] = len(ids)
        return self._logits(x)[0]

    @torch.inference_mode()
    def step(self, slots, ids):
        """Appends one token to each of these slots; returns the next tokens' logits: (slots, vocabulary).

        Raises:
            ValueError: a slot that is unknown, named twice, full, or was never filled; nothing has changed.
        """
        self._require_slots(slots)
        if len(set(slots)) < len(slots):
            raise ValueError(f"a slot is named twice: {slots}")
        for slot in slots:
            if not 0 < self._lengths[slot] < self.window:
                raise ValueError(f"slot {slot} holds {self._lengths[slot]} of {self.window} positions")
        longest = max(self._lengths[slot] for slot in slots) + 1
        self._make_room(longest)
        rows = max(slots) + 1
        # of few far apart the caches are gathered, of many close together the holes are computed along
        gathered = slots if rows > 2 * len(slots) else None
        rows = slots if gathered else range(rows)
        places = {slot: place for place, slot in enumerate(slots)}
        tokens = torch.tensor([ids[places[slot]] if slot in places else 0 for slot in rows])
        positions = [self._lengths[slot] if slot in places else self._room for slot in rows]
        x = self._run_step(list(rows), tokens, positions, longest, gathered)
        for slot in slots:
            self._lengths[slot] += 1
        logits = self._logits(x)
        return logits if list(rows) == list(slots) else logits[[rows.index(slot) for slot in slots]]

    def _run_step(self, rows, tokens, positions, longest, gathered):
        count, kv_heads, size = len(rows), self._kv_heads, self._size
        heads = self._heads + 2 * kv_heads
        place = torch.tensor(positions)
        slot = torch.tensor(rows)
        mask = torch.zeros(count, longest).masked_fill(torch.arange(longest) > place[:, None], -torch.inf)
        mask = mask.repeat_interleave(kv_heads, dim=0)[:, None]
        turns = self._turns[place][:, None].expand(-1, heads, -1).clone()
        turns[:, self._heads + kv_heads :] = 1
        x = self._embeddings[tokens]
        for layer, cache in zip(self._layers, self._caches, strict=True):
            qkv = layer.qkv(self._normed(x, layer.norm))
            turned = self._turned(qkv.view(count, heads, size // 2, 2), turns)
            cache[:, slot, :, place] = turned[:, self._heads :].view(count, 2, kv_heads, size)
            keys, values = (cache[:, slot] if gathered else cache[:, :count]).unbind()
            keys = keys.view(count * kv_heads, -1, size)[:, :longest]
            values = values.view(count * kv_heads, -1, size)[:, :longest]
            query = turned[:, : self._heads].reshape(count * kv_heads, -1, size)
            seen = self._attend(query, keys, values, mask)
            x = self._after_attention(x, seen.view(count, -1), layer)
        return x

    # what `course.qwen.measure_slots` does otherwise, to see what it is worth

    def _normed(self, x, weight):
        return x * weight / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(self._least)

    def _turned(self, pairs, turns):
        return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2)

    def _attend(self, query, keys, values, mask):
        scores = torch.baddbmm(mask, query, keys.mT, alpha=query.shape[-1] ** -0.5)
        return torch.bmm(scores.softmax(-1), values)

    def _run_prompt(self, slot, ids, known):
        """Runs `ids` behind the `known` positions of a slot; returns the layers' output for the last, (1, hidden)."""
        count, heads = len(ids), self._heads + 2 * self._kv_heads
        end = known + count
        turns = self._turns[known:end, None].expand(-1, heads, -1).clone()
        turns[:, self._heads + self._kv_heads :] = 1
        sees = None
        if known:
            sees = torch.arange(end) <= torch.arange(known, end)[:, None]
        x = self._embeddings[torch.tensor(ids)]
        for layer, cache in zip(self._layers, self._caches, strict=True):
            qkv = layer.qkv(self._normed(x, layer.norm))
            turned = self._turned(qkv.view(count, heads, -1, 2), turns).transpose(0, 1)
            query, key, value = turned.split([self._heads, self._kv_heads, self._kv_heads])
            cache[0, slot, :, known:end] = key
            cache[1, slot, :, known:end] = value
            keys, values = cache[:, slot, :, :end].unbind()
            causal = not known
            if layer is self._last:  # only the last token's output is wanted, and that one sees all
                x, query, sees, causal = x[-1:], query[:, -1:], None, False
            seen = F.scaled_dot_product_attention(
                query[None], keys[None], values[None], attn_mask=sees, is_causal=causal, enable_gqa=True
            )
            x = self._after_attention(x, seen[0].transpose(0, 1).reshape(len(x), -1), layer)
        return x[-1:]

    def _after_attention(self, x, seen, layer):
        x = x + layer.output(seen)
        gate, up = layer.gate_up(self._normed(x, layer.mlp_norm)).chunk(2, dim=-1)
        return x + layer.down(F.silu(gate) * up)

    def _logits(self, x):
        return self._head(self._normed(x, self._norm))

    def _keep_prefix(self, prefix):
        if 0 < len(prefix) < self.window:
            self._make_room(len(prefix))
            self._run_prompt(0, prefix, 0)
            self._prefix_caches = [cache[:, 0, :, : len(prefix)].clone() for cache in self._caches]
            self._prefix = prefix

    def _require_slots(self, slots):
        for slot in slots:
            if slot not in range(self.slots):
                raise ValueError(f"there is no slot {slot}: they are 0 to {self.slots - 1}")

    def _make_room(self, length):
        if length <= self._room:
            return
        before, self._room = self._room, min(max(2 * self._room, length), self.window)
        # one position more than there is room for: a hole's key and value go there
        shape = (2, self.slots, self._kv_heads, self._room + 1, self._size)
        caches = [torch.zeros(shape) for _ in self._layers]
        if before:
            for cache, old in zip(caches, self._caches, strict=True):
                cache[:, :, :, :before] = old[:, :, :, :before]
        self._caches = caches
        angles = torch.arange(self._room + 1)[:, None].float() * self._inv_freq
        self._turns = torch.polar(torch.ones_like(angles), angles)


# the operator itself: torch.ops looks through the arguments of each call for objects that it never has here
_linear_fp16 = torch.ops.quantized.linear_dynamic_fp16.default._op


class _Linear:
    """A linear layer, its weights packed for the CPU."""

    def __init__(self, *weights, bias=None):
        weight = torch.cat([each.detach().float() for each in weights])
        bias = torch.zeros(len(weight)) if bias is None else bias
        exact = torch.equal(weight.half().float(), weight)
        if exact and "fbgemm" in torch.backends.quantized.supported_engines:
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        else:
            self._packed, self._weight, self._bias = None, weight.t().contiguous(), bias

    def __call__(self, x):
        if self._packed is not None:
            return _linear_fp16(x, self._packed)
        return torch.addmm(self._bias, x, self._weight)


class _Layer:
    """One layer's weights, joined and packed."""

    def __init__(self, layer, heads, kv_heads, root):
        attention, mlp = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        weights = [part.weight.detach().float() for part in parts]
        biases = [part.bias.detach().float() for part in parts]
        for part, count in ((0, heads), (1, kv_heads)):
            weights[part] = _interleaved(weights[part], count)
            biases[part] = _interleaved(biases[part], count)
        self.qkv = _Linear(*weights, bias=torch.cat(biases))
        self.output = _Linear(attention.o_proj.weight)
        self.gate_up = _Linear(mlp.gate_proj.weight, mlp.up_proj.weight)
        self.down = _Linear(mlp.down_proj.weight)
        self.norm = layer.input_layernorm.weight.detach().float() * root
        self.mlp_norm = layer.post_attention_layernorm.weight.detach().float() * root


def _interleaved(weight, heads):
    """Each head's first and second half in turn, so that two neighbours are one complex number."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
