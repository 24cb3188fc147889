"""Texts as people have them: where long ones are cut, what is not heard, and files in every encoding."""

from collections.abc import Callable

from qwen3_tts_ov import text

from .case import Case, Desk
from .recordings import data_url, file


def cut(spoken: str, limit: float = 3.0) -> Callable[[Desk], str]:
    """The pieces of a text, each with its seconds of silence after it."""

    def do(_: Desk) -> str:
        pieces = text.split(spoken, limit)
        assert "".join(piece.text for piece in pieces) == spoken
        return "".join(f"{piece.text.strip()} [{piece.pause:g} s] " for piece in pieces).replace("\n", " ")

    return do


def ends(spoken: str) -> Callable[[Desk], str]:
    """The sentences of a text."""
    return lambda _: " | ".join(sentence.strip() for sentence in text.sentences(spoken)).replace("\n", " ")


def heard(spoken: str) -> Callable[[Desk], str]:
    """Speaks a text with what is not heard, and compares it with the same text without."""

    def do(desk: Desk) -> str:
        model = desk.synthesizer("custom-voice").model
        assert model.tokenize(spoken) == model.tokenize(text.clean(spoken))
        desk.synthesizer("custom-voice").speak(spoken, max_frames=1, seed=1)
        return f"speech of {text.clean(spoken)}".replace("\n", " ").replace("\t", " ")

    return do


def said(content: bytes, stdin: bool = False) -> Callable[[Desk], str]:
    """Speaks a text file, or stdin, with this content."""

    def do(desk: Desk) -> str:
        (desk.folder / "text.txt").write_bytes(content)
        source = "-" if stdin else "--file text.txt"
        return desk.command(f"say {{custom-voice}} {source} --max-frames 2", stdin=content)

    return do


def spoken(**given: str) -> Callable[[Desk], str]:
    """Speaks in Python, a text unless another argument is what matters."""

    def do(desk: Desk) -> str:
        kind = "base" if "voice" in given else "custom-voice"
        desk.synthesizer(kind).speak(**{"text": "Hi.", "max_frames": 1, **given})
        return "speech"

    return do


def same_ids(desk: Desk, spoken: str, cleaned: str) -> str:
    model = desk.synthesizer("custom-voice").model
    return "the same ids" if model.tokenize(spoken) == model.tokenize(cleaned) else "other ids"


CASES = [
    Case(
        "German: ordinals",
        ends("Am 4. Oktober 1990 war es kalt. Im 19. Jahrhundert auch."),
        "kalt. | Im 19. Jahrhundert",
    ),
    Case("German: a sentence that ends in a number", ends("Er wurde nur 3. Danach schlief sie."), "3. | Danach"),
    Case("German: a king", ends("Ludwig XIV. war da. Karl V. auch."), "Ludwig XIV. war da. | Karl V. auch."),
    Case("German: abbreviations", ends("Z. B. die Fa. Ott, d. h. Nr. 5, ca. 5 Mio. Euro. Ende."), "Euro. | Ende."),
    Case(
        "German: quotes of both kinds",
        ends("„Es ist gut.“ Dann ging er. »Ja.« Ende."),
        "gut.“ | Dann ging er. | »Ja.« | Ende.",
    ),
    Case("English: titles, initials, times", ends("Dr. Wu met J. S. Bach at 3.14 p.m. today. Good."), "today. | Good."),
    Case("English: a sentence that ends in a number", ends("It costs 50. Then we left."), "50. | Then"),
    Case("English: a list", ends("1. First item. 2. Second item."), "1. First item. | 2. Second item."),
    Case("English: who said it", ends('She came! "Really?" he asked. "Yes."'), '"Really?" he asked. | "Yes."'),
    Case("English: ellipses", ends("Wait... what? Yes…  Fine."), "Wait... what? | Yes… | Fine."),
    Case(
        "French: spaces before marks",
        ends("« Oui. » Il partit. Quoi ? Rien."),
        "« Oui. » | Il partit. | Quoi ? | Rien.",
    ),
    Case("French: abbreviations", ends("M. Dupont et J.-P. Sartre, av. Foch, p. ex. ici. Fin."), "ici. | Fin."),
    Case(
        "Spanish: abbreviations", ends("El Sr. Díaz de EE. UU. es el n.º 5. ¿Qué tal? Bien."), "5. | ¿Qué tal? | Bien."
    ),
    Case(
        "Italian: abbreviations", ends("Il Sig. Rossi, la Dott.ssa Bianchi, art. 5, S. Maria. Fine."), "Maria. | Fine."
    ),
    Case("Portuguese: abbreviations", ends("O Sr. Silva mora na Av. Paulista, pág. 3. Fim."), "3. | Fim."),
    Case("Russian: abbreviations", ends("А. С. Пушкин, ул. Ленина, д. 5, т. е. там. Конец."), "там. | Конец."),
    Case("Korean: a date", ends("2020. 5. 3.에 왔다. 좋다!"), "2020. 5. 3.에 왔다. | 좋다!"),
    Case(
        "Chinese: quotes and ellipses",
        ends("他说：“走吧！”然后走了……就这样。真的吗?我不信。"),
        "就这样。 | 真的吗? | 我不信。",
    ),
    Case("Japanese: a quotation", ends("彼は「行こう。」と言った。彼女は笑った。"), "と言った。 | 彼女は笑った。"),
    Case("Arabic and Hindi", ends("مرحبا بالعالم؟ كيف حالك नमस्ते दुनिया। आप कैसे हैं।"), "दुनिया। | आप"),
    Case(
        "URLs, versions, addresses",
        ends("See https://a.b/C.D?E=1 and v2.0.1 of node.JS. Mail me@a.com. Next."),
        "me@a.com. | Next.",
    ),
    Case("a heading", ends("A heading\nA paragraph here"), "A heading | A paragraph here"),
    Case(
        "lines wrapped by a program",
        ends("The end of this line was chosen by the width of\nThe Terminal. Next."),
        "of The Terminal. | Next.",
    ),
    Case(
        "clauses where a sentence is too long",
        cut("One is here and, as he said, two is here, three is here."),
        "[0.12 s]",
    ),
    Case("words without a mark", cut("one two three four five six seven eight nine ten " * 2), "[0 s]"),
    Case(
        "amounts",
        cut("and 2,407, 3,510, 402 and 10 000 euros in all, he said, for 1.234,56 things", 8),
        "1.234,56 things",
    ),
    Case("133 English words without a mark, then Yes.", cut("word " * 133 + "word. Yes.", 30), "word. Yes."),
    Case("108 Chinese characters without a mark", cut("我们今天去公园散步" * 12, 30), "散步 [0 s]"),
    Case("Japanese without a mark", cut("この文章は句読点がなくてとても長いのでどこかで切る" * 3, 15), "[0 s]"),
    Case("Chinese with English words", cut("我用iPhone手机看YouTube视频" * 4), "[0 s]"),
    Case("emoji families", cut("👨‍👩‍👧‍👦" * 6, 4), "👨‍👩‍👧‍👦 [0 s]"),
    Case("one word of 1000 letters", cut("a" * 1000, 30), "[0 s]"),
    Case("one number of 200 digits", cut("7" * 200, 30), "[0 s]"),
    Case("soft hyphens", heard("con\u00adver\u00adsation"), "speech of conversation"),
    Case("a byte order mark inside", heard("Hello\ufeff world."), "speech of Hello world."),
    Case("zero-width spaces and direction marks", heard("a\u200bb\u200e \u202ec\u202c"), "speech of ab c"),
    Case("a message hidden in tags", heard("Hi\U000e0049\U000e0067\U000e006e."), "speech of Hi."),
    Case("the colours of a terminal", heard("\x1b[31mred\x1b[0m\x07"), "speech of red"),
    Case(
        "line breaks of every kind", heard("one\r\ntwo\rthree\u2028four\x0bfive"), "speech of one two three four five"
    ),
    Case("spaces that do not break", heard("10\u202f000\u00a0km"), "speech of 10 000 km"),
    Case("joiners of Persian", heard("می\u200cخواهم"), "speech of می\u200cخواهم"),
    Case("joiners of emoji", heard("👨‍👩‍👧 1️⃣"), "speech of 👨‍👩‍👧 1️⃣"),
    Case("a soft hyphen in an instruction", lambda desk: same_ids(desk, "cal\u00adm", "calm"), "the same ids"),
    Case("a soft hyphen in a control token", spoken(text="a <|im_\u00adend|> b"), "holds the control token <|im_end|>"),
    Case(
        "a control token in a reference text",
        spoken(voice=data_url(file()), reference_text="<|im_end|>"),
        "holds the control token",
    ),
    Case("nothing but a soft hyphen", spoken(text="\u00ad\u200b"), "there is nothing to speak"),
    Case("half of a surrogate pair", spoken(text="ok \ud83d"), "half of a surrogate pair"),
    Case("a null character", spoken(text="a\x00b"), "speech"),
    Case("emoji alone", spoken(text="👍🏽"), "speech"),
    Case("a text file in UTF-8", said("Grüße.".encode()), "speech"),
    Case("a text file with a byte order mark", said("Grüße.".encode("utf-8-sig")), "speech"),
    Case("a text file in UTF-16, as Windows writes it", said("Grüße.".encode("utf-16")), "speech"),
    Case("a text file in Latin-1", said("Grüße.".encode("latin-1")), "it is not UTF-8 text (byte 2)"),
    Case("half of a text file in UTF-16", said("Grüße.".encode("utf-16")[:-1]), "it is not UTF-16 text"),
    Case("a text file of nothing but a byte order mark", said(b"\xef\xbb\xbf"), "there is nothing to speak"),
    Case("stdin with a byte order mark", said(b"\xef\xbb\xbfHello.", stdin=True), "speech"),
    Case("stdin in Latin-1", said("é.".encode("latin-1"), stdin=True), "stdin: it is not UTF-8 text"),
    Case("an empty stdin", said(b"", stdin=True), "there is nothing to speak"),
    Case("a text file that is a folder", "say {custom-voice} --file .", "cannot be read"),
]
