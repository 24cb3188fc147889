"""Long texts: where they are cut, and how many frames a text may take."""

import random
from itertools import accumulate

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_tts_ov import RequestError, text
from qwen3_tts_ov.boundaries import graphemes


@pytest.mark.parametrize(
    ("whole", "pieces"),
    [
        ("One is here. Two is here! Three?", ["One is here.", "Two is here!", "Three?"]),
        ('He said "It is done." Then he left.', ['He said "It is done."', "Then he left."]),
        ('She came! "Really?" he asked.', ["She came!", '"Really?" he asked.']),
        ("Meet Dr. Wu at 3.14 p.m. today. Then J. S. Bach.", ["Meet Dr. Wu at 3.14 p.m. today.", "Then J. S. Bach."]),
        ("今天天气很好。我们去公园吧！好不好？", ["今天天气很好。", "我们去公园吧！", "好不好？"]),
        ("彼は「行こう。」と言った。彼女は笑った。", ["彼は「行こう。」と言った。", "彼女は笑った。"]),
        ("Привет всем. Как дела? Хорошо.", ["Привет всем.", "Как дела?", "Хорошо."]),
        ("नमस्ते दुनिया। आप कैसे हैं।", ["नमस्ते दुनिया।", "आप कैसे हैं।"]),
        ("مرحبا بالعالم؟ كيف حالك", ["مرحبا بالعالم؟", "كيف حالك"]),
        ("A heading\nA paragraph here", ["A heading", "A paragraph here"]),
        (
            "A line that was wrapped at the width of a terminal\nSo it goes on.",
            ["A line that was wrapped at the width of a terminal\nSo it goes on."],
        ),
        ("Wait for it... ... Now it comes.", ["Wait for it... ...", "Now it comes."]),
        ("Wait... what? Yes…  Fine.", ["Wait... what?", "Yes…", "Fine."]),
        ("1. First item. 2. Second item.", ["1. First item.", "2. Second item."]),
        (
            "It costs 50. Then we left at 10.30 a.m. on 3.4.2020. Good.",
            ["It costs 50.", "Then we left at 10.30 a.m. on 3.4.2020.", "Good."],
        ),
        (
            "Am 4. Oktober und im 19. Jahrhundert war es so. Er wurde 3. Danach schlief er.",
            ["Am 4. Oktober und im 19. Jahrhundert war es so.", "Er wurde 3.", "Danach schlief er."],
        ),
        (
            "Ludwig XIV. war da. Das ist z. B. die Fa. Müller, d. h. Nr. 5. „Gut.“ »Ja.« Ende.",
            ["Ludwig XIV. war da.", "Das ist z. B. die Fa. Müller, d. h. Nr. 5. „Gut.“", "»Ja.«", "Ende."],
        ),
        (
            "M. Dupont habite av. Foch. « Oui. » Il partit. Quoi ? Rien. J.-P. Sartre vint.",
            ["M. Dupont habite av. Foch.", "« Oui. »", "Il partit.", "Quoi ?", "Rien.", "J.-P. Sartre vint."],
        ),
        (
            "El Sr. García vive en EE. UU. desde 1990. Ud. es el n.º 5, p. ej. ¿Qué tal? Bien.",
            ["El Sr. García vive en EE. UU. desde 1990.", "Ud. es el n.º 5, p. ej. ¿Qué tal?", "Bien."],
        ),
        (
            "Il Sig. Rossi e la Dott.ssa Bianchi, art. 5, S. Maria. Fine.",
            ["Il Sig. Rossi e la Dott.ssa Bianchi, art. 5, S. Maria.", "Fine."],
        ),
        (
            "O Sr. Silva mora na Av. Paulista, pág. 3, com D. Pedro II. Fim.",
            ["O Sr. Silva mora na Av. Paulista, pág. 3, com D. Pedro II. Fim."],
        ),
        (
            "А. С. Пушкин жил на ул. Ленина, д. 5, т. е. там, 5 тыс. руб. стоит. Конец.",
            ["А. С. Пушкин жил на ул. Ленина, д. 5, т. е. там, 5 тыс. руб. стоит.", "Конец."],
        ),
        ("2020. 5. 3.에 왔다. 좋다! 안녕하세요.", ["2020. 5. 3.에 왔다.", "좋다!", "안녕하세요."]),
        (
            "他说：“走吧！”然后走了……就这样。真的吗?我不信。价格是1,234.5元。",
            ["他说：“走吧！”然后走了……就这样。", "真的吗?", "我不信。", "价格是1,234.5元。"],
        ),
    ],
)
def test_sentences_of_every_script_end_where_readers_pause(whole, pieces):
    assert [sentence.strip() for sentence in text.sentences(whole)] == pieces


def cut(whole: str, limit: float) -> list[str]:
    return [piece.text for piece in text.split(whole, limit)]


def test_a_short_text_is_unchanged():
    assert text.split("  Two lines.\n\nOne piece.  ", 30) == [("  Two lines.\n\nOne piece.  ", 0)]


def test_sentences_are_packed_into_pieces_of_even_length():
    assert {piece.count(".") for piece in cut("This is one sentence. " * 40, 10)} == {5, 6}


def test_a_sentence_over_the_limit_is_cut_at_clauses_then_words_then_anywhere():
    assert cut("first part here, second part here, third part", 1.9) == [  # two pieces would need a cut in a clause
        "first part here, ",
        "second part here, ",
        "third part",
    ]
    assert cut("one two three four", 0.9) == ["one two ", "three four"]
    assert {len(piece) for piece in cut("天" * 50, 2)} <= {6, 7}


def test_the_pause_after_a_piece_is_that_of_what_was_cut():
    assert [pause for _, pause in text.split("One is here. Two is here.", 1.5)] == [0.25, 0]
    assert [pause for _, pause in text.split("one is here, two is here", 1.5)] == [0.12, 0]
    assert [pause for _, pause in text.split("one is here two is here", 1.0)] == [0, 0]


@pytest.mark.parametrize(
    ("whole", "last"),
    [
        ("word " * 133 + "word. Yes.", "word. Yes."),  # 133 words without a mark
        ("我们今天去公园散步" * 12, "散步"),  # 108 characters without a mark
        ("A sentence that has no clause but so many words " * 7 + "ends. Yes.", "Yes."),
    ],
)
def test_no_rest_is_left_over(whole, last):
    pieces = cut(whole, 30)
    assert pieces[-1].endswith(last)
    lengths = [text.seconds(piece) for piece in pieces]
    assert min(lengths) > 0.6 * max(lengths)


def test_no_sentence_that_opens_with_a_date_is_cut_between_its_day_and_month():
    months = ["Januar", "März", "April", "Mai", "Oktober", "Dezember"]
    for length in range(3, 20):
        opened = (f"Am {1 + n % 31}. {months[n % 6]} {1990 + n} geschah {'viel ' * length}." for n in range(20))
        assert not any(
            regex.search(r"\d\.? $|(?:Januar|März|April|Mai|Oktober|Dezember) $", piece)
            for piece in cut(" ".join(opened), 30)[:-1]
        )


# What must stay whole in a text of each language: words, and what a reader takes for one thing.
WORDS = {
    "en": ["the", "house", "of", "my", "friend", "is", "old", "and", "Mary", "saw", "it", "yesterday"],
    "de": ["das", "Haus", "meines", "Freundes", "ist", "alt", "und", "Maria", "sah", "es", "gestern"],
    "fr": ["la", "maison", "de", "mon", "ami", "est", "vieille", "et", "Marie", "l'a", "vue", "hier"],
    "es": ["la", "casa", "de", "mi", "amigo", "es", "vieja", "y", "María", "la", "vio", "ayer"],
    "it": ["la", "casa", "del", "mio", "amico", "è", "vecchia", "e", "Maria", "l'ha", "vista", "ieri"],
    "pt": ["a", "casa", "do", "meu", "amigo", "é", "velha", "e", "Maria", "viu", "ontem"],
    "ru": ["дом", "моего", "друга", "старый", "и", "Мария", "видела", "его", "вчера"],
    "ko": ["내", "친구의", "집은", "오래되었고", "마리아는", "어제", "그것을", "보았다"],
    "zh": list("我朋友的房子很旧昨天玛丽看见了它"),
    "ja": list("友達の家は古くて昨日マリアがそれを見た"),
}
TOGETHER = {
    "en": [
        "Dr. Wu",
        "J. S. Bach",
        "No. 5",
        "October 4, 1990",
        "10:30 p.m.",
        "the 4th of July 1990",
        "Mr. Smith",
        "$ 2,407.50",
    ],
    "de": [
        "Am 4. Oktober 1990",
        "im 19. Jahrhundert",
        "z. B.",
        "Prof. Dr. Ott",
        "14.30 Uhr",
        "5 Mio. Euro",
        "Nr. 7",
        "1.234,56 €",
    ],
    "fr": ["M. Dupont", "le 1er janvier 1990", "14 h 30", "J.-P. Sartre", "p. ex.", "10 000 km", "n° 5", "av. J.-C."],
    "es": ["Sr. García", "EE. UU.", "4 de octubre de 1990", "n.º 5", "pág. 3", "1.234,5 €", "Dra. Pérez", "14:30 h"],
    "it": ["Sig. Rossi", "4 ottobre 1990", "art. 5", "Dott. Bianchi", "S. Maria", "ore 14.30", "1.234,5 €", "pag. 3"],
    "pt": [
        "Sr. Silva",
        "4 de outubro de 1990",
        "Av. Paulista",
        "pág. 3",
        "R$ 1.234,5",
        "Dra. Souza",
        "14h30",
        "D. Pedro",
    ],
    "ru": [
        "А. С. Пушкин",
        "4 октября 1990 г.",
        "ул. Ленина",
        "т. е.",
        "5 тыс. руб.",
        "14:30",
        "проф. Иванов",
        "1 234,5 км",
    ],
    "ko": ["2020. 5. 3.", "3.14", "14:30", "Dr. Kim", "1,234원"],
    "zh": ["1,234.5元", "14：30", "3.14", "iPhone"],
    "ja": ["1,234円", "14：30", "3.14", "iPhone"],
}
ANYWHERE = [
    "https://example.com/a.b?c=d,e;f#g",
    "me@example.com",
    "3.14",
    "1,234.5",
    "👨‍👩‍👧‍👦",
    "🇩🇪",
    "e\u0301",
    "v2.0.1",
    "10:30",
]
MARKS = {"zh": ["，", "。", "！", "……", "；"], "ja": ["、", "。", "！", "……"]}


def written(seed: int) -> list[str]:
    """A text in one of ten languages as its units: words and marks, and what must stay whole."""
    chance = random.Random(seed)
    language = sorted(WORDS)[seed % len(WORDS)]
    joint, marks = ("", MARKS[language]) if language in MARKS else (" ", [",", ".", "!", "?", "...", ";", '."', ":"])
    units, plain = [], False
    for _ in range(chance.randrange(80, 240)):
        plain = not plain or chance.random() < 0.5  # two numbers side by side could be one
        word = chance.choice(WORDS[language] if plain else TOGETHER[language] + ANYWHERE)
        mark = chance.choice(marks) if chance.random() < 0.3 else ""
        units.append(f"{word}{'' if word.endswith('.') and mark[:1] == '.' else mark}{joint}")
    return units


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from([20.0, 30.0]))
def test_no_text_of_ten_languages_is_cut_inside_what_belongs_together(seed, limit):
    units = written(seed)
    whole = "".join(units)
    pieces = cut(whole, limit)
    assert "".join(pieces) == whole
    assert all(text.seconds(piece) <= limit + 1e-6 for piece in pieces)
    assert len(pieces) == 1 or min(map(text.seconds, pieces)) >= limit / 10
    assert set(accumulate(map(len, pieces))) <= set(accumulate(map(len, units)))


@settings(deadline=None)
@given(st.text(max_size=300), st.floats(1, 20))
def test_no_character_is_lost_and_every_piece_fits(whole, limit):
    pieces = cut(whole, limit)
    assert "".join(pieces) == whole
    # Punctuation that cannot be spoken alone stays with its neighbour, whatever the limit; so does a grapheme.
    for piece in pieces:
        assert text.seconds("".join(filter(str.isalnum, piece))) <= limit or not graphemes(piece.strip())


@given(
    st.lists(
        st.sampled_from(
            [
                "👨‍👩‍👧‍👦",
                "👍🏽",
                "🇩🇪",
                "e\u0301",
                "각",
                "क्षि",
                "1️⃣",
                "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            ]
        ),
        min_size=20,
        max_size=80,
    )
)
@settings(deadline=None)
def test_no_cut_is_inside_a_grapheme(shown):
    whole = "".join(shown)
    assert [one for piece in cut(whole, 4) for one in regex.findall(r"\X", piece)] == regex.findall(r"\X", whole)


@pytest.mark.parametrize("whole", ["A full stop. " * 5_000, "a" + "." * 50_000, "a" + "! " * 25_000, "天" * 25_000])
def test_a_huge_text_of_any_form_is_cut_without_loss(whole):
    assert "".join(cut(whole, 30)) == whole


@pytest.mark.parametrize(
    ("given", "spoken"),
    [
        ("con\u00adversation", "conversation"),
        ("\ufeffHello.", "Hello."),
        ("a\u200bb\u2060c\u200ed", "abcd"),
        ("be\u202ewa\u202cre", "beware"),
        ("tag\U000e0041\U000e0042ged", "tagged"),
        ("\x1b[31mred\x1b[0m\x00\x07", "red"),
        ("one\r\ntwo\u2028three\x0bfour\tfive", "one\ntwo\nthree\nfour\tfive"),
        ("10\u202f000\u00a0km", "10 000 km"),
        ("全角\u3000空白", "全角\u3000空白"),
        ("葛\U000e0100城 hi\ufe0f", "葛城 hi"),
        ("a\u200db 1\u200d2", "ab 12"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        (
            "👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 1\ufe0f\u20e3 ☎\ufe0e",
            "👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 1\ufe0f\u20e3 ☎\ufe0e",
        ),
        (
            "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        ),
    ],
)
def test_what_is_not_heard_is_dropped_unless_the_script_or_an_emoji_needs_it(given, spoken):
    assert text.clean(given) == spoken
    assert text.clean(spoken) == spoken


@pytest.mark.parametrize(
    ("spoken", "honest"),
    [
        ("Hi.", 0.5),
        ("The quick brown fox jumps over the lazy dog, and then it rests for a while in the sun.", 6),
        ("今天天气很好，我们去公园散步吧。", 4),
        ("Call 0049 30 901820 now.", 9),
        ("123456789", 8),
        ("안녕하세요, 만나서 반갑습니다.", 4),
    ],
)
def test_the_frame_budget_allows_slow_speech_but_is_finite(spoken, honest):
    budget = text.frame_budget(spoken, 12.5) / 12.5
    assert honest * 2 < budget < honest * 8 + 10


@pytest.mark.parametrize("nothing", ["", "   ", "\n", "...", "?!", "\u200b", "—"])
def test_a_text_without_anything_to_speak_is_refused(nothing):
    with pytest.raises(RequestError, match="nothing to speak"):
        text.check(nothing)


def test_half_a_surrogate_pair_is_refused_before_tokenization():
    with pytest.raises(RequestError, match="surrogate"):
        text.check("ok \ud83d")
