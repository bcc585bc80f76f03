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
        ("Press * then 2*3", "Press star then two times three."),
        ("snake_case", "snake case."),
        ("Use ``` to open code. Then ``` closes", "Use to open code. Then closes."),
        ("Look: ```py\nx = 1\n``` Done", "Look: Done."),
        ("<think>I greet.</think>Hello", "Hello."),
        ("Ok. <thinking>not closed", "Ok."),
        ("Use the <think> tag", "Use the tag."),
        ("<td>One</td><td>Two</td>", "One, Two."),
        ("in<b>cre</b>dible <i>x</i>y", "incredible xy."),
        ("Done.</answer>Next", "Done. Next."),
        (">$50 or >90% of it", "greater than fifty dollars or greater than ninety percent of it."),
        ("Press # to go on, or the # key, then *.", "Press pound to go on, or the pound key, then star."),
        (
            "Press **#** or `*`, dial *67, enter 1234#",
            "Press pound or star, dial star sixty-seven, enter one two three four pound.",
        ),
        ("Press *now* and **then**", "Press now and then."),
        ("milk, and\n* eggs", "milk, and. eggs."),
    ],
)
def test_markup_is_not_said(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("It is -5°C (23°F) now", "It is minus five degrees Celsius, twenty-three degrees Fahrenheit, now."),
        ("Your order (2 items) ships", "Your order, two items, ships."),
        ("It is €120/yr (excl. VAT).", "It is one hundred twenty euros per year, excluding VAT."),
        ("the (very) nice one, (then) this", "the very nice one, then this."),
        ("take option (a), (b) or (3)", "take option a, b or three."),
        (
            "Call us (toll-free) at (555) 123-4567",
            "Call us, toll-free, at five five five, one two three, four five six seven.",
        ),
        ("f(x) and the item(s) in box(es)", "f x and the items in boxes."),
        ("(Note: all of it.) Yes (all", "Note: all of it. Yes all."),
    ],
)
def test_an_aside_in_brackets_is_said_as_one(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Main Street, Apt. 4B, Ste 200", "Main Street, apartment four B, suite two hundred."),
        ("Rm. 204 on fl. 3", "room two hundred four on floor three."),
        ("The apt answer was apt 4 times", "The apt answer was apt four times."),
        ("a 401K, a 401(k) and a 403(b)", "a four oh one K, a four oh one K and a four oh three B."),
        ("401 keys in 529 boxes", "four hundred one keys in five hundred twenty-nine boxes."),
        ("10K runs and 10K users", "ten K runs and ten thousand users."),
        ("3B people and a 7B model", "three billion people and a seven B model."),
        ("closed Sun and holidays; the Sun and I", "closed Sunday and holidays; the Sun and I."),
        (
            "between 1e-5 and 3.2E+4.",
            "between one times ten to the minus five and three point two times ten to the four.",
        ),
        ("gate 3E2", "gate three E two."),
        ("(020) 7946 0018", "zero two zero, seven nine four six, zero zero one eight."),
        ("ISBN 0-306-40615-X", "I S B N zero, three zero six, four zero six one five, X."),
        (
            "123e4567-e89b-12d3-a456-426614174000",
            "one two three E four five six seven, E eight nine B, one two D three, A four five six, four two six six one four one seven four zero zero zero.",
        ),
        ("a pulse of 72 bpm", "a pulse of seventy-two beats per minute."),
        ("FYI, it ships by EOD with USPS", "F Y I, it ships by E O D with U S P S."),
        ("Super Bowl LVIII and XL, Chapter XC", "Super Bowl fifty-eight and X L, Chapter ninety."),
        ("James L. Brooks, Level L", "James L Brooks, Level L."),
    ],
)
def test_what_agents_abbreviate(written: str, spoken: str) -> None:
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


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("code: 482913", "code: four eight two nine one three."),
        ("one-time password is 482913", "one-time password is four eight two nine one three."),
        ("the code I have for you is 4821", "the code I have for you is four eight two one."),
        ("last four digits are 4242", "last four digits are four two four two."),
        (
            "your card ends with 4242, or ending 4243",
            "your card ends with four two four two, or ending four two four three.",
        ),
        ("order, number 4821", "order, number four eight two one."),
        ("order (#4821), #4822", "order four eight two one, number four eight two two."),
        ("extension 204, area code 212", "extension two zero four, area code two one two."),
        (
            "code is 482-913 or code 482 914",
            "code is four eight two, nine one three or code four eight two, nine one four.",
        ),
        (
            "account number 1234 5678 9012 3456",
            "account number one two three four, five six seven eight, nine zero one two, three four five six.",
        ),
        ("123-45-6789", "one two three, four five, six seven eight nine."),
        ("4111-1111-1111-1111", "four one one one, one one one one, one one one one, one one one one."),
        ("482913 is it", "four eight two nine one three is it."),
        ("1Z999AA10123456784", "one Z nine nine nine A A one zero one two three four five six seven eight four."),
        ("Your order #A1B2C3, order #abc", "Your order number A one B two C three, order number abc."),
        ("#INV-2024-0042 #WWDC24", "number I N V two zero two four zero zero four two hashtag W W D C twenty-four."),
        ("number #A1B2", "number A one B two."),
        ("+15551234567", "plus one, five five five, one two three, four five six seven."),
        ("call 555 1234 or call us at 911", "call five five five, one two three four or call us at nine one one."),
    ],
)
def test_codes_are_said_digit_by_digit(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("the number of users is 4500", "the number of users is four thousand five hundred."),
        ("the number is 250", "the number is two hundred fifty."),
        (
            "250000 and 961855 people",
            "two hundred fifty thousand and nine hundred sixty-one thousand eight hundred fifty-five people.",
        ),
        ("pages 482-913", "pages four hundred eighty-two to nine hundred thirteen."),
        ("the end 2024", "the end twenty twenty-four."),
        ("a record number, 4500 people", "a record number, four thousand five hundred people."),
        ("the # of users", "the number of users."),
        ("2x-3x faster (2x), 2x/week", "two times three times faster, two times, two times per week."),
        ("a 1/10 scale, 5 m 20 m", "a one tenth scale, five meters twenty meters."),
        ("9:30 AM - 2 bags", "nine thirty A M, two bags."),
        ("150250 km", "one hundred fifty thousand two hundred fifty kilometers."),
        (
            "UA 1234 departs; 1250 seats in 1850 camps of 1500 men",
            "UA twelve thirty-four departs; one thousand two hundred fifty seats in eighteen fifty camps of fifteen hundred men.",
        ),
    ],
)
def test_quantities_stay_quantities(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    ("before", "written", "spoken"),
    [
        ("Your verification code: ", "482913.", "four eight two nine one three."),
        ("Your Confirmation number is:\n\n", "**4821**", "four eight two one."),
        ("Here is your order: ", "4821.", "four eight two one."),
        ("Your code is ", "482 913.", "four eight two, nine one three."),
        ("Here is your order: ", "250 units", "two hundred fifty units."),
        ("It is in the year ", "4821.", "four thousand eight hundred twenty-one."),
        ("It is due on Monday, ", "5/6.", "May sixth."),
        ("Mix it all, ", "5/6.", "five sixths."),
        ("This is a mark. ", "``` it is", "it is."),
        ("This is it:\n", "``` it is", ""),
    ],
)
def test_what_stands_before_a_chunk_tells_what_its_beginning_means(before: str, written: str, spoken: str) -> None:
    assert normalize(written, before=before).text == spoken
    assert is_speakable(written, before=before) == bool(spoken)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("your appointment", "your appointment,"),
        ("at 5 p.m.", "at five P M,"),
        ("all of it,", "all of it,"),
        ("well...", "well..."),
        ("really!", "really!"),
        ("我们去公园", "我们去公园，"),
    ],
)
def test_a_chunk_whose_sentence_goes_on_gets_no_full_stop(written: str, spoken: str) -> None:
    assert normalize(written, goes_on=True).text == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("in the low 70s, upper 60s", "in the low seventies, upper sixties."),
        ("I love 80s pop, a 90s kid", "I love eighties pop, a nineties kid."),
        ("80s and 90s music", "eighties and nineties music."),
        ("Wait 30s, a 60s timeout", "Wait thirty seconds, a sixty seconds timeout."),
        ("could reach 100 degrees", "could reach one hundred degrees."),
        ("reach 500 people as we enter 2026", "reach five hundred people as we enter twenty twenty-six."),
        ("reach us at 911, enter 4821", "reach us at nine one one, enter four eight two one."),
        ("The total number is 1200", "The total number is twelve hundred."),
        ("Your order number is 4821", "Your order number is four eight two one."),
        ("Increase it by 1/8", "Increase it by one eighth."),
        ("rose by 3/8 percent, on 3/4 time", "rose by three eighths percent, on three quarters time."),
        ("from 1/16 to 1/2 inch", "from one sixteenth to one half inch."),
        ("They claim 5000 jobs", "They claim five thousand jobs."),
        ("year ending 2024, ends 2026", "year ending twenty twenty-four, ends twenty twenty-six."),
        ("card ending 4242", "card ending four two four two."),
        (
            "the 1890 census, 1776 soldiers",
            "the eighteen ninety census, one thousand seven hundred seventy-six soldiers.",
        ),
        ("It is 10x - really", "It is ten times, really."),
        ("3x - 4, 3x + y", "three x minus four, three x plus y."),
        (
            "The next step is 1/2 cup, the level is 3/4 full",
            "The next step is one half cup, the level is three quarters full.",
        ),
        ("A $100-an-hour job", "A one hundred dollar an hour job."),
    ],
)
def test_what_only_looks_like_a_code_a_date_or_a_rating(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("9:00 AM – 5:00 PM, 9AM-5PM", "nine A M to five P M, nine A M to five P M."),
        ("9 a.m.–5 p.m., 9 a.m. - 5 p.m.", "nine A M to five P M, nine A M to five P M."),
        ("open 9 - 5, 100 - 5", "open nine to five, one hundred minus five."),
        ("Jan–Mar, May - June", "January to March, May to June."),
        ("Jan. 1 - Jan. 15", "January first to January fifteenth."),
        ("June 2024–August 2025", "June twenty twenty-four to August twenty twenty-five."),
        ("May 1, 2024 - May 2, 2025", "May first, twenty twenty-four to May second, twenty twenty-five."),
        ("5/6/2024 - 5/7/2024", "May sixth, twenty twenty-four to May seventh, twenty twenty-four."),
        ("Monday – Friday. Monday", "Monday to Friday. Monday."),
        ("due 12/25, Friday 3/14", "due December twenty-fifth, Friday March fourteenth."),
        ("06/07–06/10, from 5/6 to 5/10", "June seventh to June tenth, from May sixth to May tenth."),
        ("check-in 5/6, on 1/2 and on 1/2 of it", "check-in May sixth, on January second and on one half of it."),
        ("for 1/3, on 9/11, for 24/7", "for one third, on nine eleven, for twenty-four seven."),
        ("for 9/10 users", "for nine out of ten users."),
        ("01-02-1990, 2024/05/10", "January second, nineteen ninety, May tenth, twenty twenty-four."),
        (
            "Rated 4/5, 9/10, step 2/5, 3/10 of it",
            "Rated four out of five, nine out of ten, step two out of five, three tenths of it.",
        ),
        (
            "4.8/5 and 4/5 stars, 120/80",
            "four point eight out of five and four out of five stars, one hundred twenty over eighty.",
        ),
        ("Mix ½ cup, ½ tsp, ½ km", "Mix one half cup, one half teaspoon, one half of a kilometer."),
        ("1-1/2 cups, 1 1/2 tsp", "one and a half cups, one and a half teaspoons."),
        ("at 3pm EST. Then, est. 1990", "at three P M E S T. Then, estimated nineteen ninety."),
        ("at 5 p.m. Tuesday, 8 a.m. PST", "at five P M Tuesday, eight A M P S T."),
        (
            "5th Ave. NW, MLK Jr. Blvd., Acme Inc. CEO",
            "fifth Avenue N W, M L K Junior Boulevard, Acme Incorporated C E O.",
        ),
        ("Acme Inc. They", "Acme Incorporated. They."),
        (
            "Mon, Wed, Fri; Tue & Thu; on Fri at 5",
            "Monday, Wednesday, Friday; Tuesday and Thursday; on Friday at five.",
        ),
        ("I sat in the sun, Sun", "I sat in the sun, Sun."),
    ],
)
def test_times_dates_and_shares(written: str, spoken: str) -> None:
    assert said(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        (
            "30s, in her 30s, the 80s, in their 20s and 30s",
            "thirty seconds, in her thirties, the eighties, in their twenties and thirties.",
        ),
        ("1h 30m, 2m30s, 30 m", "one hour thirty minutes, two minutes thirty seconds, thirty meters."),
        (
            "10m users, 100K users, 4K TV, V8, v2",
            "ten million users, one hundred thousand users, four K T V, V eight, version two.",
        ),
        (
            "2 tbsp, 5 mcg, 5 mg/mL, 5 KG, 100 mbps",
            "two tablespoons, five micrograms, five milligrams per milliliter, five kilograms, one hundred megabits per second.",
        ),
        ('a 12" pizza, 8" x 10"', "a twelve inch pizza, eight by ten inches."),
        ('he said "I have 12" and left', 'he said "I have twelve" and left.'),
        ("€1.234,56", "one thousand two hundred thirty-four euros and fifty-six cents."),
        (
            "A $5 bill, a $5.99 fee, $5 for it",
            "A five dollar bill, a five dollar and ninety-nine cent fee, five dollars for it.",
        ),
        (
            "$20-a-month, $1.2-million, ~$20",
            "twenty dollars a month, one point two million dollars, about twenty dollars.",
        ),
        ("3x − 4, 3x faster", "three x minus four, three times faster."),
        ("(2+3)*4", "two plus three times four."),
        ("$x^2$ costs $5 or $6", "x squared costs five dollars or six dollars."),
        ("10-3=7, GMT-5, 10-30", "ten minus three equals seven, G M T minus five, ten to thirty."),
        ("Mr. and Mrs. Smith, 42nd St., w/o", "Mister and Missus Smith, forty-second Street, without."),
        ("C#, .NET and .env", "C sharp, dot NET and dot env."),
        ("1) Billing (see 1) Then", "one, Billing, see one, Then."),
    ],
)
def test_units_prices_sums_and_words(written: str, spoken: str) -> None:
    assert said(written) == spoken


def test_british_english_puts_the_day_first() -> None:
    assert said("5/6/2024", language="en-GB") == "June fifth, twenty twenty-four."
    assert said("101", language="en-GB") == "one hundred and one."
    assert said("due 5/6", language="en-GB") == "due June fifth."


@pytest.mark.parametrize(
    ("written", "language", "spoken"),
    [
        ("Ich habe 42 Äpfel, 1.000,50 Euro um 10:30", "de", "Ich habe zweiundvierzig Äpfel, 1.000,50 Euro um 10:30."),
        ("J'ai 21 ans", "fr-FR", "J'ai vingt et un ans."),
        ("Am 3. Mai, der 3. Platz", "de", "Am 3. Mai, der 3. Platz."),
        ("030 1234567, PIN 4821, 1999 geboren", "de", "030 1234567, PIN 4821, 1999 geboren."),
        ("Ich bin 42.", "de", "Ich bin zweiundvierzig."),
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
                "<think>",
                "</think>",
                "9 AM – 5 PM",
                "Jan. 1 - ",
                "on 5/6",
                "code: 482 913",
                "#A1-2",
                "Press # ",
                "4.8/5",
                "Mon, Tue",
                '12" x 8"',
                "1h 30m",
                "$5-a-day",
                "$x^2$",
                "3x - 4",
                "1) A",
            ]
        ),
        st.characters(),
    ),
    max_size=40,
).map("".join)
LEXICON = Lexicon({"SQL": "sequel", "a": "ay", "may 5": "the day"})


@settings(max_examples=300, deadline=None)
@given(
    text=TEXT,
    lexicon=st.sampled_from([None, LEXICON]),
    language=st.sampled_from(["en", "en-GB", "de", "zz"]),
    before=st.sampled_from(["", "Your code: ", "due ", "x\n"]),
    goes_on=st.booleans(),
)
def test_any_text_gives_clean_speech_and_a_way_back(
    text: str, lexicon: Lexicon | None, language: str, before: str, goes_on: bool
) -> None:
    spoken = normalize(text, lexicon=lexicon, language=language, before=before, goes_on=goes_on)
    assert (spoken.text != "") == is_speakable(text, before=before) or lexicon is not None
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
        "code a ",
        "code is 1",
        "Mon, ",
        "press * ",
        "1 1/2 ",
        "on 1/2 ",
        "9 AM - ",
        "May - ",
        "(a) ",
        "(1) ",
        "$a ",
        "a $5 b ",
        '1" ',
        "20s and ",
        "#A1 ",
        "<think>",
        "5 p.m. Tue ",
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
