"""The slot model of `slots.py` for a CUDA GPU, with one CUDA graph per pass.

On a GPU, a step for 64 rows costs little more than a step for one: most of the cost is launching some 480
small kernels from Python. A CUDA graph records them once and launches all of them at once. A graph has fixed
shapes, so there is one for each bucket of rows and positions, and one for each bucket of prompt lengths.

- Slots are used lowest first, so the first rows of the caches are a view, and nothing is gathered.
- The ids and positions of a step are copied to the device in one small copy.
- Unused slots between the rows are computed as well; their keys and values go to a position that is always masked.
- Logits are returned on the CPU, where they are sampled: one `argmax` per row on the GPU would wait for it each time.
- A prompt is padded at its end. Later steps overwrite the padding before the mask reveals it.

`compiled=True` runs each layer through `torch.compile` before the capture: steps are faster, but each bucket
takes some 20 s when it is first used.

Not covered: sliding windows, rope scaling, more than one GPU.
"""

import torch
import torch.nn.functional as F

LONGEST_GRAPH = 4096
"""Prompts longer than this run without a graph: their kernels are large enough to hide the launches."""


class SlotModel:
    """Like `course.qwen.slots.SlotModel`, but on a CUDA device, in bfloat16 or float32."""

    def __init__(self, model, *, slots=64, window=None, compiled=False):
        """Use the weights of a transformers Qwen2ForCausalLM that is on a CUDA device.

        Args:
            model: the model, as in `course.qwen.slots`.
            slots: how many sequences there is room for.
            window: the number of positions in each slot. None means the model's own, but at most 4,096. The
                caches are allocated right away, because graphs contain their addresses.
            compiled: whether layers go through torch.compile.
        """
        config = model.config
        self.slots = slots
        self.window = window or min(config.max_position_embeddings, 4096)
        end = model.generation_config.eos_token_id
        self.eos_token_ids = set(end if isinstance(end, list) else [end])
        self._device, self._dtype = model.device, model.dtype
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size = model.model.layers[0].self_attn.q_proj.out_features // self._heads
        self._eps = config.rms_norm_eps
        self._embeddings = model.model.embed_tokens.weight.detach()
        self._norm, self._head = model.model.norm.weight.detach(), model.lm_head.weight.detach()
        self._layers = [_Layer(layer) for layer in model.model.layers]
        self._lengths = [0] * slots
        # the position after the window is for unused slots
        self._room = -(-(self.window + 1) // 128) * 128
        shape = (2, slots, self._kv_heads, self._room, self._size)
        self._caches = [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in self._layers]
        angles = torch.arange(self._room, device=self._device)[:, None].float() * model.model.rotary_emb.inv_freq
        self._cos, self._sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        # for a step, the ids and then the positions of its rows; for a prompt, the ids, the slot and the last position
        self._rows = torch.zeros(2, _bucket(slots, 1), dtype=torch.long, device=self._device)
        self._prompt = torch.zeros(LONGEST_GRAPH + 2, dtype=torch.long, device=self._device)
        self._graphs, self._pool = {}, None
        self._after_attention = torch.compile(_after_attention, dynamic=False) if compiled else _after_attention
        self._before_attention = torch.compile(_before_attention, dynamic=False) if compiled else _before_attention

    @torch.inference_mode()
    def prefill(self, slot, ids):
        """Forget what the slot held and run `ids`. Returns logits, shape (vocabulary,)."""
        self._require_slots([slot])
        count = len(ids)
        if not 0 < count <= self.window:
            raise ValueError(f"a prefill takes 1 to {self.window} ids, not {count}")
        length = min(_bucket(count, 16), self._room)
        if length <= LONGEST_GRAPH:
            padded = [*ids, *[0] * (length - count), slot, count - 1]
            self._prompt[: length + 2] = torch.tensor(padded).pin_memory().to(self._device, non_blocking=True)
            logits = self._graph(("prefill", length), lambda: self._run_prompt(self._prompt[: length + 2]))
        else:
            logits = self._run_prompt(torch.tensor([*ids, slot, count - 1], device=self._device))
        self._lengths[slot] = count
        return _on_the_cpu(logits)

    @torch.inference_mode()
    def step(self, slots, ids):
        """Append one token to each of these slots. Returns logits, shape (len(slots), vocabulary)."""
        self._require_slots(slots)
        if len(set(slots)) < len(slots):
            raise ValueError(f"a slot is listed twice: {slots}")
        for slot in slots:
            if not 0 < self._lengths[slot] < self.window:
                raise ValueError(f"slot {slot} holds {self._lengths[slot]} of {self.window} positions")
        rows = min(_bucket(max(slots) + 1, 1), self.slots)
        length = min(_bucket(max(self._lengths[slot] for slot in slots) + 1, 128), self._room)
        tokens, positions = [0] * rows, [self._room - 1] * rows
        for slot, id in zip(slots, ids, strict=True):
            tokens[slot], positions[slot] = id, self._lengths[slot]
            self._lengths[slot] += 1
        self._rows[:, :rows] = torch.tensor([tokens, positions]).pin_memory().to(self._device, non_blocking=True)
        logits = self._graph(("step", rows, length), lambda: self._run_step(rows, length))
        if slots == list(range(len(slots))):
            return _on_the_cpu(logits[: len(slots)])
        return _on_the_cpu(logits[torch.tensor(slots, device=self._device)])

    def warm_up(self, rows, length):
        """Capture the graphs of steps for up to `rows` rows and `length` positions."""
        for row in {_bucket(each, 1) for each in range(1, rows + 1)}:
            for end in {_bucket(each, 128) for each in range(1, length + 1, 64)}:
                row, end = min(row, self.slots), min(end, self._room)
                with torch.inference_mode():
                    self._rows[1].fill_(self._room - 1)
                    self._graph(("step", row, end), lambda row=row, end=end: self._run_step(row, end))

    def _run_step(self, rows, length):
        ids, positions = self._rows[:, :rows]
        heads, kv_heads, size = self._heads + 2 * self._kv_heads, self._kv_heads, self._size
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        hidden = torch.arange(length, device=self._device) > positions[:, None]
        mask = torch.zeros(rows, length, device=self._device, dtype=self._dtype)
        mask = mask.masked_fill(hidden, torch.finfo(self._dtype).min)
        mask = mask[:, None].expand(-1, kv_heads, -1).reshape(rows * kv_heads, 1, length)
        slots = torch.arange(rows, device=self._device)
        pair = torch.arange(2, device=self._device)[:, None] * self.slots + slots
        store = pair[..., None] * kv_heads + torch.arange(kv_heads, device=self._device)
        store = (store * self._room + positions[None, :, None]).flatten()
        x = self._embeddings[ids]
        for layer, cache in zip(self._layers, self._caches, strict=True):
            query, pairs = self._before_attention(x, layer, cos, sin, self._heads, heads, size, self._eps)
            cache.view(-1, size).index_copy_(0, store, pairs.reshape(-1, size))
            keys = cache[0, :rows].view(rows * kv_heads, -1, size)[:, :length]
            values = cache[1, :rows].view(rows * kv_heads, -1, size)[:, :length]
            query = query.reshape(rows * kv_heads, -1, size)
            scores = torch.baddbmm(mask, query, keys.mT, alpha=size**-0.5)
            seen = torch.bmm(scores.softmax(-1), values).view(rows, -1)
            x = self._after_attention(x, seen, layer, self._eps)
        return self._logits(x)

    def _run_prompt(self, prompt):
        ids, slot, last = prompt[:-2], prompt[-2], prompt[-1:]
        count, kv_heads, size = len(ids), self._kv_heads, self._size
        heads = self._heads + 2 * kv_heads
        cos, sin = self._cos[:count, None], self._sin[:count, None]
        positions = torch.arange(count, device=self._device)
        pair = (torch.arange(2, device=self._device) * self.slots + slot)[:, None, None] * kv_heads
        store = (pair + torch.arange(kv_heads, device=self._device)) * self._room + positions[None, :, None]
        store = store.flatten()
        x = self._embeddings[ids]
        for layer, cache in zip(self._layers, self._caches, strict=True):
            query, pairs = self._before_attention(x, layer, cos, sin, self._heads, heads, size, self._eps)
            cache.view(-1, size).index_copy_(0, store, pairs.reshape(-1, size))
            query, keys, values = (each.transpose(0, 1)[None] for each in (query, pairs[0], pairs[1]))
            seen = F.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)
            x = self._after_attention(x, seen[0].transpose(0, 1).reshape(count, -1), layer, self._eps)
        return self._logits(x[last])[0]

    def _logits(self, x):
        return F.linear(F.rms_norm(x, x.shape[-1:], self._norm, self._eps), self._head).float()

    def _graph(self, key, run):
        """Replay the graph with that key, which is captured at first use. Returns what `run` returned then."""
        if key not in self._graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                run()  # whatever a first call chooses or compiles must not be part of a graph
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = run()
            self._pool = self._pool or graph.pool()
            self._graphs[key] = graph, result
        graph, result = self._graphs[key]
        graph.replay()
        return result

    def _require_slots(self, slots):
        for slot in slots:
            if slot not in range(self.slots):
                raise ValueError(f"there is no slot {slot}: slots are 0 to {self.slots - 1}")


class _Layer:
    """The weights of one layer: query, key and value are joined, and so are gate and up."""

    def __init__(self, layer):
        attention, mlp = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = torch.cat([part.weight.detach() for part in parts])
        self.qkv_bias = torch.cat([part.bias.detach() for part in parts])
        self.output = attention.o_proj.weight.detach()
        self.gate_up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        self.down = mlp.down_proj.weight.detach()
        self.norm = layer.input_layernorm.weight.detach()
        self.mlp_norm = layer.post_attention_layernorm.weight.detach()


def _before_attention(x, layer, cos, sin, query_heads, heads, size, eps):
    """A layer's query, (tokens, query heads, size), and its keys and values, (2, tokens, kv heads, size)."""
    qkv = F.linear(F.rms_norm(x, x.shape[-1:], layer.norm, eps), layer.qkv, layer.qkv_bias).view(-1, heads, size)
    kv_heads = (heads - query_heads) // 2
    turning = qkv[:, : query_heads + kv_heads].float()
    first, second = turning.chunk(2, dim=-1)
    turned = (turning * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    query, keys = turned.split([query_heads, kv_heads], dim=1)
    return query, torch.stack((keys, qkv[:, query_heads + kv_heads :]))


def _after_attention(x, seen, layer, eps):
    x = x + F.linear(seen, layer.output)
    gate, up = F.linear(F.rms_norm(x, x.shape[-1:], layer.mlp_norm, eps), layer.gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, layer.down)


def _on_the_cpu(logits):
    """A copy on the CPU, where exercise 3.5 needs it, in memory that the GPU can write to directly."""
    return torch.empty(logits.shape, pin_memory=True).copy_(logits)


def _bucket(count, smallest):
    """The smallest power of two times `smallest` that is at least `count`."""
    return smallest << max(0, (-(-count // smallest) - 1).bit_length())
