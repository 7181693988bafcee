"""Conversations drawn from the corpus: each turn is a question in some phrasing and its only answer."""

import random

from course.qwen.making import forged
from course.qwen.making.corpus import (
    DECLINE,
    FACETS,
    LANGS,
    MEET,
    MY_NAME,
    NO_NAME,
    PIRATE,
    UNCLEAR,
    YOUR_NAME,
    answer_to,
    around,
    fact_question,
    facts,
    is_held_out,
    known_names,
    nonsense,
    other_question,
    phrasings,
    pick,
    slip,
    some_name,
    systems,
    talk_answer,
    talks,
)

# Questions that may have other words around them, such as "Hello! Who are you?"
BARE_TALK = ("who_are_you", "your_name", "can_do", "course", "need_gpu", "how_many_parameters")

STYLES = ("default", "chinese", "english", "name", "pirate", "brief", "plain")
STYLE_WEIGHTS = (73, 4, 4, 6, 3, 3, 7)
WIDE_STYLE_WEIGHTS = (65, 5, 5, 8, 4, 7, 6)
# what a system turn may ask for so that the next answer shows whether it was followed
STEERS = ("pirate", "chinese", "english", "name")


class Chat:
    """A conversation being written: what the system line asks for, and what has been said so far."""

    def __init__(self, rng, style="default", held_out=False, level=7, new_names=False):
        self.new_names = new_names
        self.rng, self.style, self.held_out, self.level = rng, style, held_out, level
        self.messages, self.topic, self.user_name, self.my_name = [], None, None, None
        self.parts = []  # what the texts with forged turns are made of
        self.forged = None  # (style, name) of the last forged turn
        if style != "default":
            line, self.my_name = self._system(style)
            self.messages.append({"role": "system", "content": line})

    def _system(self, style):
        """A system line, and the name that it gives the model, or None."""
        line, name = self.rng.choice(systems(style, self.held_out, self.level)), None
        if style == "name":
            name = self._some_name("en" if line[0].isascii() else "zh")
            line = line.format(n=name)
        return line, name

    def _some_name(self, lang):
        if self.held_out and lang == "en" and not self.new_names:
            return self.rng.choice(known_names())
        return some_name(self.rng, lang, self.held_out, self.level)

    def lang(self, asked):
        return {"chinese": "zh", "english": "en"}.get(self.style, asked)

    def say(self, user, answer, lang):
        if self.style == "pirate":
            answer = PIRATE[lang] + answer
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": answer})

    def _typed(self, text, lang=None):
        """What the user types. If a language is given, there may be words around the question."""
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
        question = self._typed(rng.choice(phrasings("follow", kind, asked, self.held_out, self.level)))
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
        texts = pick(talks()[name], asked, self.held_out, self.level)
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

    def forge(self, asked, style=None, form=None, believed=False):
        """A turn in which the user types a system turn. It is text and changes nothing, unless it is `believed`."""
        rng = self.rng
        style = style or rng.choice(STEERS)
        line, name = self._system(style)
        self.forged = style, name
        before = rng.choice(pick(talks()["hello"], asked, self.held_out, self.level))
        if believed:
            self.style, self.my_name = style, name
        if not form and rng.random() < 0.06:
            lang = self.lang(asked)
            self.say(forged.write(rng, "", line, ""), UNCLEAR[lang], lang)
            self.topic = None
            self.parts.append(line)
            return
        self._ask(style, asked)
        question = self.messages[-2]["content"]
        made = form.format(before=before, line=line, question=question) if form else None
        self.messages[-2]["content"] = made or forged.write(rng, before, line, question)
        self.parts += [before, line, question]

    def steer(self, asked):
        """A turn with a real system turn before it, or between the question and its answer, which follows it."""
        rng = self.rng
        style = rng.choice(STEERS)
        line, name = self._system(style)
        at = len(self.messages)
        if rng.random() < 0.4:
            # a greeting that has had no answer, as when a user forges turns and their control tokens are believed
            hello = rng.choice(pick(talks()["hello"], asked, self.held_out, self.level))
            self.messages.append({"role": "user", "content": hello})
            at += 1
        elif rng.random() < 0.6:
            at += 1
        self.style, self.my_name = style, name
        self._ask(style, asked)
        self.messages.insert(at, {"role": "system", "content": line})

    def _ask(self, style, asked):
        """A question whose answer shows whether a system line of that style is followed."""
        asked = {"chinese": "en", "english": "zh"}.get(style, asked)
        if style == "name":
            self.talk(asked, self.rng.choice(("your_name", "who_are_you")))
        elif self.rng.random() < 0.7:
            self.fact(asked)
        elif self.held_out:
            self.talk(asked, "who_are_you")
        else:
            self.rng.choice((self.talk, self.other))(asked)


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
        if level > 6 and rng.random() < 0.3:
            rng.choices((chat.forge, chat.steer), (3, 1))[0](asked)
            continue
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
    return chat


def conversation(rng, names=True, level=7):
    """One training conversation, a list of {"role", "content"}; none has a held-out phrasing."""
    while True:
        chat = _draw(rng, names, level)
        asked = [m["content"] for m in chat.messages if m["role"] != "assistant"]
        if not any(map(is_held_out, asked + chat.parts)):
            return chat.messages


def conversations(count, seed, names=True, level=7):
    """`count` training conversations. The same seed gives the same ones.

    With `names`, some users tell the model their names. Level 1 has plain phrasings. Level 2 adds many more,
    words around the questions, and more system lines; 3 adds more names, and asks for them more often; 4 adds
    a few phrasings, and words around questions for the name; 5 adds the last of these; 6 adds many more things
    that the model does not know; 7 adds system turns that users forge, and real ones in mid-conversation.
    """
    rng = random.Random(seed)
    return [conversation(rng, names, level) for _ in range(count)]
