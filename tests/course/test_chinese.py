"""The Chinese edition: in step with the English one, and Chinese."""

import re
import shutil
import sys
from collections import Counter

import nbformat
import pytest

from course import chinese
from course.manifest import ROOT

NAMES = sorted(path.stem for path in chinese.ENGLISH.glob("*.ipynb"))
README, README_ZH = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))
HAN = "[\u4e00-\u9fff]"
STRAIGHT = re.compile(rf"{HAN}[,;:?!\"'()]|[,;:?!\"'()]{HAN}|{HAN}\.(?!\w)")
# in a code block, in a span of code, in a tag, or the address of a link
CODE = re.compile(r"(?ms)^```.*?^```|^(?: {4}.*\n?)+|(`+)(?!`).*?\1|<code>.*?</code>|<[^<>]*>|\]\([^)]*\)")


def without_code(text):
    return CODE.sub(" ", text)


def read(folder, name):
    return nbformat.read(folder / f"{name}.ipynb", as_version=4)


def prose():
    """(where, text) of all that is translated."""
    for name in NAMES:
        for cell in read(chinese.CHINESE, name).cells:
            if cell.cell_type == "markdown":
                yield f"notebooks/zh/{name}.ipynb, {cell.id}", cell.source
    yield "README.zh.md", README_ZH


# notebooks


def same(cell):
    """What a cell has in both editions."""
    metadata = {key: value for key, value in cell.metadata.items() if key != "translates"}
    return cell.id, cell.cell_type, metadata, cell.source if cell.cell_type == "code" else None


def test_every_notebook_has_the_english_one_s_code_cells_and_order():
    assert sorted(path.stem for path in chinese.CHINESE.glob("*.ipynb")) == NAMES
    for name in NAMES:
        english, own = read(chinese.ENGLISH, name), read(chinese.CHINESE, name)
        assert [same(cell) for cell in own.cells] == [same(cell) for cell in english.cells], f"{name}: make chinese"
        assert own.metadata == english.metadata, f"{name}: make chinese"


def test_nothing_is_out_of_step(monkeypatch, capsys):
    assert check(monkeypatch, capsys) == "The Chinese notebooks are in step with the English ones."


def check(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["course.chinese", "--check"])
    try:
        chinese.main()
    except SystemExit as end:
        assert end.code == 1
    return capsys.readouterr().out.strip()


@pytest.fixture
def changed(tmp_path, monkeypatch, capsys):
    """changed(change) is what the check says of copies of two notebooks, once `change` has been at the first."""
    english, zh = tmp_path / "notebooks", tmp_path / "notebooks" / "zh"
    zh.mkdir(parents=True)
    for name in NAMES[:2]:
        shutil.copy(chinese.ENGLISH / f"{name}.ipynb", english)
        shutil.copy(chinese.CHINESE / f"{name}.ipynb", zh)
    monkeypatch.setattr(chinese, "ENGLISH", english)
    monkeypatch.setattr(chinese, "CHINESE", zh)

    def changed(change):
        notebook = read(english, NAMES[0])
        change(notebook)
        nbformat.write(notebook, english / f"{NAMES[0]}.ipynb")
        return check(monkeypatch, capsys).splitlines()

    return changed


def cell_of(notebook, id):
    return next(cell for cell in notebook.cells if cell.id == id)


def test_a_changed_english_text_names_its_cell(changed):
    def change(notebook):
        cell_of(notebook, "tokens-lead").source += " More."

    (line,) = changed(change)
    assert f"{NAMES[0]}.ipynb: the cell tokens-lead was translated from another English text" in line


def test_a_changed_stub_names_the_cell_above_it(changed):
    def change(notebook):
        stub = next(cell for cell in notebook.cells if chinese.exercise_of(cell.source) == "0.1")
        stub.source += "\n# it promises more"

    code, above = changed(change)
    assert f"{NAMES[0]}.ipynb: other cells than the English one: make chinese" in code
    assert "the cell exercise-0-1-header was translated from another English text" in above


def test_changed_code_another_order_and_other_tags_are_named(changed):
    def code(notebook):
        cell_of(notebook, "hello").source += "\n"

    def order(notebook):
        notebook.cells.append(notebook.cells.pop(0))

    def tags(notebook):
        cell_of(notebook, "hello").metadata["tags"] = ["other"]

    for change in (code, order, tags):
        assert any("other cells than the English one: make chinese" in line for line in changed(change))
        shutil.copy(ROOT / "notebooks" / f"{NAMES[0]}.ipynb", chinese.ENGLISH)


def test_a_missing_notebook_is_named_and_made_with_english_prose_that_is_not_done(changed, monkeypatch, capsys):
    (chinese.CHINESE / f"{NAMES[0]}.ipynb").unlink()
    (line,) = changed(lambda notebook: None)
    assert line.endswith(f"{NAMES[0]}.ipynb: is missing: make chinese")
    for arguments, left in ([], True), (["--done", NAMES[0]], False):
        monkeypatch.setattr(sys, "argv", ["course.chinese", *arguments])
        chinese.main()
        said = capsys.readouterr().out
        assert ("tokens-lead was translated from another English text, or not yet" in said) is left
    assert check(monkeypatch, capsys).endswith("are in step with the English ones.")


# README


def sections(text):
    """[(heading, text)]; a line of a code block is no heading."""
    parts = re.split(r"(?m)^(#+ .*)$", text)
    return list(zip(parts[1::2], parts[2::2]))


def facts(text):
    """What both languages say alike: commands, spans of code, links, the tables' columns, figures."""
    text = re.sub(r"(?m)^\[(中文|English)\]\(README.*\)$", "", text)
    found = Counter()
    # a placeholder, <this repository>, is translated
    for line in re.findall(r"(?m)^ {4}(\S.*)$", text):
        found[re.sub("<.*?>", "<>", line)] += 1
    text = re.sub(r"(?m)^ {4}\S.*$", "", text)
    for span in re.findall(r"`[^`]+`", text):
        found[re.sub(r"\s+", " ", span)] += 1
    text = re.sub(r"`[^`]+`", "", text)
    for link in re.findall(r"\]\(([^)]*)\)", text):
        found[f"]({link})"] += 1
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for row in re.findall(r"(?m)^\|.*\|$", text):
        found[f"a row of {row.count('|') - 1} columns"] += 1
    text = re.sub(r"(\d+) 年 11 月 (\d+) 日", r"\2 November \1", text)
    for figure in re.findall(r"\d+(?:[.,]\d+)*", text):
        found[figure] += 1
    return found


def rows(text):
    """The code and figures of each cell of a table; in a cell, a sentence may name them in another order."""
    lines = re.findall(r"(?m)^\|.*\|$", text)
    return [[sorted(re.findall(r"`[^`]+`|\d+(?:[.,]\d+)*", cell)) for cell in line.split("|")] for line in lines]


def differences(english, own):
    """What is to be done to README.zh.md, a line each."""
    levels = [[heading.split()[0] for heading, _ in sections(text)] for text in (english, own)]
    if levels[0] != levels[1]:
        return [f"README.zh.md has the headings {levels[1]}, README.md {levels[0]}: give it the same, in this order"]
    found = []
    for (_, text), (heading, own_text) in zip(sections(english), sections(own)):
        here = f"README.zh.md, {heading!r}:"
        text_facts, own_facts = facts(text), facts(own_text)
        if missing := text_facts - own_facts:
            found.append(f"{here} README.md has {list(missing.elements())}: translate what is new there")
        if old := own_facts - text_facts:
            found.append(f"{here} only README.zh.md has {list(old.elements())}: take it out, or correct it")
        if text_facts == own_facts and rows(text) != rows(own_text):
            found.append(f"{here} a row of a table has other figures than README.md's: put them where they belong")
    return found


def test_the_readme_is_in_step_with_the_english_one():
    assert differences(README, README_ZH) == []


def test_each_readme_links_to_the_other_in_its_first_lines():
    assert "(README.zh.md)" in "".join(README.splitlines()[:3])
    assert "(README.md)" in "".join(README_ZH.splitlines()[:3])


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("    course lab\n", "    course lab --new\n", "'course lab --new'"),
        ("`course hint 1.3`", "`course hint 1.4`", "`course hint 1.4`"),
        ("(LICENSE)", "(LICENCE)", "](LICENCE)"),
        ("| 580 |", "| 581 |", "581"),
        ("| 1 | 1,707 | 580 |", "| 4 | 1,707 | 580 |", "'4'"),
        ("| 1,707 | 580 |", "| 580 | 1,707 |", "a row of a table"),
        ("| 1,707 | 580 |", "| 580 |", "a row of 6 columns"),
        ("at most 300", "at most 400", "400"),
        ("### Extras", "## Extras", "headings"),
        ("## For teachers", "For teachers", "headings"),
    ],
)
def test_a_changed_readme_is_named(was, becomes, says):
    assert was in README
    (first, *_) = differences(README.replace(was, becomes), README_ZH)
    assert first.startswith("README.zh.md") and says in first


# Chinese


def test_what_the_tests_below_look_for():
    for text in ("你好,世界", "练习: 1", '他说"好', "第(一)步", "结束."):
        assert STRAIGHT.search(text), text
    for text in ("见 `a,b`，好", "1.5 版", "（`f(1)`）。", "用 f(x) 算", "[链接](a.b)。", "<b>好</b>，"):
        assert not STRAIGHT.search(without_code(text)), text


def test_no_cell_is_left_in_english():
    left = [where for where, text in prose() if re.search("[A-Za-z]", without_code(text)) and not re.search(HAN, text)]
    assert left == [], "translate them"


def test_punctuation_beside_chinese_is_chinese():
    found = {where: STRAIGHT.findall(text) for where, text in ((where, without_code(text)) for where, text in prose())}
    assert {where: marks for where, marks in found.items() if marks} == {}


def test_no_line_breaks_in_a_chinese_sentence():
    broken = re.compile(rf"(?:{HAN}|[，、；：。？！）”])\n(?:{HAN}|[“（])")
    found = [where for where, text in prose() if broken.search(without_code(text))]
    assert found == [], "write a paragraph on one line: a line break is shown as a space"
