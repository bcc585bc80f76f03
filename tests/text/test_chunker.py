"""The chunker: equal chunks for every split, nothing lost, cuts where a speaker would breathe."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_voice.errors import SettingsError
from higgs_voice.text import Chunker, ChunkerSettings, TextChunk


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def chunk(text: str, pieces: list[str] | None = None, **settings_: float) -> list[TextChunk]:
    chunker = Chunker(ChunkerSettings(**settings_))
    out: list[TextChunk] = []
    for piece in pieces if pieces is not None else [text]:
        out += chunker.feed(piece)
    return out + chunker.flush()


def texts(text: str, **settings_: float) -> list[str]:
    return [found.text for found in chunk(text, **settings_)]


def sentences(text: str) -> list[str]:
    """Every sentence by itself, however short."""
    return texts(text, min_first_sentence_chars=0, min_chars=0, min_first_chars=1000, first_max_chars=200)


NASTY = [
    "It costs 3.14 or $5.99, 1,000,000 in all. Next, on May 5, 2024, at 10:30. Then 2. Two.",
    "Mr. and Mrs. Smith met Dr. J. R. R. Tolkien, e.g. at 5 p.m. on Main St. It was in the U.S. Government. No. 5? No. Yes.",
    "See https://ex.com/a.b/c?d=1. Or www.x.org! Mail a.b@c.de, main.py v2.0.1. Done.Next one. Really?!Yes...no… Well.",
    'She said "Hello." Then (it ended.) “Hi!” she cried. **Bold. Text.** [1] Fact.[2] Good!🎉🎉 Next 👨‍👩‍👧. ok',
    "# Title\r\n\r\nA list:\r\n- one, two\r\n* three\r\n1. four\r\n2) five\r\n\r\n| a | b |\r\n|---|---|\nEnd\nof it.",
    "Code:\n```python\nprint('a. b')\n```\nand `x. y` and ``a`b`` then ~~gone~~ [a. b](http://x.y/z_(w) \"T. t\") ![i](d) [no] (p).",
    "[SPEAKER0] Hello there. Ok.[SPEAKER1] Fine, thanks. [laugh] [SPEAKER0]Bye. <b>a. b</b> <|eot_id|> a < b <3 </x",
    "你好。我是小明！真的？是；好，今天天气很好、我们去公园玩吧。“好。”他说。３．１４",
    "नमस्ते। आप कैसे हैं॥ ठीक। مرحبا؟ أنا بخير، شكرا۔ ¡Hola! ¿Cómo estás? z.B. am 3. Mai usw. Ende.",
    "a\ud83d. b\ude00! e\u0301. \u200d\ufeff x\u2028y\x00z. \ud83d\ude00\tq\x85 r.",
    "Well — I think -- no, wait - that; this: is a long sentence without any stop which goes on and on " * 4,
    "x" * 230 + ". " + "e\u0301" * 60 + "```unclosed. code",
    "Items: 1. One 2. Two 3. Three. ...and? !! . , ; : ( [ < ` ~~~ \n\n\n ??? (((. )))",
    "((([[[<<<***___```" * 3 + ".a.b.c!d?e",
    "Use ``` here. Or ```py\nx. y\n``` and then ```z. z``` or\n```no. py```! The end. ``` a. b `c. d",
    "<think>I greet. So, ok > now</think>Hi. Use <think> or `<think>` now. <thinking>Not\n\nclosed. <b>a</b> <i",
    "Open Mon – Fri, 9 AM – 5 PM, $5 — $10, Jan. 1 - Jan. 15 or 5 – Then. It is more than 500, from eight to six. Code: 4821",
    "<b>" * 66 + "a. b<br>end. Der 3. Platz. Say [this and <that and `those, and so on; for it goes on and on.",
]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("sizes", [{}, {"max_chars": 40, "first_max_chars": 20, "min_first_chars": 5, "min_chars": 3}])
def test_every_split_gives_the_same_chunks(text: str, sizes: dict[str, int]) -> None:
    expected = chunk(text, **sizes)
    assert chunk(text, list(text), **sizes) == expected
    for i in range(1, len(text)):
        assert chunk(text, [text[:i], text[i:]], **sizes) == expected, (text[:i], text[i:])


ALPHABET = st.sampled_from(
    [
        *"aAb1  \n.,!?;:'\"()[]<>*_`~#-—…。，？।؟|/@&=",
        "\r\n",
        "\r",
        "\u2028",
        "\t",
        "\ud83d",
        "\ude00",
        "\u0301",
        "\u200d",
        "😀",
        "你",
        "```",
        "Mr. ",
        "e.g. ",
        "U.S. ",
        "5 p.m. ",
        "No. ",
        "3.1",
        "[SPEAKER1]",
        "[a](b)",
        "<b>",
        "https://a.b ",
        "The ",
        " I. ",
        " and ",
        "1. ",
        "\n- ",
        "\n\n",
        ". ",
        ", ",
        " to ",
        "from 5",
        " – ",
        "9 AM",
        "Mon",
        "<think>",
        "</think>",
        "code: ",
        "4821",
        "\n```",
    ]
)
TEXT = st.lists(ALPHABET, max_size=60).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=TEXT, cuts=st.lists(st.integers(0, 120), max_size=8), small=st.booleans())
def test_random_splits_give_the_same_chunks_and_lose_nothing(text: str, cuts: list[int], small: bool) -> None:
    sizes = {"max_chars": 20, "first_max_chars": 12, "min_first_chars": 3, "min_chars": 2} if small else {}
    at = sorted({min(cut, len(text)) for cut in cuts})
    pieces = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    chunks = chunk(text, pieces, **sizes)
    assert chunks == chunk(text, list(text), **sizes)
    check(text, chunks)
    for found in chunks:
        assert (
            "```" in found.text
            or "](" in found.text
            or "<" in found.text
            or "[SPEAKER" in found.text
            or len(found.text) <= (20 if small else 200)
        )


def check(text: str, chunks: list[TextChunk]) -> None:
    """What must hold for the chunks of any text."""
    end = 0
    for found in chunks:
        assert found.start >= end
        assert found.text == text[found.start : found.end]
        assert found.text == found.text.strip() != ""
        assert not text[end : found.start].strip()
        end = found.end
    assert not text[end:].strip()
    assert [found.final for found in chunks[:-1]] == [False] * len(chunks[:-1])


@settings(max_examples=100, deadline=None)
@given(text=TEXT, waits=st.lists(st.sampled_from([0.0, 0.6, 2.5]), min_size=60, max_size=60))
def test_stalls_lose_nothing_either(text: str, waits: list[float]) -> None:
    clock = Clock()
    chunker = Chunker(ChunkerSettings(min_first_chars=3), clock=clock)
    out: list[TextChunk] = []
    for i, char in enumerate(text):
        out += chunker.feed(char)
        deadline = chunker.deadline()
        clock.now += waits[i % len(waits)]
        released = chunker.poll()
        assert bool(released) == (deadline is not None and clock.now >= deadline)
        out += released
    out += chunker.flush()
    check(text, out)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs 3.14. I paid $5.99. Fine.", ["It costs 3.14.", "I paid $5.99.", "Fine."]),
        ("Mr. Smith left. Dr. Who came.", ["Mr. Smith left.", "Dr. Who came."]),
        ("Fruit, e.g. apples, i.e. food. Ok.", ["Fruit, e.g. apples, i.e. food.", "Ok."]),
        ("Pens, ink, etc. are here. Pens, etc. The end.", ["Pens, ink, etc. are here.", "Pens, etc.", "The end."]),
        (
            "At 5 p.m. we go. At 5 p.m. She left. At 5 p.m. Monday.",
            ["At 5 p.m. we go.", "At 5 p.m.", "She left.", "At 5 p.m. Monday."],
        ),
        ("The U.S. Army came. In the U.S. They left.", ["The U.S. Army came.", "In the U.S.", "They left."]),
        ("St. Louis is big. On Main St. It rains.", ["St. Louis is big.", "On Main St.", "It rains."]),
        ("See No. 5 there. No. I am not.", ["See No. 5 there.", "No.", "I am not."]),
        ("J. R. R. Tolkien wrote. Plan B. Then go.", ["J. R. R. Tolkien wrote.", "Plan B.", "Then go."]),
        ("You and I. Did it.", ["You and I.", "Did it."]),
        ("Go to https://a.b/c.d?e=1. Then www.x.org. Ok.", ["Go to https://a.b/c.d?e=1.", "Then www.x.org.", "Ok."]),
        ("Mail a.b@c.de. Run main.py. Use v2.0.1. Ok.", ["Mail a.b@c.de.", "Run main.py.", "Use v2.0.1.", "Ok."]),
        ("Wait... what? Well… I see. Hm... Yes.", ["Wait... what?", "Well…", "I see.", "Hm...", "Yes."]),
        ('He said "Go." Then left. “Hi!” she said.', ['He said "Go."', "Then left.", "“Hi!” she said."]),
        ("(It ended.) Next.", ["(It ended.)", "Next."]),
        ("**It ended.** Next.", ["**It ended.**", "Next."]),
        ("A fact.[12] Another.", ["A fact.[12]", "Another."]),
        ("Really?! Yes!! No.", ["Really?!", "Yes!!", "No."]),
        ("Great!🎉🎉 Next.", ["Great!🎉🎉", "Next."]),
        ("hello world. how are you?", ["hello world.", "how are you?"]),
        ("One thing.Then another.", ["One thing.", "Then another."]),
        ("Use Node.Js. Ok.", ["Use Node.Js.", "Ok."]),
        ("1. Buy milk. 2. Sell it.", ["1. Buy milk.", "2. Sell it."]),
        ("Things: 1. One 2. Two 3. Three", ["Things: 1. One", "2. Two", "3. Three"]),
        ("A list:\n- milk\n- eggs\n\nDone", ["A list:", "- milk", "- eggs", "Done"]),
        ("# Title\nText here", ["# Title", "Text here"]),
        ("A line that goes\non here. Ok.", ["A line that goes\non here.", "Ok."]),
        ("At 10:30 we go. At 11:00.", ["At 10:30 we go.", "At 11:00."]),
        ("你好。我是小明！真的？是；好", ["你好。", "我是小明！", "真的？", "是；", "好"]),
        ("他说：“好。”然后走了。", ["他说：“好。”", "然后走了。"]),
        ("नमस्ते। आप कैसे हैं॥ ठीक", ["नमस्ते।", "आप कैसे हैं॥", "ठीक"]),
        ("كيف حالك؟ أنا بخير. نعم", ["كيف حالك؟", "أنا بخير.", "نعم"]),
        ("¡Hola! ¿Cómo estás? Bien.", ["¡Hola!", "¿Cómo estás?", "Bien."]),
        ("Heute, z.B. am 3. Mai, geht es. Ja.", ["Heute, z.B. am 3. Mai, geht es.", "Ja."]),
        ("Use `a. b` now. Ok.", ["Use `a. b` now.", "Ok."]),
        (
            "See [this. That](http://x.y/a_(b) 'T. t') now. Ok.",
            ["See [this. That](http://x.y/a_(b) 'T. t') now.", "Ok."],
        ),
        ("Code: ```\na. b\n``` End.", ["Code:", "```\na. b\n```", "End."]),
        ("```\na. B c.", ["```\na. B c."]),
        ("Use ``` here. Then stop.", ["Use ``` here.", "Then stop."]),
        ("Use ```a. b``` here. Then stop.", ["Use ```a. b``` here.", "Then stop."]),
        ("Use this. ``` is a mark. Ok.", ["Use this.", "``` is a mark.", "Ok."]),
        ("<think>Greet. Ok.</think>Hello! Bye.", ["<think>Greet. Ok.</think>", "Hello!", "Bye."]),
        ("Hi. <thinking>Not. closed", ["Hi.", "<thinking>Not. closed"]),
        ("The <think> tag. And more.", ["The <think> tag.", "And more."]),
        ("Der 3. Platz ist gut. Ja.", ["Der 3. Platz ist gut.", "Ja."]),
        ("I have 3. Customers left.", ["I have 3.", "Customers left."]),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_first_chunk_is_cut_at_a_clause_later_ones_are_sentences() -> None:
    text = "Well, I have looked at your order, and it is on its way. It left today, by train, at noon."
    assert texts(text) == [
        "Well, I have looked at your order,",
        "and it is on its way.",
        "It left today, by train, at noon.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "We are open every weekday from eight to six at 555 Main Street in the middle of this old town",
        "There is something said in this old book here by a crowd of no less than 500 people there in all",
        "This thing will happen once more in the course of a year between spring and summer maybe",
        "Our doors stay open all days of this week except Sunday, 9 AM – 5 PM",
        "Our doors stay open all days of this week, Monday – Friday",
        "Our doors stay open all this month Jan. 1 - Jan. 15",
        "Our price is now at some point of $5 — $10 each",
    ],
)
def test_no_cut_parts_a_range(text: str) -> None:
    parts = [found.text for found in chunk(text, list(text))]
    for part in parts[1:]:
        assert not re.match(r"(?:to|than|and) |5 PM|Friday|Jan|\$10", part), parts


def test_a_chunk_knows_whether_its_sentence_goes_on_and_what_stands_before_it() -> None:
    text = "I looked at all of the things you sent me last week and found nothing unusual in any one of these. Your code: 4821."
    chunks = chunk(text, list(text))
    assert [(found.text[:12], found.goes_on) for found in chunks] == [
        ("I looked at ", True),
        ("and found no", False),
        ("Your code: 4", False),
    ]
    assert [text[: found.start][-80:] for found in chunks] == [found.before for found in chunks]
    assert [found.goes_on for found in chunk("One moment,")] == [False]
    clock = Clock()
    chunker = Chunker(clock=clock)
    chunker.feed("I would like to walk to the bea")
    clock.now += 2.0
    assert [found.goes_on for found in chunker.poll()] == [True]


def test_thoughts_are_not_released_while_they_stream() -> None:
    chunker = Chunker()
    assert [found.text for found in chunker.feed("Hello there. <think>")] == ["Hello there."]
    assert chunker.feed("I should greet. Or, perhaps, not. Then > ask.\n\nOk. ") == []
    assert chunker.deadline() is None
    assert chunker.feed("</think>") == []
    assert [found.text for found in chunker.feed("Well, I am here. A")] == [
        "<think>I should greet. Or, perhaps, not. Then > ask.\n\nOk. </think>",
        "Well, I am here.",
    ]


@pytest.mark.parametrize("mark", ["[", "`", "<a "])
def test_the_first_chunk_waits_less_for_what_may_close(mark: str) -> None:
    text = f"Say {mark}this now, my dear old friend, and then go on to all of those who are not here with us any more"
    chunker = Chunker()
    released = [found.text for char in text for found in chunker.feed(char)]
    assert released[0] == f"Say {mark}this now, my dear old friend,"
    link = "I see it [" + "a" * 60 + "](x) and more. "
    assert texts(link * 3)[-1] == link.strip()


@pytest.mark.parametrize("tag", ["<b>", "<|a|>", "<br>"])
def test_tags_alone_are_neither_held_back_nor_looked_through_again(tag: str) -> None:
    begun = time.process_time()
    text = tag * (100_000 // len(tag)) + "Hello."
    chunks = chunk(text)
    assert time.process_time() - begun < 3.0
    assert max(len(found.text) for found in chunks) < 600
    check(text, chunks)
    assert text[chunks[-1].start : chunks[-1].end].endswith("Hello.")


def test_first_clause_comes_before_its_sentence_ends() -> None:
    chunker = Chunker()
    assert chunker.feed("I have looked at your order,") == []
    assert [found.text for found in chunker.feed(" and")] == ["I have looked at your order,"]


def test_first_chunk_without_marks_is_cut_before_a_conjunction() -> None:
    text = "I looked at all of the things you sent me last week and found nothing unusual in any one of these"
    assert texts(text)[0] == "I looked at all of the things you sent me last week"


def test_a_sentence_is_released_with_the_first_character_behind_it() -> None:
    chunker = Chunker()
    assert chunker.feed("I have it.") == []
    assert [found.text for found in chunker.feed(" N")] == ["I have it."]


def test_very_short_sentences_are_joined_to_the_next() -> None:
    assert texts("I have it here. Ok. Sure. That is all I know. Bye.") == [
        "I have it here.",
        "Ok. Sure. That is all I know.",
        "Bye.",
    ]
    assert texts("Ok. That is it. Fine.") == ["Ok. That is it.", "Fine."]
    assert texts("Hello! That is it.")[0] == "Hello!"


def test_text_without_stops_is_cut_at_the_best_place() -> None:
    words = texts("word " * 2000)
    assert all(len(found) <= 200 and found.endswith("word") for found in words)
    solid = texts("x" * 20_000)
    assert all(len(found) <= 200 for found in solid)
    assert "".join(solid) == "x" * 20_000
    clauses = texts("I go there, then home, " * 30)
    assert all(found.endswith(",") for found in clauses)


def test_a_cut_never_divides_a_grapheme() -> None:
    for grapheme in ("e\u0301", "👍🏽", "👩\u200d🚀", "नि", "☝\ufe0f"):
        for found in texts(grapheme * 400):
            assert found.startswith(grapheme[0])
            assert found.endswith(grapheme[-1])


def test_fenced_code_is_one_chunk_however_long() -> None:
    code = "```py\n" + "x = 'a. b, c'\n\n" * 100 + "```"
    assert texts(f"Look here:\n{code}\nThat is it.") == ["Look here:", code, "That is it."]


def test_code_is_released_when_its_fence_closes_not_before() -> None:
    chunker = Chunker()
    assert [found.text for found in chunker.feed("Look here: ```py\n")] == ["Look here:"]
    assert chunker.feed("x = 1. Y\n") == []
    assert chunker.deadline() is None
    assert chunker.feed("``") == []
    assert [found.text for found in chunker.feed("`\nThat is all I have. A")] == [
        "```py\nx = 1. Y\n```",
        "That is all I have.",
    ]


def test_the_address_of_a_link_does_not_count_against_the_size() -> None:
    text = "I know all. See [the page](https://ex.com/" + "a" * 500 + ") for more, and tell me."
    assert texts(text) == ["I know all.", text[12:]]


def test_a_speaker_tag_begins_a_chunk_and_stays_with_its_text() -> None:
    chunks = chunk("[SPEAKER0] Hello there my friend. I am well.[SPEAKER1] Ok. [SPEAKER12] " + "word " * 60)
    assert [(found.text[:24], found.speaker) for found in chunks[:4]] == [
        ("[SPEAKER0] Hello there m", "SPEAKER0"),
        ("I am well.", "SPEAKER0"),
        ("[SPEAKER1] Ok.", "SPEAKER1"),
        ("[SPEAKER12] word word wo", "SPEAKER12"),
    ]
    assert chunks[-1].speaker == "SPEAKER12"
    assert chunk("Hi.")[0].speaker is None


def test_a_stall_releases_a_clause() -> None:
    clock = Clock()
    chunker = Chunker(clock=clock)
    assert chunker.deadline() is None
    assert chunker.feed("One moment, please") == []
    assert chunker.deadline() == 100.5
    clock.now = 100.4
    assert chunker.poll() == []
    clock.now = 100.5
    assert [found.text for found in chunker.poll()] == ["One moment,"]
    assert chunker.deadline() is None
    assert chunker.poll() == []
    assert [found.text for found in chunker.feed(" wait. ") + chunker.flush()] == ["please wait."]


@pytest.mark.parametrize(
    ("text", "released"),
    [
        ("I have it.", "I have it."),  # a stop at the very end is one, if the word before it is a word
        ("Is it?”", "Is it?”"),
        ("It costs 3.", None),  # 3.14?
        ("I met Mr.", None),
        ("I met J.", None),
        ("Fruit, e.g.", "Fruit,"),
        ("Too low, e.", "Too low,"),
        ("Write to jane@doe.", None),
        ("Write to a@b.com, or call,", "Write to a@b.com, or call,"),
        ("Visit www.", None),
        ("See https:", None),
        ("It is as follows:", "It is as follows:"),
        ("We meet at 5 p.m.", "We meet at 5 p.m."),
        ("A heading\n", "A heading"),
        ("Look at `this, or", None),
        ("Say [this, or", None),
        ("```\ncode, more", None),
        ("你好。", "你好。"),
    ],
)
def test_what_a_stall_makes_of_the_end(text: str, released: str | None) -> None:
    clock = Clock()
    chunker = Chunker(clock=clock)
    chunker.feed(text)
    clock.now += 1.0
    assert [found.text for found in chunker.poll()] == ([] if released is None else [released])


def test_a_long_stall_releases_whole_words_only() -> None:
    clock = Clock()
    chunker = Chunker(clock=clock)
    chunker.feed("I would like to walk to the bea")
    assert chunker.deadline() == 102.0
    clock.now = 102.0
    assert [found.text for found in chunker.poll()] == ["I would like to walk to the"]
    assert chunker.deadline() is None
    assert [found.text for found in chunker.feed("ch.") + chunker.flush()] == ["beach."]


def test_offsets_point_into_the_turn_and_begin_anew_with_the_next() -> None:
    chunker = Chunker()
    first = chunker.feed("  Hello there.  I am here. ") + chunker.flush()
    second = chunker.feed("And again. ") + chunker.flush()
    assert [(found.start, found.end) for found in first] == [(2, 14), (16, 26)]
    assert [(found.start, found.end) for found in second] == [(0, 10)]


def test_flush_marks_the_last_chunk_and_reset_forgets() -> None:
    chunker = Chunker()
    assert [found.final for found in chunker.feed("Hello there. And more") + chunker.flush()] == [False, True]
    chunker.feed("forgotten, all of it")
    chunker.reset()
    assert chunker.flush() == []
    assert chunker.feed("") == []
    assert chunker.feed(" \n ") + chunker.flush() == []


def test_unknown_setting_names_the_valid_ones() -> None:
    with pytest.raises(SettingsError, match=r"no setting 'max_len'.*max_chars"):
        ChunkerSettings(max_len=3)
    with pytest.raises(SettingsError, match="hold_s"):
        ChunkerSettings(stall_s=3.0, hold_s=1.0)


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "*",
        "[",
        "a.",
        "1,",
        "<a",
        "`",
        "[a](",
        "\n",
        "!",
        ". ",
        "- ",
        "_a",
        "1. ",
        '"',
        "http://",
        "~",
        "😀",
        "```\n",
        "[1",
        "J. ",
        "e\u0301",
        "<b>",
        "<think>",
        " – 5",
        "Mon – ",
        " to 5",
        "```a ",
    ],
)
def test_time_is_linear_for_hostile_text(piece: str) -> None:
    """Four times the text takes about four times as long: measured against the same machine, so that load does not matter."""

    def seconds(n: int) -> float:
        pieces, least = [piece] * (n // len(piece)), float("inf")
        for _ in range(3):
            begun = time.process_time()
            chunk("", pieces)
            least = min(least, time.process_time() - begun)
        return least

    small, large = seconds(2_000), seconds(8_000)
    assert large < 2.0
    assert large < 10 * small + 0.05


def test_twenty_thousand_characters_in_tokens_take_a_fraction_of_a_second() -> None:
    pieces = (
        [
            "I",
            " have",
            " looked",
            " at",
            " your",
            " order",
            ",",
            " and",
            " it",
            " costs",
            " $5",
            ".99",
            ".",
            " Then",
            " we",
            " go",
            "!",
        ]
        * 400
    )[: 20_000 // 4]
    begun = time.process_time()
    chunk("", pieces)
    assert time.process_time() - begun < 1.0
