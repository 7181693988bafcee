"""The text that the tiny Qwen is trained and tested on, all of it written for this course.

`facts.toml` holds what the model knows, `talk.toml` small talk and long answers, and
`phrasings.toml` the ways to ask. Every answer is fixed, so a test can compare it exactly. A phrasing
under `held_out` never occurs in training: `conversations.conversation` discards every draw in which one
appears by accident.
"""

import re
import string
import tomllib
import unicodedata
from functools import cache
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
LANGS = ("en", "zh")
FACETS = ("what", "why", "how", "eg")
DECLINE = {
    "en": "I am a very small model and don't know that. Ask me about this course.",
    "zh": "我是一个很小的模型，不知道这个。你可以问我这门课的内容。",
}
UNCLEAR = {
    "en": "I did not understand that. Please ask me about this course.",
    "zh": "我没有看懂。请问我这门课的内容。",
}
MEET = {"en": "Nice to meet you, {n}!", "zh": "很高兴认识你，{n}！"}
YOUR_NAME = {"en": "Your name is {n}.", "zh": "你叫{n}。"}
NO_NAME = {"en": "You have not told me your name yet.", "zh": "你还没有告诉我你的名字。"}
MY_NAME = {"en": "My name is {n}.", "zh": "我叫{n}。"}
PIRATE = {"en": "Arr, matey! ", "zh": "啊嘿，伙计！"}


@cache
def _data(name):
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))


def facts():
    """The terms: {id: {"np", "en", "zh", "what": [english, chinese], …}}."""
    return _data("facts")


def answer_to(term, facet, lang):
    return facts()[term][facet][LANGS.index(lang)]


def talks():
    return {t["name"]: t for t in _data("talk")["talk"]}


def talk_answer(name, lang):
    return talks()[name]["answer"][LANGS.index(lang)].strip()


def pick(table, lang, held_out, level):
    if held_out:
        return table["held_out_" + lang]
    found = table[lang]
    if level > 1:
        found = found + table["wide_" + lang]
    if level > 3:
        found = found + table.get("late_" + lang, [])
    if level > 4:
        # repeated often, because few steps are left when these appear
        found = found + 3 * table.get("last_" + lang, [])
    return found


def phrasings(group, kind, lang, held_out=False, level=1):
    return pick(_data("phrasings")[group][kind], lang, held_out, level)


def fact_phrasings(facet, key):
    return _data("phrasings")["fact"][facet][key]


def systems(style, held_out=False, level=1):
    table = _data("phrasings")["system"][style]
    if held_out:
        return table["held_out"]
    return table["any"] + table["wide"] if level > 1 else table["any"]


def slots(lang):
    return _data("phrasings")["slots"][lang]


def normal(text):
    """The text in lower case, without spaces and punctuation, for comparing phrasings."""
    text = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"[^\w+*/=-]|_", "", text)


def ask_fact(phrasing, term, alias):
    return phrasing.format(t=alias, np=facts()[term]["np"])


@cache
def held_out_questions():
    """Every held-out question, in `normal` form, except those of `held_out_patterns`."""
    found = set()
    for facet, lang in product(FACETS, LANGS):
        for phrasing in phrasings("fact", facet, lang, True):
            for term, entry in facts().items():
                for alias in entry["en"] + entry["zh"]:
                    found.add(normal(ask_fact(phrasing, term, alias)))
    for lang in LANGS:
        for kind in _data("phrasings")["follow"]:
            found.update(map(normal, phrasings("follow", kind, lang, True)))
        found.update(map(normal, phrasings("name", "ask", lang, True)))
        for talk in talks().values():
            found.update(map(normal, talk["held_out_" + lang]))
    for style in _data("phrasings")["system"]:
        found.update(normal(p) for p in systems(style, True) if "{" not in p)
    return frozenset(found)


@cache
def held_out_patterns():
    """One pattern for all held-out phrasings with free slots."""
    found = []
    for lang in LANGS:
        found += phrasings("name", "tell", lang, True) + off_topic(lang, True)
    found += systems("name", True)
    parts = [re.split(r"\{\w+\}", p) for p in found]
    return re.compile("|".join(".+".join(re.escape(normal(x)) for x in p) for p in parts))


def is_held_out(text):
    text = normal(text)
    return text in held_out_questions() or bool(held_out_patterns().fullmatch(text))


# --- one user turn -------------------------------------------------------------------------------


def known_names():
    """English names that occur often in the training."""
    names = _data("phrasings")["names"]
    return names["en"] + names["more_en"]


def some_name(rng, lang, held_out=False, level=1):
    names = _data("phrasings")["names"]
    if held_out:
        return rng.choice(names["held_out_" + lang])
    while True:
        name = _train_name(rng, lang, level)
        if name not in names["held_out_" + lang]:
            return name


def _train_name(rng, lang, level):
    if level > 2 and lang == "en" and rng.random() < 0.85:
        return rng.choice(known_names())
    if rng.random() < 0.5:
        return rng.choice(_data("phrasings")["names"][lang])
    names = _data("phrasings")["names"]
    if lang == "zh":
        count = rng.choice((1, 2, 2))
        return rng.choice(names["surnames"]) + "".join(rng.choices(names["given"], k=count))
    syllables = [
        rng.choice(["", *"bcdfghjklmnprstvwz", "ch", "sh", "th", "br", "st", "tr", "cl"])
        + rng.choice([*"aeiou", "a", "e", "i", "ia", "ea", "ee"])
        + rng.choice(["", "", "n", "r", "l", "s", "m", "t", "ck", "nd", "x"])
        for _ in range(rng.choice((1, 2, 2)))
    ]
    return "".join(syllables).capitalize()


def fact_question(rng, term, facet, lang, held_out=False, level=1):
    entry = facts()[term]
    phrasing = rng.choice(phrasings("fact", facet, lang, held_out, level))
    other = "zh" if lang == "en" else "en"
    aliases = entry[other] if not held_out and rng.random() < 0.06 else entry[lang]
    alias = rng.choice(aliases)
    if lang == "zh" and rng.random() < 0.5:
        phrasing = _spaced(phrasing, alias)
    return ask_fact(phrasing, term, alias)


def _spaced(phrasing, alias):
    """Put spaces between a name in Latin letters and the Chinese text around it."""
    before, _, after = phrasing.partition("{t}")
    if before and before[-1].isalpha() and alias[0].isascii():
        before += " "
    if after and after[0].isalpha() and alias[-1].isascii():
        after = " " + after
    return before + "{t}" + after


def other_question(rng, lang, held_out=False, level=1):
    """Something the model should decline, in a special phrasing or in one for facts."""
    if not held_out and rng.random() < (0.45 if level > 5 else 0.3):
        facet = rng.choices(FACETS, (6, 3, 3, 1))[0]
        thing = rng.choice(unknown(lang, level))
        if rng.random() < 0.2:
            thing = some_name(rng, "en").lower()
        phrasing = rng.choice(phrasings("fact", facet, lang, False, level))
        return phrasing.format(t=thing, np=thing)
    return fill(rng, rng.choice(off_topic(lang, held_out, level)), lang)


def unknown(lang, level=1):
    """Things that the model knows nothing about."""
    more = _data("phrasings")["unknown"]["last_" + lang] if level > 5 else []
    return slots(lang)["unknown"] + more


def off_topic(lang, held_out=False, level=1):
    return pick(_data("phrasings")["other"], lang, held_out, level)


def fill(rng, phrasing, lang):
    """An off-topic phrasing with its slots filled."""
    words = slots(lang)
    return phrasing.format(
        **{k: rng.choice(v) for k, v in words.items()},
        place2=rng.choice(words["place"]),
        a=rng.randrange(1, rng.choice((10, 100, 1000))),
        b=rng.randrange(1, rng.choice((10, 100, 1000))),
        text=_text(rng, lang),
    )


def _text(rng, lang):
    pool = [answer_to(t, f, lang) for t in rng.sample(sorted(facts()), 6) for f in FACETS if f in facts()[t]]
    return " ".join(rng.sample(pool, rng.choice((1, 1, 2, 3, 6))))


EMOJI = ["🙂", "😀", "👍", "👍🏽", "🎉", "❤️", "👨‍👩‍👧", "🐱", "🚀", "🇨🇳", "☕", "🤔", "😂", "🌍"]


def nonsense(rng, lang):
    """Text that means nothing: random keystrokes, signs, emoji, other scripts."""
    kind = rng.randrange(6)
    size = rng.choice((1, 2, 3, 5, 8, 12, 20))
    if rng.random() < 0.2:
        return _repeated(rng, lang)
    if lang == "zh":
        common = "的一是了我不人在他有这上们来到时大地为子中你说生国年着就那和要她出也得里后自以会"
        return "".join(rng.choices(common, k=size + 3))
    if kind == 0:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=size + 3))
    if kind == 1:
        return "".join(rng.choices("!?.,;:-_#*+~()[]{}<>/\\|@$%^&=\"'`", k=size))
    if kind == 2:
        return "".join(rng.choices(EMOJI, k=rng.choice((1, 1, 2, 3, 5))))
    if kind == 3:
        return "".join(rng.choices("0123456789", k=size))
    if kind == 4:
        return "".join(rng.choices("あいうえおかきくけこアイウエオ한국어안녕하세요ПриветмирéüñçßÄ", k=size))
    return " ".join("".join(rng.choices("qwertyuiopasdfgh1234 ?!", k=5)) for _ in range(size))


def _repeated(rng, lang):
    words = ["哈", "啊", "token", "好的", "？"] if lang == "zh" else ["ha", "token ", "a", "no ", "?"]
    return rng.choice((rng.choice(words), nonsense(rng, lang)[:4])) * rng.randrange(3, 100)


def around(rng, text, lang):
    """The text with words that people say before or after a question."""
    words = _data("phrasings")["around"][lang]
    if rng.random() < 0.7:
        text = rng.choice(words["before"]) + text
    if rng.random() < 0.4:
        text += rng.choice(words["after"])
    return text


def slip(rng, text):
    """The text as people type it: different case, no punctuation, sometimes one wrong letter."""
    if rng.random() < 0.25:
        text = text.lower()
    elif rng.random() < 0.04:
        text = text.upper()
    if rng.random() < 0.3:
        text = text.rstrip("?.!。？！")
    elif rng.random() < 0.1:
        text += rng.choice(("?", "!", "??", " ", "\n", "。", "？", "！"))
    if rng.random() < 0.15:
        text = typo(rng, text)
    return text or "?"


def typo(rng, text):
    """One letter lost, doubled, swapped or wrong, in a word of at least four Latin letters."""
    words = [m for m in re.finditer(r"[A-Za-z]{4,}", text)]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    middle = rng.choice(
        (
            "",
            text[at] * 2,
            text[at + 1] + text[at],
            rng.choice("abcdefghijklmnopqrstuvwxyz"),
        )
    )
    after = at + 2 if len(middle) == 2 and middle != text[at] * 2 else at + 1
    return text[:at] + middle + text[after:]


def name_letters():
    """The Chinese characters that names are made of, and the letters that begin English ones."""
    names = _data("phrasings")["names"]
    chinese = sorted(set("".join(names["surnames"] + names["given"] + names["zh"])))
    return chinese + [f" {letter}" for letter in string.ascii_uppercase]
