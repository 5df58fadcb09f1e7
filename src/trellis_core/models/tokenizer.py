"""Texts to token ids: the byte-pair encoding of CLIP (Sennrich et al., 2016; Radford et al., 2021).

Reads and writes CLIP's published files: `vocab.json` maps a piece to its id, `merges.txt` lists the pairs
that are joined, most frequent first. A piece that ends a word carries `</w>`. Needs no package.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from trellis_core.errors import ModelError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
CONTRACTIONS = re.compile(r"'(?:s|t|re|ve|m|ll|d)")
HEADER = "#version: 0.2"
CACHED_WORDS = 1 << 14
FALLBACK = string.ascii_lowercase + string.digits + "'-,.!?"  # single letters of a word vocabulary

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as ids: start, pieces, end, and ends up to the wanted length."""

    ids: tuple[int, ...]
    words: tuple[str, ...]  # those that went in, at least in part
    dropped: tuple[str, ...]  # those behind the last id


class Tokenizer:
    """Texts to ids. Raises `ModelError` when the vocabulary lacks the start or end token."""

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[Pair]) -> None:
        for token in (START, END):
            if token not in vocab:
                raise ModelError(f"the vocabulary has no `{token}`", hint="download the model again")
        self.vocab = dict(vocab)
        self.merges = tuple(merges)
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._ids_of = lru_cache(CACHED_WORDS)(self._word_ids)

    @property
    def size(self) -> int:
        """Rows that an embedding of these ids needs."""
        return max(self.vocab.values()) + 1

    def only(self, words: Iterable[str]) -> Tokenizer:
        """A tokenizer that knows these words and nothing else: their pieces keep no ids of their own."""
        pieces = [START, END, *(f"{word}{WORD_END}" for word in words)]
        return Tokenizer({piece: i for i, piece in enumerate(pieces)}, self.merges)

    @classmethod
    def read(cls, vocab: Path, merges: Path) -> Tokenizer:
        """Raises `ModelError` for files that are missing or damaged."""
        try:
            table = json.loads(vocab.read_text(encoding="utf-8"))
            lines = merges.read_text(encoding="utf-8").splitlines()
            if not all(isinstance(i, int) for i in table.values()):
                raise ValueError("ids are not integers")
            pairs = [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]
        except FileNotFoundError as error:
            raise ModelError(
                f"vocabulary file `{error.filename}` is missing", hint="download the model again"
            ) from None
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(
                f"the vocabulary `{vocab}` or `{merges}` is damaged: {error}",
                hint="download the model again",
            ) from error
        return cls(table, pairs)

    def write(self, vocab: Path, merges: Path) -> None:
        """Write both files as CLIP publishes them."""
        vocab.write_text(json.dumps(self.vocab, ensure_ascii=False) + "\n", encoding="utf-8")
        lines = [HEADER, *(" ".join(pair) for pair in self.merges)]
        merges.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def encode(self, text: str, length: int) -> Encoded:
        """`length` ids; words that find no room are left out, the last one perhaps in part."""
        return self.encode_words(list(split(text)), length)

    def encode_words(self, words: Sequence[str], length: int) -> Encoded:
        """The same for a text that is split already."""
        room = length - 2
        pieces: list[int] = []
        used = 0
        for word in words:
            if len(pieces) >= room:
                break
            pieces += self._ids_of(word)
            used += 1
        end = self.vocab[END]
        ids = [self.vocab[START], *pieces[:room], end]
        ids += [end] * (length - len(ids))
        return Encoded(tuple(ids), tuple(words[:used]), tuple(words[used:]))

    def pieces(self, word: str) -> list[str]:
        """One word as pieces: join the pair that was merged first in training until none is left."""
        parts = [BYTE_LETTERS[byte] for byte in word.encode()]
        parts[-1] += WORD_END
        while len(parts) > 1:
            first = min(pairwise(parts), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if first not in self._rank:
                break
            parts = list(_joined(parts, first))
        return parts

    def _word_ids(self, word: str) -> tuple[int, ...]:
        unknown = self.vocab[END]  # CLIP's unknown token
        return tuple(self.vocab.get(piece, unknown) for piece in self.pieces(word))


def split(text: str) -> Iterator[str]:
    """Lower-case words as CLIP cuts them: runs of letters, single digits, runs of signs, endings like 's."""
    text = unicodedata.normalize("NFC", text).lower()
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        contraction = CONTRACTIONS.match(text, start)
        stop = start + 1
        if contraction:
            stop = contraction.end()
        elif kind in "LS":
            while stop < len(text) and _kind(text[stop]) == kind:
                stop += 1
        if kind != " ":
            yield text[start:stop]
        start = stop


def word_vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[Pair]]:
    """Vocabulary and merges in which each of `words` is one token, and letters are there for the rest.

    Words are joined from their end: only the last pair of a word can ever match, because only its second
    piece carries `</w>`. So the merges of different words cannot get into each other's way.
    Raises `ValueError` for what `split` would cut in two.
    """
    pieces = [letter + end for end in ("", WORD_END) for letter in FALLBACK]
    merges: dict[Pair, None] = {}
    for word in dict.fromkeys(words):
        if list(split(word)) != [word]:
            raise ValueError(f"`{word}` is not one lower-case word")
        letters = [BYTE_LETTERS[byte] for byte in word.encode()]
        pieces += [*letters, letters[-1] + WORD_END]
        ending = letters[-1] + WORD_END
        for letter in reversed(letters[:-1]):
            merges[letter, ending] = None
            ending = letter + ending
            pieces.append(ending)
    return {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, START, END]))}, list(merges)


def _kind(character: str) -> str:
    """L letter, N number, S sign, or a space."""
    if character.isspace():
        return " "
    kind = unicodedata.category(character)[0]
    return kind if kind in "LN" else "S"


def _joined(parts: list[str], pair: Pair) -> Iterator[str]:
    """`parts` with every occurrence of the pair made one, from the left."""
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            yield "".join(pair)
            i += 2
        else:
            yield parts[i]
            i += 1


def _pair(line: str) -> Pair:
    first, second = line.split(" ")
    return first, second


def _byte_letters() -> dict[int, str]:
    """A visible letter for each byte: itself where Latin-1 prints it, else the next one from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return {**{b: chr(b) for b in visible}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


BYTE_LETTERS = _byte_letters()
