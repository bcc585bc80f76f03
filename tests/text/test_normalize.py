"""What is said for what is written, and the way back."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_voice.errors import SettingsError
from higgs_voice.text import Chunker, Lexicon, is_speakable, normalize


def said(text: str, **options: str) -> str:
    return normalize(text, **options).text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("**Bold**, *it*, __b__, _i_, ***x***", "Bold, it, b, i, x."),
        ("an **orphan. And", "an orphan. And."),
        ("the end.** Next", "the end. Next."),
        ("# Title", "Title."),
        ("# Title\n\nText here", "Title. Text here."),
        ("- one\n- two", "one. two."),
        ("* [ ] one\n* [x] two", "one. two."),
        ("> quoted\n> more", "quoted. more."),
        ("a line that\ngoes on", "a line that goes on."),
        ("Ends.\r\nNext", "Ends. Next."),
        ("See [the page](https://x.y/a_(b)?c=d) now", "See the page now."),
        ("![a cat](cat.png) [![badge](b.svg)](c)", "a cat badge."),
        ("text[^1] and more[2].[3]", "text and more."),
        ("[1]: https://x.y", ""),
        ("| Tea | $3 |\n|---|---|", "Tea, three dollars."),
        ("Use `foo` now", "Use foo now."),
        ("Look:\n```py\nx = 1\n```\nDone", "Look: Done."),
        ("```\nnever closed", ""),
        ("---", ""),
        ("gone ~~this~~ kept", "gone kept."),
        ("<b>bold</b> <br/>new <!-- no --> x", "bold new x."),
        ("&lt;b&gt; a &amp; b &#39;c&#39;", "a and b 'c'"),
        (r"\*stars\* and \_", "stars and."),
        ("Press * then 2*3", "Press then two times three."),
        ("snake_case", "snake case."),
    ],
)
def test_markup_is_not_said(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Hi 😀 there 👨‍👩‍👧👋🏽!", "Hi there!"),
        ("🇩🇪 flag 1️⃣ key #️⃣ ☺️ ✅ ™", "flag key."),
        ("smile :) ;-) <3 ok", "smile ok."),
        ("a\x00b\x07c\x7fd", "abcd."),
        ("a\u200bb\ufeffc\u00add\u202ee", "abcde."),
        ("\ud83d half \ude00 pair \ud83d\ude00", "half pair."),
        ("tab\there\u00a0and\u2003there", "tab here and there."),
        ("cafe\u0301", "café."),
        ("\ue000 private \U000f0000", "private."),
        ("می\u200cخواهم", "می\u200cخواهم."),
    ],
)
def test_characters_without_a_sound_go(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Ha [laugh] ha", "Ha <SE>[Laughter]</SE> ha."),
        ("[LAUGHS]", "<SE>[Laughter]</SE>"),
        ("[humming start] mm [humming end]", "<SE_s>[Humming]</SE_s> mm <SE_e>[Humming]</SE_e>"),
        ("[music start] [music] [music end]", "<SE_s>[Music]</SE_s> <SE>[Music]</SE> <SE_e>[Music]</SE_e>"),
        ("[sing start] la [sing end]", "<SE_s>[Singing]</SE_s> la <SE_e>[Singing]</SE_e>"),
        ("[applause] [cheering] [cough]", "<SE>[Applause]</SE> <SE>[Cheering]</SE> <SE>[Cough]</SE>"),
        ("So <SE>[Laughter]</SE> it is", "So <SE>[Laughter]</SE> it is."),
        ("[SPEAKER0] Hi. [SPEAKER12] Ho", "[SPEAKER0] Hi. [SPEAKER12] Ho."),
        ("[sigh] yes", "sigh yes."),
    ],
)
def test_sound_events_and_speakers(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    "token",
    [
        "<|eot_id|>",
        "<|audio_eos|>",
        "<|reserved_special_token_6|>",
        "<|AUDIO_OUT|>",
        "<|eo<|x|>t_id|>",
        "&lt;|eot_id|&gt;",
    ],
)
def test_special_tokens_are_not_said(token: str) -> None:
    spoken = said(f"Hello {token} there")
    assert "<|" not in spoken
    assert "|>" not in spoken
    assert said(token).rstrip(".") in ("", "eo t id")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        (
            "0 7 42 123 1,234,567",
            "zero seven forty-two one hundred twenty-three one million two hundred thirty-four thousand five hundred sixty-seven.",
        ),
        ("3.14 0.5 .5 -5", "three point one four zero point five point five minus five."),
        ("1st 2nd 23rd 100th", "first second twenty-third one hundredth."),
        ("5-10 people, 3–4", "five to ten people, three to four."),
        ("100 - 5", "one hundred minus five."),
        (
            "$5.99 $1 $0.05 $1.05 -$5",
            "five dollars and ninety-nine cents one dollar five cents one dollar and five cents minus five dollars.",
        ),
        (
            "€1,000.50 £0.50 ¥500 ₹20 20€",
            "one thousand euros and fifty cents fifty pence five hundred yen twenty rupees twenty euros.",
        ),
        (
            "$3.5 million, $10k, $5-10, $5/month",
            "three point five million dollars, ten thousand dollars, five to ten dollars, five dollars per month.",
        ),
        ("50% 0.5 %", "fifty percent zero point five percent."),
        (
            "10:30 10:05 10:00 5pm 5:30 a.m. 14:30",
            "ten thirty ten oh five ten o'clock five P M five thirty A M fourteen thirty.",
        ),
        ("9:00-17:00, 9-5pm", "nine o'clock to seventeen hundred, nine to five P M."),
        ("at 5 p.m. Then", "at five P M. Then."),
        (
            "2024-05-10, 5/6/2024, 24/12/2024",
            "May tenth, twenty twenty-four, May sixth, twenty twenty-four, December twenty-fourth, twenty twenty-four.",
        ),
        (
            "May 5, 2024 and Jan. 3rd and 4 July",
            "May fifth, twenty twenty-four and January third and the fourth of July.",
        ),
        (
            "1999, 2005, the 1990s, the '60s",
            "nineteen ninety-nine, two thousand five, the nineteen nineties, the sixties.",
        ),
        ("+1 (555) 123-4567", "plus one, five five five, one two three, four five six seven."),
        ("call 555-1234 or 911", "call five five five, one two three four or nine hundred eleven."),
        ("dial 911", "dial nine one one."),
        ("john.doe42@ex-am.com", "john dot doe forty-two at ex dash am dot com."),
        ("https://www.example.com/docs/a?x=1#y", "example dot com slash docs slash a."),
        ("example.org, main.py", "example dot org, main dot pie."),
        (
            "25°C -5 °F 90 km/h 16GB 1 kg 2 kg",
            "twenty-five degrees Celsius minus five degrees Fahrenheit ninety kilometers per hour sixteen gigabytes one kilogram two kilograms.",
        ),
        (
            "5'10\" 1/2 cup, 2 1/2, ¾, 24/7",
            "five foot ten one half cup, two and a half, three quarters, twenty-four seven.",
        ),
        ("2.0.1 v1.2", "two point zero point one version one point two."),
        ("Henry VIII, World War II, Chapter IV", "Henry the eighth, World War two, Chapter four."),
        ("I think V is a letter", "I think V is a letter."),
        ("HTTP FBI NASA TVs HMM IT", "H T T P F B I NASA T Vs HMM IT."),
        ("MP3 B2B COVID-19 X7K9-22", "M P three B two B COVID nineteen X seven K nine two two."),
        ("code 4821, #5, No. 7", "code four eight two one, number five, number seven."),
        ("Mr. Smith, Dr. Jones, St. Paul, 12 Main St.", "Mister Smith, Doctor Jones, Saint Paul, twelve Main Street."),
        ("e.g. this, i.e. that, etc.", "for example this, that is that, et cetera."),
        ("J. R. R. Tolkien", "J R R Tolkien."),
        (
            "AT&T, 2+2=4, x², C#, #news, 3 × 4",
            "A T and T, two plus two equals four, x squared, C sharp, hashtag news, three times four.",
        ),
        ("1" * 20, "one " * 19 + "one."),
        ("7" * 400, "seven " * 399 + "seven."),
    ],
)
def test_english_as_it_is_said(written: str, spoken: str) -> None:
    assert said(written) == spoken


def test_british_english_puts_the_day_first() -> None:
    assert said("5/6/2024", language="en-GB") == "June fifth, twenty twenty-four."
    assert said("101", language="en-GB") == "one hundred and one."


@pytest.mark.parametrize(
    ("written", "language", "spoken"),
    [
        ("Ich habe 42 Äpfel, 1.000,50 Euro um 10:30", "de", "Ich habe zweiundvierzig Äpfel, 1.000,50 Euro um 10:30."),
        ("J'ai 21 ans", "fr-FR", "J'ai vingt et un ans."),
        ("Mae gen i 5", "xx", "Mae gen i 5."),
        ("你好，我25岁", "en", "你好，我25岁。"),
        ("नमस्ते 25", "hi", "नमस्ते 25।"),
        ("Мне 25 лет.", "ru", "Мне 25 лет."),
    ],
)
def test_other_languages_change_little(written: str, language: str, spoken: str) -> None:
    assert said(written, language=language) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Hello，world。“Yes”", 'Hello, world. "Yes"'),
        ("well — yes -- no – ok", "well, yes, no, ok."),
        ("Wait… what", "Wait... what."),
        ("(a) [b] {c}", "a b c."),
        ("a  b , c ;d .", "a b, c;d."),
        ("Here it is:", "Here it is,"),
        ("Yes!", "Yes!"),
        ('"Yes"', '"Yes"'),
        ("one,", "one,"),
        ("word", "word."),
    ],
)
def test_punctuation_is_what_the_model_knows(written: str, spoken: str) -> None:
    assert said(written) == spoken


def test_lexicon_whole_words_longest_first() -> None:
    lexicon = Lexicon(
        {"SQL": "sequel", "k8s": "kubernetes", "new york": "the city", "New York Times": "the paper", "3PO": "C 3 P O"}
    )
    assert normalize("SQL and sql and MySQL", lexicon=lexicon).text == "sequel and sql and MySQL."
    assert normalize("K8s, k8s!", lexicon=lexicon).text == "kubernetes, kubernetes!"
    assert normalize("The New York Times of NEW YORK", lexicon=lexicon).text == "The the paper of the city."
    assert normalize("**SQL**", lexicon=lexicon).text == "sequel."
    assert normalize("a@SQL.com", lexicon=lexicon).text == "a at sequel dot com."
    assert normalize("my 3PO", lexicon=lexicon).text == "my C 3 P O."


def test_lexicon_refuses_what_cannot_be() -> None:
    with pytest.raises(SettingsError, match="empty"):
        Lexicon({" ": "x"})
    with pytest.raises(SettingsError, match="surrogate"):
        Lexicon({"a": "\ud83d"})


def test_lexicon_may_silence_a_word() -> None:
    assert normalize("um well", lexicon=Lexicon({"um": ""})).text == "well."


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\t",
        "😀",
        "👨‍👩‍👧 🎉",
        "**",
        "```x```",
        "---",
        "...",
        "?!",
        "[SPEAKER0]",
        "\ud83d",
        "<br>",
        "<|eot_id|>",
        "$",
        "()",
        "\u200b",
    ],
)
def test_nothing_to_say(text: str) -> None:
    assert not is_speakable(text)
    spoken = normalize(text)
    assert spoken.text == ""
    assert spoken.source_index(0) == len(text)


@pytest.mark.parametrize("text", ["a", "5", "[laugh]", "<SE>[Music]</SE>", "你", "😀 ok", "[SPEAKER0] a", "`x`"])
def test_something_to_say(text: str) -> None:
    assert is_speakable(text)
    assert normalize(text).text


def test_each_spoken_character_knows_where_it_was_written() -> None:
    written = "Pay **$32** to [Bob](http://x.y) 😀 now"
    spoken = normalize(written)
    assert spoken.text == "Pay thirty-two dollars to Bob now."

    def origin(word: str) -> str:
        at = spoken.text.index(word)
        start, end = spoken.source_span(at, at + len(word))
        return written[start:end]

    assert origin("Pay") == "Pay"
    assert origin("thirty-two") == "$32"
    assert origin("dollars") == "$32"
    assert origin("Bob") == "Bob"
    assert origin("now") == "now"
    assert spoken.source_index(len(spoken.text)) == len(written)
    with pytest.raises(IndexError, match="no index 99"):
        spoken.source_index(99)


TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *"aAbIVX 019\n.,!?;:'\"()[]<>*_`~#-—…。，？।|/@&=+$€%°^\\{}",
                "�",
                "�",
                "́",
                "\u200d",
                "😀",
                "你",
                "```",
                "½",
                "²",
                "Mr. ",
                "St. ",
                "e.g. ",
                "U.S. ",
                "5 p.m. ",
                "10:30",
                "May 5",
                "1/2",
                "2024-05-10",
                "3.14",
                "$1.50",
                "555-1234",
                "10 km",
                "SQL",
                "1990s",
                "[laugh]",
                "[SPEAKER1]",
                "[a](b)",
                "<b>",
                "<|eot_id|>",
                "https://a.com/b ",
                "a@b.com",
                "&amp;",
                "\n- ",
                "| a | b |\n",
                "&lt;",
                "\ue001",
            ]
        ),
        st.characters(),
    ),
    max_size=40,
).map("".join)
LEXICON = Lexicon({"SQL": "sequel", "a": "ay", "may 5": "the day"})


@settings(max_examples=300, deadline=None)
@given(text=TEXT, lexicon=st.sampled_from([None, LEXICON]), language=st.sampled_from(["en", "en-GB", "de", "zz"]))
def test_any_text_gives_clean_speech_and_a_way_back(text: str, lexicon: Lexicon | None, language: str) -> None:
    spoken = normalize(text, lexicon=lexicon, language=language)
    assert (spoken.text != "") == is_speakable(text) or lexicon is not None
    assert not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufeff\u200b]", spoken.text)
    assert not re.search(r"<\|\w+\|>", spoken.text)
    assert spoken.text == spoken.text.strip()
    assert "  " not in spoken.text
    spoken.text.encode()
    assert len(spoken.starts) == len(spoken.ends) == len(spoken.text)
    assert list(spoken.starts) == sorted(spoken.starts)
    assert list(spoken.ends) == sorted(spoken.ends)
    assert all(0 <= a <= b <= len(text) for a, b in zip(spoken.starts, spoken.ends, strict=True))
    if spoken.text and language == "en":
        assert spoken.text[-1] in ".!?,;\"'>。！？；，、।॥؟۔،؛፧።…"


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_what_is_cut_is_still_said_cleanly(text: str) -> None:
    chunker = Chunker()
    for chunk in [found for char in text for found in chunker.feed(char)] + chunker.flush():
        assert "```" not in normalize(chunk.text).text
        assert "](" not in normalize(chunk.text).text or "](" not in text


HOSTILE = """( * [ a. 1, <a ` [a]( ! _a _ " ~ ~~a [1 e 1 1. 1: 1/ $1 $ a@ @ # <!-- &a \\ | - -- 1- +1 ' % x 1x A A1 A- 1A- <| <|a|> a-
a.b a.com/ .com www. v1. ： ， 你 ;: 555- ½ 1½ ² / a/ <SE>[ [SPEAKER1] [laugh] &amp; 1st 1990s 1-m U. U.S ~1 1^ = 1, 1) e\u0301""".split()


@pytest.mark.parametrize(
    "piece",
    [
        *HOSTILE,
        "\n",
        ". ",
        "- ",
        " ",
        "\t",
        "J. ",
        "Mr. ",
        "May 1",
        "No. ",
        "1 ",
        "(555) ",
        "| ",
        "# ",
        "\n- ",
        "1 - ",
        "call 1",
    ],
)
def test_time_is_linear_for_hostile_text(piece: str) -> None:
    def seconds(n: int) -> float:
        text = (piece * n)[:n]
        begun = time.process_time()
        normalize(text)
        return time.process_time() - begun

    seconds(100)
    small, large = seconds(1_000), seconds(8_000)
    assert large < 20 * small + 0.1
