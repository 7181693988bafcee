"""What the lessons show: tokens in a table or in their text; waits, arrivals, loads and floods as plots."""

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
    """A table of the tokens of a text or of a list of ids: the id, what it decodes to on its own, and its bytes."""
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
    # the bytes of a character may be split across several tokens: these share a box
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
    """Plot how long each request waited against the time at which it was sent.

    Args:
        series: for each server, its name and pairs (sent, waited), in seconds.
        busy_s: when another request began and when it ended, in seconds.
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
    """Plot when each piece of an answer arrived: a row for each reader, a dot for each piece.

    Args:
        series: for each reader, a name and the times of its pieces, in seconds.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.32 * len(series)), layout="constrained")
    for row, times in enumerate(series.values()):
        axes.plot(times, [row] * len(times), "o", markersize=5, alpha=0.6)
    axes.set_yticks(range(len(series)), list(series))
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("arrived after (s)")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    plt.show()


def loads(series: dict[str, list]) -> None:
    """Plot the time to first token and the tokens per second against the number of clients.

    Args:
        series: for each server, a name and its measurements, with the attributes `clients`,
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
        axes.set_xlabel("concurrent clients")
        axes.set_xticks(sorted({each.clients for measured in series.values() for each in measured}))
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def calls(*served, titles=()) -> None:
    """Plot a loop's calls in order, one column each: a square is a prefill, a dot a step that includes the answer.

    Args:
        served: what `course.demos.batching.serve` returned, once or several times; all share one scale.
        titles: one title for each.
    """
    import matplotlib.pyplot as plt

    heights = [len(each.came) for each in served]
    most = max(len(each.calls) for each in served)
    size = {"figsize": (9, 0.9 * len(served) + 0.26 * sum(heights)), "layout": "constrained"}
    figure, panels = plt.subplots(len(served), sharex=True, squeeze=False, height_ratios=heights, **size)
    for panel, each, title in zip(panels.flat, served, [*titles, *[""] * len(served)]):
        for row, (name, came) in enumerate(each.came.items()):
            steps = [at for at, (kind, names) in enumerate(each.calls) if kind == "S" and name in names]
            first = next((at for at, (kind, names) in enumerate(each.calls) if kind == "P" and name in names), most)
            panel.barh(row, first - came, left=came - 0.5, height=0.5, color="0.88")
            panel.plot(steps, [row] * len(steps), "o", color=f"C{row % 10}", markersize=4)
            panel.plot([first], [row], "s", color=f"C{row % 10}", markersize=7)
        if most < 80:
            for at, (kind, _) in enumerate(each.calls):
                weight, color = ("bold", "0.1") if kind == "P" else ("normal", "0.5")
                panel.text(at, -1, kind, ha="center", va="center", fontsize=7, fontweight=weight, color=color)
        panel.set_yticks(range(len(each.came)), list(each.came))
        panel.set_ylim(len(each.came) - 0.5, -1.5)
        panel.set_xlim(-1, most)
        panel.set_title(title, loc="left", fontsize=10)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(left=False)
    panel.set_xlabel("calls to the slot model, in order (gray: waiting)")
    plt.show()


def steps(rows: list[int], ms: list[float]) -> None:
    """Plot how long a step takes and how many tokens per second that is, against the number of answers in it."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
    left.plot(rows, ms, "o-")
    left.plot(rows, [ms[0] * each for each in rows], ":", color="0.6")
    left.text(rows[-2], ms[0] * rows[-2], "one at a time  ", ha="right", fontsize=9, color="0.4")
    left.set_title("a step (ms)", fontsize=10)
    right.plot(rows, [1000 * each / time for each, time in zip(rows, ms)], "o-")
    right.set_title("tokens per second", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("answers in the step")
        axes.set_xticks(rows)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    plt.show()


def caches(keys: dict, title: str = "") -> None:
    """Draw the keys of each cache's first head: a panel for each cache, a column for each position.

    Args:
        keys: {name: a tensor of shape (heads, positions, size)}.
    """
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(keys), figsize=(9, 0.6 + 0.9 * len(keys)), sharex=True, squeeze=False, layout="constrained"
    )
    most = max(each.shape[1] for each in keys.values())
    for panel, (name, each) in zip(panels.flat, keys.items()):
        # if a picture has more rows than the panel has pixels, some are left out
        picture = each[0].T.detach().float().numpy()
        panel.imshow(picture, aspect="auto", cmap="RdBu", vmin=-4, vmax=4, interpolation="nearest")
        panel.set_xlim(-0.5, most - 0.5)
        panel.set_yticks([])
        panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_xlabel("position")
    panels[0, 0].set_title(title, loc="left", fontsize=10)
    plt.show()


def flood(series: dict[str, list], until_s: float) -> None:
    """Plot the time to first token against the time of the request, with refused requests marked at the bottom.

    Args:
        series: for each server, a name and its clients, with the attributes `at_s`, `ttft_s` and `status`.
        until_s: when the last request was sent.
    """
    import matplotlib.pyplot as plt

    size = {"figsize": (4.6 * len(series), 3), "layout": "constrained"}
    figure, panels = plt.subplots(1, len(series), sharey=True, squeeze=False, **size)
    for axes, (name, asked) in zip(panels.flat, series.items()):
        answered = [(each.at_s, each.ttft_s) for each in asked if each.ttft_s is not None]
        refused = [each.at_s for each in asked if each.status == 503]
        axes.plot(*zip(*answered), "o", markersize=4, alpha=0.6, label="answered")
        if refused:
            axes.plot(refused, [0] * len(refused), "x", color="C3", markersize=5, alpha=0.6, label="refused")
            axes.legend(frameon=False, loc="upper left")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlim(0, until_s)
        axes.set_xlabel("sent at (s)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    panels[0, 0].set_ylabel("time to first token (s)")
    plt.show()


def figures(at_s: list[float], lines: dict[str, dict[str, list]]) -> None:
    """Plot a server's metrics over time, in one or more panels.

    Args:
        at_s: when the values were read, in seconds.
        lines: for each panel, its title and its lines by name, with a value or None for each time.
    """
    import matplotlib.pyplot as plt

    size = {"figsize": (8, 1.7 * len(lines)), "layout": "constrained"}
    figure, panels = plt.subplots(len(lines), sharex=True, squeeze=False, **size)
    for axes, (title, drawn) in zip(panels.flat, lines.items()):
        for name, values in drawn.items():
            pairs = [(at, value) for at, value in zip(at_s, values) if value is not None]
            axes.plot(*zip(*pairs), label=name) if pairs else None
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        if len(drawn) > 1:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_xlabel("seconds")
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
