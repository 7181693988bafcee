"""Exercise 4.5: one model, many sequences, one forward pass for all of them."""

import torch
import torch.nn.functional as F


# given
def rms_norm(x, norm):
    """Normalise `x` as the norm layers of a Qwen2 do.

    Args:
        x: (..., hidden).
        norm: one of the model's norms, which has `weight` and `variance_epsilon`.
    """
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


# given
def rotate(x, positions, inv_freq):
    """Apply the rotary embedding: rotate queries or keys by their positions.

    Args:
        x: (rows, tokens, heads, head size).
        positions: (rows, tokens), integers from 0.
        inv_freq: the model's `model.model.rotary_emb.inv_freq`, (head size / 2,).
    """
    angles = positions[..., None, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SlotModel:
    """A Qwen2 with room for `slots` sequences, each with its own key-value cache.

    Logits match those of transformers for the same sequence alone to within 1e-4 (float32, on the CPU), whatever is
    in the other slots, and also after a slot has been reused. Logits that have been returned do not change. Both
    methods block and are called one at a time, from any thread. A slot that is no longer used needs no call.

    It runs on the weights of `model`. You may call its `nn.Linear`s, but no `forward` from transformers
    itself may run, neither the model's nor that of its parts (except `mlp.act_fn`).

    Attributes:
        slots: how many slots there are, numbered from 0.
        window: how many positions each has.
        eos_token_ids: the set of ids that end an answer.

    Example:
        >>> slot_model = SlotModel(model)
        >>> first = int(slot_model.prefill(0, ids).argmax())
        >>> other = int(slot_model.prefill(1, other_ids).argmax())
        >>> slot_model.step([1, 0], [other, first]).shape
        torch.Size([2, 3072])
    """

    def __init__(self, model, *, slots=16, window=None):
        """Args:
        model: a transformers Qwen2ForCausalLM with tied or untied embeddings, any number of key-value
            heads that divides the number of heads, and any rope_theta. Sliding windows and rope
            scaling are not used.
        slots: how many sequences there is room for.
        window: the number of positions in each slot; None means `max_position_embeddings` of the
            model's config. Memory is then allocated as needed: no tensor is made for more than
            twice as many positions as the fullest slot holds, or a few hundred if that is more.

        `eos_token_ids` comes from the model's `generation_config.eos_token_id`, an id or a list.
        """
        config = model.config
        self.slots = slots
        self.window = window or config.max_position_embeddings
        end = model.generation_config.eos_token_id
        self.eos_token_ids = set(end) if isinstance(end, list) else {end}
        self._model, self._head = model.model, model.lm_head
        self._size = self._model.layers[0].self_attn.head_dim
        room = min(256, self.window)
        # for each layer, the keys and values of every slot and position
        self._caches = [torch.zeros(2, slots, room, config.num_key_value_heads, self._size) for _ in self._model.layers]
        self._lengths = [0] * slots

    def prefill(self, slot, ids):
        """Forget what the slot held and run `ids` through the model.

        Args:
            slot: 0 to `slots` - 1.
            ids: a list of 1 to `window` ids.

        Returns:
            The next token's logits, a tensor of shape (vocabulary,).

        Raises:
            ValueError: the slot is unknown, or there are no ids or too many; nothing has changed.
        """
        if slot not in range(self.slots):
            raise ValueError(f"there is no slot {slot}: they are 0 to {self.slots - 1}")
        if not 0 < len(ids) <= self.window:
            raise ValueError(f"a prefill takes 1 to {self.window} ids, not {len(ids)}")
        # what the slot held lies behind the last position: no query sees it until it is overwritten
        logits = self._run([slot], [ids], [list(range(len(ids)))])
        self._lengths[slot] = len(ids)
        return logits[0]

    def step(self, slots, ids):
        """Append one token to each of these slots, in one forward pass.

        The number of matrix products does not depend on how many slots are listed. (Keys and values
        may be copied in a loop.)

        Args:
            slots: a list of distinct slots, in any order. Each was filled by `prefill`.
            ids: a list of the same length, one id for each slot.

        Returns:
            The next tokens' logits, a tensor of shape (len(slots), vocabulary), in the order of
            `slots`.

        Raises:
            ValueError: a slot is unknown, listed twice, full, or was never filled; nothing has
                changed, not even for the other slots in the list.
        """
        for slot in slots:
            if slot not in range(self.slots):
                raise ValueError(f"there is no slot {slot}: they are 0 to {self.slots - 1}")
            if not 0 < self._lengths[slot] < self.window:
                raise ValueError(f"slot {slot} holds {self._lengths[slot]} of {self.window} positions")
        if len(set(slots)) < len(slots):
            raise ValueError(f"a slot is named twice: {slots}")
        logits = self._run(slots, [[id] for id in ids], [[self._lengths[slot]] for slot in slots])
        for slot in slots:
            self._lengths[slot] += 1
        return logits

    @torch.inference_mode()
    def _run(self, slots, ids, positions):
        """Run `ids` at `positions`, equally many for each slot; return the logits of the last ones."""
        slots, ids, positions = torch.tensor(slots), torch.tensor(ids), torch.tensor(positions)
        longest = int(positions.max()) + 1
        self._make_room(longest)
        sees = torch.arange(longest) <= positions[..., None]  # (slots, ids, positions)
        x = self._model.embed_tokens(ids)
        for layer, (keys, values) in zip(self._model.layers, self._caches, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            normed = rms_norm(x, layer.input_layernorm)
            projections = attention.q_proj, attention.k_proj, attention.v_proj
            query, key, value = (each(normed).unflatten(-1, (-1, self._size)) for each in projections)
            keys[slots[:, None], positions] = self._rotated(key, positions)
            values[slots[:, None], positions] = value
            seen = F.scaled_dot_product_attention(
                self._rotated(query, positions).transpose(1, 2),
                keys[slots, :longest].transpose(1, 2),
                values[slots, :longest].transpose(1, 2),
                attn_mask=sees[:, None],  # the same for all heads
                enable_gqa=True,
            )
            x = x + attention.o_proj(seen.transpose(1, 2).flatten(2))
            normed = rms_norm(x, layer.post_attention_layernorm)
            x = x + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        return self._head(rms_norm(x[:, -1], self._model.norm))

    def _rotated(self, x, positions):
        return rotate(x, positions, self._model.rotary_emb.inv_freq)

    def _make_room(self, longest):
        room = self._caches[0].shape[2]
        if longest > room:
            more = min(max(2 * room, longest), self.window) - room
            self._caches = [F.pad(cache, (0, 0, 0, 0, 0, more)) for cache in self._caches]
