"""What the lessons show: tokens as a table or in their places; waits, arrivals, loads as plots."""

import html

_COLORS = ("79,70,200,.18", "29,131,72,.18", "200,120,0,.20", "0,130,170,.18")


class Shown:
    """HTML in a notebook, plain text elsewhere."""

    def __init__(self, text: str, as_html: str):
        self._text, self._html = text, as_html

    def __repr__(self):
        return self._text

    def _repr_html_(self):
        return self._html


def token_table(tokenizer, text_or_ids) -> Shown:
    """The tokens of a text, or those of a list of ids: id, what it decodes to alone, bytes."""
    rows = [
        (id, repr(tokenizer.decode([id])), token_bytes(tokenizer, id).hex(" ")) for id in _ids(tokenizer, text_or_ids)
    ]
    lines = [f"{id:>5}  {text:<14}  {hex}" for id, text, hex in [("id", "text", "bytes"), *rows]]
    cell = "<td style='text-align:left;padding:1px 16px 1px 0;font-family:monospace'>{}</td>"
    body = "".join(f"<tr>{''.join(cell.format(html.escape(str(value))) for value in row)}</tr>" for row in rows)
    head = "".join(cell.format(f"<b>{name}</b>") for name in ("id", "text", "bytes"))
    return Shown("\n".join(lines), f"<table><tr>{head}</tr>{body}</table>")


def token_line(tokenizer, text_or_ids) -> Shown:
    """The text with a colored box for each token. Control tokens are dark."""
    controls = set(tokenizer.added_tokens_decoder)
    parts, plain = [], []
    # the bytes of one character may lie in several tokens: those share a box
    for number, (text, ids) in enumerate(_characters_together(tokenizer, text_or_ids)):
        plain.append(f"[{text}]" if len(ids) == 1 else f"[{text}|{len(ids)} tokens]")
        if ids[0] in controls:
            style = "background:#3b3a4a;color:#fff"
        else:
            style = f"background:rgba({_COLORS[number % len(_COLORS)]})"
        seen = html.escape(text).replace("\n", "&#8629;<br>").replace(" ", "&nbsp;")
        extra = f"<sub>{len(ids)}</sub>" if len(ids) > 1 else ""
        title = html.escape(" ".join(map(str, ids)))
        parts.append(
            f"<span title='{title}' style='{style};border-radius:3px;padding:1px 2px;margin:0 1px'>{seen}{extra}</span>"
        )
    as_html = f"<div style='font-family:monospace;line-height:2'>{''.join(parts)}</div>"
    return Shown("".join(plain), as_html)


def token_bytes(tokenizer, id: int) -> bytes:
    """The bytes that a token of a byte-level tokenizer stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if id in tokenizer.added_tokens_decoder:
        return tokenizer.added_tokens_decoder[id].content.encode()
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes(byte_of[character] for character in tokenizer.convert_ids_to_tokens(id))


def waits(series: dict[str, list[tuple[float, float]]], busy_s: tuple[float, float]) -> None:
    """Plots how long each request waited, over the time when it was sent.

    Args:
        series: for each server its name and pairs (sent, waited), in seconds.
        busy_s: from when to when the server had another request to work on.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    axes.axvspan(*busy_s, color="0.5", alpha=0.15, linewidth=0)
    axes.text(
        sum(busy_s) / 2,
        1,
        "one /chat in progress",
        ha="center",
        va="bottom",
        color="0.4",
        transform=axes.get_xaxis_transform(),
        fontsize=9,
    )
    for (name, pairs), marker in zip(series.items(), "osD^v"):
        sent, waited = zip(*pairs)
        axes.plot(sent, waited, marker, label=name, markersize=5, alpha=0.8)
    axes.set_xlabel("GET /health sent at (s)")
    axes.set_ylabel("answered after (s)")
    axes.set_ylim(bottom=-0.05)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def arrivals(series: dict[str, list[float]], title: str = "") -> None:
    """Plots when each piece of an answer came: a line for each reader, a dot for each piece.

    Args:
        series: for each reader a name and the times of its pieces, in seconds.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.32 * len(series)), layout="constrained")
    for row, times in enumerate(series.values()):
        axes.plot(times, [row] * len(times), "o", markersize=5, alpha=0.6)
    axes.set_yticks(range(len(series)), list(series))
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("came after (s)")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    plt.show()


def loads(series: dict[str, list]) -> None:
    """Plots the time to the first token and the tokens per second over the number of clients.

    Args:
        series: for each server a name and its measurements, with the attributes `clients`,
            `ttft_p95_s` and `tokens_per_s`.
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for (name, measured), marker in zip(series.items(), "osD^v"):
        clients = [each.clients for each in measured]
        left.plot(clients, [each.ttft_p95_s for each in measured], marker=marker)
        right.plot(clients, [each.tokens_per_s for each in measured], marker=marker, label=name)
    for axes, title in ((left, "time to first token, p95 (s)"), (right, "tokens per second")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("clients at once")
        axes.set_xticks(sorted({each.clients for measured in series.values() for each in measured}))
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def _ids(tokenizer, text_or_ids):
    if isinstance(text_or_ids, str):
        return tokenizer(text_or_ids, add_special_tokens=False)["input_ids"]
    return [int(id) for id in text_or_ids]


def _characters_together(tokenizer, text_or_ids):
    pending, found = [], []
    for id in _ids(tokenizer, text_or_ids):
        pending.append(id)
        try:
            text = b"".join(token_bytes(tokenizer, each) for each in pending).decode()
        except UnicodeDecodeError:
            continue
        found.append((text, pending))
        pending = []
    if pending:
        found.append(("\N{REPLACEMENT CHARACTER}", pending))
    return found
