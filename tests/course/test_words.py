"""The course's words in Chinese: the catalog is in step with the code, and its templates fit finished sentences."""

import re
from pathlib import Path

import pytest
from commands import course

from course import desk, notebook, words
from course.grading import Verdict
from course.grading import verdict as verdicts
from course.manifest import ROOT, exercises
from course.words.__main__ import brought_up_to_date, wrong_holes
from course.words.findings import Findings
from course.words.phrases import FACT_PHRASES

CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv("COURSE_LANG", "zh")


@pytest.mark.parametrize(
    "environment, language",
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "COURSE_LANG": "en"}, "en"),
        ({"LC_ALL": "C", "COURSE_LANG": "zh"}, "zh"),
    ],
)
def test_the_language_is_what_course_lang_says_or_else_the_locale(monkeypatch, environment, language):
    for name in ("COURSE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert words.language() == language


def test_the_catalog_has_the_texts_of_the_code():
    there = {message.id for message in words.catalog() if message.id}
    wanted = {message.id for message in brought_up_to_date({}) if message.id}
    assert there == wanted, "python -m course.words"


@pytest.mark.parametrize("file, phrases", FACT_PHRASES.items())
def test_a_phrase_written_by_hand_is_made_of_words_of_its_file(file, phrases):
    path = ROOT / file
    source = "".join(each.read_text("utf-8") for each in ([path] if path.is_file() else path.rglob("*.py")))
    words_of = {phrase: re.findall("[A-Za-z]{3,}", words.HOLE.sub("", phrase)) for phrase in phrases}
    assert [phrase for phrase, used in words_of.items() if not all(each in source for each in used)] == []


def test_no_text_lacks_its_chinese():
    lacking = [message.id for message in words.catalog() if message.id and not message.string]
    assert lacking == [], "python -m course.words --missing"


def test_a_translation_has_the_holes_and_the_code_of_its_text():
    wrong = [f"{english} -> {chinese}" for english, chinese in words.read().items() if wrong_holes(english, chinese)]
    assert wrong == []


def test_a_finished_sentence_finds_its_template(chinese):
    assert words.words("ask sends 3 requests, not one") == "ask 发送了 3 个请求，而不是一个"
    # the longest template that fits, and a phrase of the course's in its hole
    null = "a `text` that is null does not get a 422: the sender should learn that the body is wrong"
    assert words.words(null).startswith("`text` 为 null")
    assert words.words("Nobody has said this yet") == "Nobody has said this yet"


def test_why_is_added_in_chinese_too(chinese):
    mistake = "`finish_reason` is not the last piece's"
    assert (
        words.words(f"{mistake}: an answer that was cut off says `stop`")
        == words.words(mistake) + words.words(": an answer that was cut off says `stop`")
        == "`finish_reason` 与最后一个片段里的不一致：回答被截断了，却写着 `stop`"
    )


def test_a_fact_in_words_is_chinese_and_data_stay(chinese):
    assert words.fact("no traceback: clients leave all the time, and that is not an error").startswith("没有 traceback")
    # a template, with a phrase of the course's in its hole
    assert words.fact("generate; the client leaves before the first piece") == "generate；客户端在第一个片段之前断开"
    # what an answer says is never taken for a finding
    assert words.fact("3 steps") == "3 步"
    for data in ("stream", "we count our steps", "ask sends 3 requests, not one", '200 {"status": "ok"}', "{}"):
        assert words.fact(data) == data


def test_a_verdicts_facts_are_chinese_and_its_json_english(chinese):
    found = verdict("failed")
    found.tests[0].facts = {"expected": "at most 3 steps", "got": "nothing", "where": "line 5, in ask: a(b)"}
    for shown in (str(found), found._repr_html_(), "\n".join(found.full_lines())):
        assert "最多 3 步" in shown and "什么也没有" in shown and "第 5 行（ask 内）：a(b)" in shown
    assert "at most 3 steps" in found.as_json()["tests"][0]["message"]


def test_a_list_of_events_is_chinese_event_by_event(chinese):
    sent = "chat() is called, 'Hi' is yielded after 1 s, [1, 2], the inner answer ends after 2 s"
    called = "调用 chat()，1 秒后产出 'Hi'，[1, 2]，2 秒后内层回答结束；调用时，时钟为 0.0"
    assert words.fact(f"{sent}; the clock reads 0.0 when `chat` is called", events=True) == called
    left = "'Hi' is yielded after 1 s, the reader calls aclose() after 2 s"
    assert words.fact(left, events=True) == "1 秒后产出 'Hi'，2 秒后读取方调用 aclose()"
    assert words.fact("aclose, the end") == "aclose, the end"


def test_a_blank_stands_between_chinese_and_a_name_only(monkeypatch):
    catalog = {"{a} is in {b} now": "在{b}里有 {a} 了", "an old house": "老房子"}
    monkeypatch.setenv("COURSE_LANG", "zh")
    monkeypatch.setattr(words, "read", lambda lacking=False: catalog)
    for cached in (words.translated, words._catalog, words._endings):
        cached.cache_clear()
    try:
        assert words.words("x1 is in f() now") == "在 f() 里有 x1 了"
        assert words.words("an old house is in an old house now") == "在老房子里有老房子了"
        assert words.words("{a} is in {b} now", a="猫", b="C:/") == "在 C:/ 里有猫了"
    finally:
        for cached in (words.translated, words._catalog, words._endings):
            cached.cache_clear()


def test_a_templates_own_values_are_not_looked_up(chinese):
    assert words.words("There is no file {file}.", file="{file} passed") == "没有文件 {file} passed。"


def test_in_english_a_text_is_as_it_is(monkeypatch):
    monkeypatch.setenv("COURSE_LANG", "en")
    assert words.words("There is no file {file}.", file="a.py") == "There is no file a.py."
    assert words.words("ask sends {value} requests, not one") == "ask sends {value} requests, not one"


def verdict(*statuses):
    names = ["test_sends_one_post_to_chat", "test_nothing_is_sent_twice"]
    tests = [
        verdicts.TestResult(
            name, exercises()["1.4"].test(name).title, status, 0, 1, "ask sends 3 requests, not one", {"got": 3}
        )
        for name, status in zip(names, statuses)
    ]
    return Verdict("1.4", exercises()["1.4"].title, "a.py", exercises()["1.4"].tests_file, 0.1, tests)


def test_a_verdict_is_chinese_and_its_json_english(chinese):
    found = verdict("failed", "not_run")
    for shown in (str(found), found._repr_html_(), "\n".join(found.full_lines())):
        assert (
            "ask 发送了 3 个请求，而不是一个" in shown
            and "实际" in shown
            and words.words(verdicts.MARKS["failed"]) in shown
        )
        assert "requests" not in shown and "got" not in shown
    assert "尚未通过，0/2 个测试，0/2 分" in str(found)
    assert found.as_json()["tests"][0]["message"].startswith("ask sends 3 requests, not one")


def test_chinese_lines_are_as_wide_as_they_may_be(chinese):
    found = verdict("failed")
    found.tests[0].facts = {"got": "一个很长的回答，没有空格。" * 12}
    for line in found.lines(60):
        assert sum(2 if ord(each) > 0x2E80 else 1 for each in line) <= 60 or "::" in line
        assert not line.strip().startswith(("，", "。"))


def test_the_desk_speaks_chinese(chinese, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    with pytest.raises(desk.Refused, match="没有第 9 阶段"):
        desk.of_stage(9)
    assert "下一步：0.1" in desk.summary() and desk.rows()[0][2] == "未开始"


def said(*arguments, **environment):
    done = course(*arguments, **environment)
    return done.stdout + done.stderr


def test_the_command_line_speaks_chinese(tmp_path):
    environment = {"COURSE_LANG": "zh", "COURSE_WORK": str(tmp_path)}
    assert "退出码才是 0" in said("check", "--help", **environment)
    assert "没有练习 9.9" in said("hint", "9.9", **environment)
    assert "There is no exercise 9.9" in said("hint", "9.9", **environment | {"COURSE_LANG": "en"})


def test_what_typer_itself_says_is_chinese(tmp_path):
    environment = {"COURSE_LANG": "zh", "COURSE_WORK": str(tmp_path)}
    for typed in ("serve --help", "chec", "check --jsn", "serve --port x", "reset", "report"):
        shown = said(*typed.split(), **environment).replace("Ctrl-C", "")
        assert "用法：" in shown and not re.findall(r"\b[A-Z][a-z]+\b", shown), shown
    assert "Usage: " in said("chec", **environment | {"COURSE_LANG": "en"})


@pytest.mark.parametrize("said", ["JPY_SESSION_NAME", "cwd"])
def test_a_chinese_notebook_speaks_chinese(monkeypatch, tmp_path, said):
    folder = tmp_path / "notebooks" / "zh"
    folder.mkdir(parents=True)
    # so that what is set here is taken back
    monkeypatch.setenv("COURSE_LANG", "en")
    monkeypatch.delenv("COURSE_LANG")
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if said == "cwd":
        monkeypatch.chdir(folder)
    else:
        monkeypatch.setenv("JPY_SESSION_NAME", str(folder / "stage1_first_server.ipynb"))
    notebook.speak_as_the_notebook()
    assert words.language() == "zh"
    monkeypatch.setenv("COURSE_LANG", "en")
    notebook.speak_as_the_notebook()
    assert words.language() == "en"


def test_findings_are_followed_to_their_literals(tmp_path):
    file = Path(tmp_path, "grading", "test_it.py")
    file.parent.mkdir()
    file.write_text(
        """
WHAT = {"a": "a list that is empty", "b": "a number of nothing"}

def require(holds, mistake, **facts):
    if not holds:
        raise Mistake(mistake, **facts)

def compare(given, say, often):
    require(given, f"{say} for {often} times" if often else "nothing was said", sent="a fact is no finding")

def test():
    for key, what in WHAT.items():
        compare(1, say=f"{what} is refused", often=2)
    mistake = "it is " + ("too early" if key else "too late")
    require(False, mistake)
""",
        "utf-8",
    )
    assert {text for text, _ in Findings([file]).all()} == {
        "{say} for {often} times",
        "nothing was said",
        "{what} is refused",
        "a list that is empty",
        "a number of nothing",
        "it is too early",
        "it is too late",
    }
