"""A Qwen2 with room for many sequences, each with its own key-value cache: the basis of an engine with continuous
batching. It is tuned for the CPU: it gets the same answers as transformers from fewer and cheaper operations.

Here is what each trick does. The numbers in brackets say how many times as long a step takes without it, at 1, 4, 16
and 64 rows of the tiny Qwen (`python -m course.qwen.measure_slots --rounds 25`, on a CPU with AVX-512; differences of
0.05 are noise):

- Weights are packed as float16 if that changes none of them (`_Linear`). A step then reads half as many bytes, and the
  arithmetic is still float32 [1.06, 1.54, 1.84, 1.62; with addmm instead of linear 0.87, 1.86, 1.86, 1.56].
- The packed product's operator is called itself. Through `torch.ops`, each call also searches its arguments for objects
  that do not occur here [1.07, 1.05, 1.04 at 1, 4 and 16 rows, on a CPU without AVX-512].
- Query, key and value are one product, and gate and up are another: 3 fewer calls per layer [1.26, 1.27, 1.21, 1.07].
- Slots are used lowest first, so the rows of a step are a view of the caches, and nothing is copied to gather them
  [1.15, 1.83, 3.03, 3.40]. Unused slots in between are computed as well; their keys and values go to a position that
  is always masked.
- `bmm` replaces scaled_dot_product_attention, which is slower with one query per row [1.06, 1.12, 1.09, 1.01].
- The rotary embedding is a single product of complex numbers for query, key and value (whose factors are 1)
  [1.04, 1.10, 1.05, 1.07].
- A norm divides by the vector's length, which is one operation; `rms_norm` is five on a CPU [1.04, 1.08, 1.02, 0.99].
- The prompts of a chat all begin with the default system line. Its keys and values are kept (`prefix`), and a prefill
  computes only what follows [with it, four short questions take 0.80 of the time].
- In a prefill, the last layer computes keys and values for all tokens, but everything else only for the last one
  [without it, a prompt of 99 ids takes 1.18 times as long].

Exercise 4.5's plain slot model takes 1.75, 2.40, 2.47 and 1.82 times as long, and transformers' `generate` takes 2.63,
3.61, 3.08 and 1.57 times as long.

Padding several newcomers into one pass would save up to a third of their prefill time. But that is not possible here:
exercise 4.1's loop prefills one slot at a time, and uses its logits before it prefills the next one.

Not covered: GPUs (`slots_cuda.py`), sliding windows, rope scaling.
"""

import torch
import torch.nn.functional as F


class SlotModel:
    """A model with room for `slots` sequences. Both methods block, and are called one at a time, from any thread.

    Logits match those of transformers for the same sequence alone to within 1e-4, whatever is in the other
    slots. Logits that have been returned do not change.

    Attributes:
        slots: how many slots there are, numbered from 0. They cost least if they are used lowest first.
        window: how many positions each slot has.
        eos_token_ids: the set of ids that end an answer.
    """

    def __init__(self, model, *, slots=16, window=None, prefix=()):
        """Use the weights of a transformers Qwen2ForCausalLM, on the CPU and in float32.

        Args:
            model: the model, with tied or untied embeddings, grouped key-value heads or not, and any rope_theta.
            slots: how many sequences there is room for.
            window: the number of positions in each slot. None means the model's own; memory is allocated as needed.
            prefix: ids with which many prompts begin.
        """
        config = model.config
        self.slots = slots
        self.window = window or config.max_position_embeddings
        end = model.generation_config.eos_token_id
        self.eos_token_ids = set(end if isinstance(end, list) else [end])
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size = model.model.layers[0].self_attn.q_proj.out_features // self._heads
        # a norm divides by the root mean square, which is the length divided by this
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
        """Forget what the slot held and run a prompt. Returns the next token's logits, shape (vocabulary,).

        Raises:
            ValueError: the slot is unknown, or there are no ids or more than `window`; nothing has changed.
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
        """Append one token to each of these slots. Returns the next tokens' logits, shape (len(slots), vocabulary).

        Raises:
            ValueError: a slot is unknown, listed twice, full, or was never filled; nothing has changed.
        """
        self._require_slots(slots)
        if len(set(slots)) < len(slots):
            raise ValueError(f"a slot is listed twice: {slots}")
        for slot in slots:
            if not 0 < self._lengths[slot] < self.window:
                raise ValueError(f"slot {slot} holds {self._lengths[slot]} of {self.window} positions")
        longest = max(self._lengths[slot] for slot in slots) + 1
        self._make_room(longest)
        rows = max(slots) + 1
        # if the slots are few and far apart, gather their caches; otherwise, compute the slots between them as well
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

    # `course.qwen.measure_slots` replaces these, to see what they are worth

    def _normed(self, x, weight):
        return x * weight / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(self._least)

    def _turned(self, pairs, turns):
        return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2)

    def _attend(self, query, keys, values, mask):
        scores = torch.baddbmm(mask, query, keys.mT, alpha=query.shape[-1] ** -0.5)
        return torch.bmm(scores.softmax(-1), values)

    def _run_prompt(self, slot, ids, known):
        """Run `ids` after the first `known` positions of a slot. Returns the output for the last id, (1, hidden)."""
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
            if layer is self._last:  # only the last token's output is needed, and that token sees all others
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
                raise ValueError(f"there is no slot {slot}: slots are 0 to {self.slots - 1}")

    def _make_room(self, length):
        if length <= self._room:
            return
        before, self._room = self._room, min(max(2 * self._room, length), self.window)
        # one extra position, where the keys and values of unused slots go
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
    """A linear layer with its weights packed for the CPU."""

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
    """The weights of one layer, joined and packed."""

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
    """Interleave the halves of each head, so that two neighbours form one complex number."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
