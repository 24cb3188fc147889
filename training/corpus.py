"""Sentences for the teacher to speak: what WordNet gives as examples and definitions, and templates of everyday words.

Writes `corpus.json` to the work folder: {"train": [...], "held": [...]}. The held-out sentences are those that the
pipeline's score speaks; no text to train on has the same words. Speech of several sentences teaches the pauses between
them.
"""

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich import print

from pipeline.stage import CONF
from training.step import step, work

DATA = Path(__file__).parent / "data"
PLAIN = re.compile(r"[A-Za-z][A-Za-z ,.?!'\-:]*")
# Names of senses, abbreviations and half sentences, which WordNet's texts hold here and there.
ODD = re.compile(r"[A-Z]{2,}|\.\w|\. [a-z]|'s's|\b(sb|sth|etc|esp|cf)\b|\w{17}")


@step
def main(cfg: DictConfig) -> None:
    settings = cfg.corpus
    draw = random.Random(cfg.seed)
    held = list(OmegaConf.load(CONF / "score" / "default.yaml").texts.english)[: settings.held]
    examples, glosses = wordnet(Path(settings.wordnet))
    texts = [
        *pick(map(sentence, examples), 14, settings.longest, settings.examples, draw),
        *pick(map(sentence, glosses), 20, settings.longest, settings.glosses, draw),
        *templates(settings.templates, draw),
    ]
    known = set(map(words, held))
    texts = [text for text in dict.fromkeys(texts) if words(text) not in known]
    draw.shuffle(texts)
    short = [text for text in texts if len(text) <= settings.longest // 2]
    texts += [" ".join(draw.sample(short, draw.choice((2, 2, 3, 4)))) for _ in range(settings.joined)]
    draw.shuffle(texts)
    path = work(cfg) / "corpus.json"
    path.write_text(json.dumps({"train": texts, "held": held}))
    vocabulary = {word for text in texts for word in words(text).split()}
    print(f"{path}: {len(texts)} texts, {sum(map(len, texts))} characters, {len(vocabulary)} words")


def wordnet(folder: Path) -> tuple[list[str], list[str]]:
    """The example sentences and the definitions of WordNet's data files."""
    examples, glosses = [], []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("latin-1").splitlines():
            gloss = "" if line.startswith("  ") else line.partition("|")[2]
            examples += [re.split(r"- ?[A-Z]", quoted)[0] for quoted in re.findall(r'"([^"]+)"', gloss)]
            glosses += re.sub(r'"[^"]*"?', "", gloss).split(";")
    return examples, glosses


def sentence(text: str) -> str:
    """`text` with a capital and a full stop; empty where it is not a plain sentence."""
    text = re.sub(r"\(.*?\)", "", text.replace("`", "'").replace("--", ", ").replace(";", ","))
    text = re.sub(r" +([,.?!:])", r"\1", re.sub(r"\s+", " ", text)).strip(" ,'-:")
    if not PLAIN.fullmatch(text) or ODD.search(text):
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def pick(texts: Iterable[str], shortest: int, longest: int, count: int, draw: random.Random) -> list[str]:
    """At most `count` different texts of a length in characters."""
    texts = [text for text in dict.fromkeys(texts) if shortest <= len(text) <= longest]
    draw.shuffle(texts)
    return texts[:count]


def templates(count: int, draw: random.Random) -> list[str]:
    """Sentences from the templates; a tenth of them without the final stop, as people write to a machine."""
    kinds, forms = (block.splitlines() for block in (DATA / "templates.txt").read_text().split("\n\n"))
    choices = {kind: listed.split(", ") for kind, _, listed in (line.partition(": ") for line in kinds[1:])}

    def fill(kind: str) -> str:
        match kind:
            case "clock":
                return f"{draw.randint(1, 12)}:{draw.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02}"
            case "small" | "day":
                return str(draw.randint(2, 31 if kind == "day" else 99))
            case "big":
                return str(draw.choice((draw.randint(100, 999), 100 * draw.randint(1, 99), 1000 * draw.randint(1, 99))))
            case "year":
                return str(draw.randint(1850, 2030))
        return draw.choice(choices[kind])

    texts = []
    for _ in range(count):
        text = re.sub(r"\{(\w+)\}", lambda kind: fill(kind[1]), draw.choice(forms))
        text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
        text = text[0].upper() + text[1:]
        texts.append(text.rstrip(".") if draw.random() < 0.1 else text)
    return texts


def words(text: str) -> str:
    """What two texts have in common if they say the same."""
    return re.sub(r"[^a-z0-9 ]", "", text.lower())


if __name__ == "__main__":
    main()
