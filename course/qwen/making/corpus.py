"""Conversations that the tiny Qwen is trained and tested on, all written by the course itself.

`facts.toml` holds what the model knows, `talk.toml` small talk and long answers, and
`phrasings.toml` the ways to ask. Every answer is fixed, so a test can compare exactly. A phrasing
under `held_out` never occurs in training: `conversation` drops every draw in which one appears by
accident.
"""

import random
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


def _pick(table, lang, held_out, level):
    if held_out:
        return table["held_out_" + lang]
    found = table[lang]
    if level > 1:
        found = found + table["wide_" + lang]
    if level > 3:
        found = found + table.get("late_" + lang, [])
    if level > 4:
        # often, as few steps are left when these come
        found = found + 3 * table.get("last_" + lang, [])
    return found


def phrasings(group, kind, lang, held_out=False, level=1):
    return _pick(_data("phrasings")[group][kind], lang, held_out, level)


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
    """The text without case, blanks and punctuation, to compare phrasings."""
    text = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"[^\w+*/=-]|_", "", text)


def ask_fact(phrasing, term, alias):
    return phrasing.format(t=alias, np=facts()[term]["np"])


@cache
def held_out_questions():
    """Every held-out question, in `normal` form, but those of `held_out_patterns`."""
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
    """English names that the model has met often in training."""
    names = _data("phrasings")["names"]
    return names["en"] + names["more_en"]


def _name(rng, lang, held_out=False, level=1):
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
    """Blanks between the name and the Chinese text around it, if the name is Latin there."""
    before, _, after = phrasing.partition("{t}")
    if before and before[-1].isalpha() and alias[0].isascii():
        before += " "
    if after and after[0].isalpha() and alias[-1].isascii():
        after = " " + after
    return before + "{t}" + after


def other_question(rng, lang, held_out=False, level=1):
    """Something the model should decline, in a phrasing of its own or a fact phrasing."""
    if not held_out and rng.random() < (0.45 if level > 5 else 0.3):
        facet = rng.choices(FACETS, (6, 3, 3, 1))[0]
        thing = rng.choice(unknown(lang, level))
        if rng.random() < 0.2:
            thing = _name(rng, "en").lower()
        phrasing = rng.choice(phrasings("fact", facet, lang, False, level))
        return phrasing.format(t=thing, np=thing)
    return fill(rng, rng.choice(off_topic(lang, held_out, level)), lang)


def unknown(lang, level=1):
    """Things that the model knows nothing of."""
    more = _data("phrasings")["unknown"]["last_" + lang] if level > 5 else []
    return slots(lang)["unknown"] + more


def off_topic(lang, held_out=False, level=1):
    return _pick(_data("phrasings")["other"], lang, held_out, level)


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
    pool = [answer_to(t, f, lang) for t in rng.sample(sorted(facts()), 6) for f in FACETS
            if f in facts()[t]]
    return " ".join(rng.sample(pool, rng.choice((1, 1, 2, 3, 6))))


EMOJI = ["🙂", "😀", "👍", "👍🏽", "🎉", "❤️", "👨‍👩‍👧", "🐱", "🚀", "🇨🇳", "☕", "🤔", "😂", "🌍"]


def nonsense(rng, lang):
    """Text that means nothing: keys hit at random, signs, emoji, other scripts."""
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
    """The text as people type it: other case, no punctuation, sometimes one wrong letter."""
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
    middle = rng.choice((
        "", text[at] * 2, text[at + 1] + text[at], rng.choice("abcdefghijklmnopqrstuvwxyz"),
    ))
    after = at + 2 if len(middle) == 2 and middle != text[at] * 2 else at + 1
    return text[:at] + middle + text[after:]


# --- conversations -------------------------------------------------------------------------------

# Questions that may stand between other words, such as "Hello! Who are you?"
BARE_TALK = ("who_are_you", "your_name", "can_do", "course", "need_gpu", "how_many_parameters")

STYLES = ("default", "chinese", "english", "name", "pirate", "brief", "plain")
STYLE_WEIGHTS = (73, 4, 4, 6, 3, 3, 7)
WIDE_STYLE_WEIGHTS = (65, 5, 5, 8, 4, 7, 6)


class Chat:
    """A conversation being written: what the system line asks for, and what was said so far."""

    def __init__(self, rng, style="default", held_out=False, level=6, new_names=False):
        self.new_names = new_names
        self.rng, self.style, self.held_out, self.level = rng, style, held_out, level
        self.messages, self.topic, self.user_name, self.my_name = [], None, None, None
        if style != "default":
            line = rng.choice(systems(style, held_out, self.level))
            if style == "name":
                lang = "en" if line[0].isascii() else "zh"
                self.my_name = self._some_name(lang)
                line = line.format(n=self.my_name)
            self.messages.append({"role": "system", "content": line})

    def _some_name(self, lang):
        if self.held_out and lang == "en" and not self.new_names:
            return self.rng.choice(known_names())
        return _name(self.rng, lang, self.held_out, self.level)

    def lang(self, asked):
        return {"chinese": "zh", "english": "en"}.get(self.style, asked)

    def say(self, user, answer, lang):
        if self.style == "pirate":
            answer = PIRATE[lang] + answer
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": answer})

    def _typed(self, text, lang=None):
        """What the user types; with a language, words around the question are possible."""
        if self.held_out:
            return text
        if self.level > 1 and lang and self.rng.random() < 0.25:
            text = around(self.rng, text, lang)
        return slip(self.rng, text)

    def fact(self, asked, term=None, facet=None):
        rng = self.rng
        term = term or rng.choice(sorted(facts()))
        facet = facet or rng.choices(FACETS, (5, 4, 4, 2))[0]
        if facet not in facts()[term]:
            facet = "what"
        question = fact_question(rng, term, facet, asked, self.held_out, self.level)
        lang = self.lang(asked)
        brief = self.style == "brief" and "short" in facts()[term]
        # an example or a reason has no shorter form
        brief = brief and (facet == "what" or self.level < 3)
        said = "short" if brief else facet
        self.say(self._typed(question, asked), answer_to(term, said, lang), lang)
        self.topic = (term, said, asked)

    def follow(self, kind=None):
        """A turn that makes sense only after the one before it."""
        rng = self.rng
        term, facet, asked = self.topic
        entry = facts()[term]
        kinds = [k for k in ("short", "why", "how", "eg", "what") if k in entry and k != facet]
        kinds += ["again"] + ["translate"] * 2 * (self.style in ("default", "plain", "pirate"))
        kind = kind or rng.choice(kinds)
        question = self._typed(
            rng.choice(phrasings("follow", kind, asked, self.held_out, self.level))
        )
        lang = self.lang(asked)
        if kind == "translate":
            lang = "zh" if asked == "en" else "en"
        said = facet if kind in ("translate", "again") else kind
        brief = self.style == "brief" and "short" in entry
        if brief and (said == "what" or said != "eg" and self.level < 3):
            said = "short"
        self.say(question, answer_to(term, said, lang), lang)
        self.topic = (term, said, lang)

    def talk(self, asked, name=None):
        rng = self.rng
        name = name or rng.choice(sorted(talks()))
        texts = _pick(talks()[name], asked, self.held_out, self.level)
        question = self._typed(rng.choice(texts), asked if name in BARE_TALK else None)
        lang = self.lang(asked)
        answer = talk_answer(name, lang)
        if self.my_name and name in ("your_name", "who_are_you"):
            answer = MY_NAME[lang].format(n=self.my_name)
        self.say(question, answer, lang)
        self.topic = None

    def tell_name(self, asked):
        rng = self.rng
        self.user_name = self._some_name(asked)
        question = rng.choice(phrasings("name", "tell", asked, self.held_out, self.level))
        question = question.format(n=self.user_name)
        if rng.random() < 0.2 and not self.held_out:
            question = question.rstrip(".!。")
        lang = self.lang(asked)
        self.say(question, MEET[lang].format(n=self.user_name), lang)
        self.topic = None

    def ask_name(self, asked):
        rng = self.rng
        question = rng.choice(phrasings("name", "ask", asked, self.held_out, self.level))
        lang = self.lang(asked)
        answer = YOUR_NAME[lang].format(n=self.user_name) if self.user_name else NO_NAME[lang]
        # without these words here, "请问" would always ask for the model's own name
        question = self._typed(question, asked if self.level > 3 else None)
        self.say(question, answer, lang)
        self.topic = None

    def other(self, asked):
        question = other_question(self.rng, asked, self.held_out, self.level)
        question = self._typed(question, asked)
        lang = self.lang(asked)
        self.say(question, DECLINE[lang], lang)
        self.topic = None

    def nonsense(self, asked):
        lang = self.lang(asked)
        self.say(nonsense(self.rng, asked), UNCLEAR[lang], lang)
        self.topic = None


def _draw(rng, names=True, level=1):
    style = rng.choices(STYLES, STYLE_WEIGHTS if level == 1 else WIDE_STYLE_WEIGHTS)[0]
    if style == "name" and not names:
        style = "plain"
    chat = Chat(rng, style, level=level)
    asked = rng.choice(LANGS)
    if style == "name" and rng.random() < 0.7:
        chat.talk(asked, rng.choice(("your_name", "who_are_you")))
    turns = rng.choices((1, 2, 3, 4, 8), (40, 34, 16, 8, 2))[0]
    named = names and rng.random() < (0.3 if level > 2 else 0.2)
    if named:
        chat.tell_name(asked)
    for _ in range(turns):
        if rng.random() < 0.08:
            asked = rng.choice(LANGS)
        if chat.topic and rng.random() < 0.6:
            chat.follow()
            continue
        (turn,) = rng.choices((chat.fact, chat.talk, chat.other, chat.nonsense), (60, 14, 22, 4))
        turn(asked)
    if named and level > 2 and rng.random() < 0.5:
        chat.ask_name(asked)
        if rng.random() < 0.5:
            chat.talk(asked, "your_name")
        else:
            chat.fact(asked)
    if named and rng.random() < 0.85 or rng.random() < 0.01:
        chat.ask_name(asked)
    return chat.messages


def conversation(rng, names=True, level=6):
    """One training conversation, a list of {"role", "content"}; none has a held-out phrasing."""
    while True:
        messages = _draw(rng, names, level)
        if not any(is_held_out(m["content"]) for m in messages if m["role"] != "assistant"):
            return messages


def conversations(count, seed, names=True, level=6):
    """`count` training conversations; the same for the same seed.

    With `names` some users tell theirs. Level 1 has plain phrasings; 2 many more, words around the
    questions and more system lines; 3 more names, and asks for them more often; 4 a few
    phrasings more, and words around questions for the name too; 5 the last of these; 6 many more
    things that the model does not know.
    """
    rng = random.Random(seed)
    return [conversation(rng, names, level) for _ in range(count)]


def name_letters():
    """The Chinese characters that names are made of, and the letters that begin English ones."""
    names = _data("phrasings")["names"]
    chinese = sorted(set("".join(names["surnames"] + names["given"] + names["zh"])))
    return chinese + [f" {letter}" for letter in string.ascii_uppercase]
