"""From what a run starts with to what its encoders take.

Checks and prepares; the networks that encode it are the pipeline's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from trellis2.settings import TextSettings
from trellis_core.errors import InputError
from trellis_core.image.preprocess import preprocess_picture
from trellis_core.io import pictures
from trellis_core.models.matting import background_remover
from trellis_core.models.tokenizer import Tokenizer, split
from trellis_core.runtime import Runtime
from trellis_core.sampling.condition import Condition

NAMED = 8  # words that a note lists before it counts the rest


def prepare_pictures(condition: Condition, runtime: Runtime) -> list[Image.Image]:
    """Read, cut out and crop every picture by itself: square RGB, object on black."""
    remover, chosen = background_remover(condition.background, runtime)
    return pictures.prepare_pictures(condition, preprocess_picture, remover, chosen, runtime)


def unlike_training(familiarity: Sequence[float], text: TextSettings | None) -> str:
    """What to say of pictures that are unlike all that the model was trained on; empty when none is."""
    strange = [number for number, each in enumerate(familiarity, start=1) if each < 1]
    if not strange:
        return ""
    if len(familiarity) == 1:
        which = "this picture is unlike the pictures"
    elif len(strange) == 1:
        which = f"picture {strange[0]} is unlike the pictures"
    else:
        which = f"pictures {', '.join(map(str, strange))} are unlike the pictures"
    values = ", ".join(f"{familiarity[number - 1]:.2f}" for number in strange)
    subjects = f"; it knows: {', '.join(_subjects(text))}" if text is not None and text.nouns else ""
    return (
        f"{which} this model was trained on (familiarity {values}, usual is 1 or more), so the result is a "
        f"guess{subjects}; for other things use a larger model"
    )


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the text encoder takes it."""

    text: str  # the words that it sees
    ids: tuple[int, ...]
    note: str = ""  # what was ignored


def read_prompt(prompt: str, tokenizer: Tokenizer, settings: TextSettings) -> Prompt:
    """Words to ids. The note names what the model does not know, has no room for (both are ignored), or reads
    otherwise (`grey` as `gray`, `chairs` as `chair`).

    Raises `InputError` for a prompt without words, or without an object that the model knows.
    """
    words = list(split(prompt))
    if not any(map(_is_word, words)):
        raise InputError("the prompt is empty", hint='say what to make, for example "a tall red chair"')
    forms = {word: known_form(word, settings) for word in words}
    known = [form for word in words if (form := forms[word])]
    encoded = tokenizer.encode_words(known, settings.max_length)
    if not _names_object(encoded.words, settings):
        raise InputError(
            f"the prompt names nothing that this model knows: {_listed(filter(_is_word, words))}",
            hint=f"it knows: {', '.join(_subjects(settings))}; for anything else use a bigger model",
        )
    notes = []
    replaced = [f"`{word}` as `{form}`" for word, form in forms.items() if form and form != word]
    if replaced:
        notes.append(f"the model reads {_some(replaced)}")
    unknown = [word for word, form in forms.items() if form is None and _is_word(word)]
    if unknown:
        notes.append(
            f"words this model does not know were ignored: {_listed(unknown)}; "
            f"it makes: {', '.join(_subjects(settings))}"
        )
    if encoded.dropped:
        room = settings.max_length - 2
        notes.append(f"the prompt was cut to its first {len(encoded.words)} words ({room} tokens fit)")
    return Prompt(" ".join(encoded.words), encoded.ids, "; ".join(notes))


def known_form(word: str, settings: TextSettings) -> str | None:
    """The word that the model was trained on: itself, what it is also called, or its singular or plural."""
    word = settings.aliases.get(word, word)
    if settings.words is None:
        return word
    forms = (word, f"{word}s", word.removesuffix("s"), word.removesuffix("es"))
    return next((form for form in forms if form in settings.words), None)


def _names_object(words: Sequence[str], settings: TextSettings) -> bool:
    if not settings.nouns:
        return any(map(_is_word, words))
    text = f" {' '.join(words)} "
    return any(f" {noun} " in text for noun in settings.nouns)


def _subjects(settings: TextSettings) -> Sequence[str]:
    return settings.nouns or [word for word in settings.words or () if _is_word(word)]


def _is_word(piece: str) -> bool:
    """Not merely punctuation."""
    return any(character.isalnum() for character in piece)


def _listed(words: Iterable[str]) -> str:
    return _some([f"`{word[:40]}`" for word in dict.fromkeys(words)])


def _some(texts: Sequence[str]) -> str:
    rest = len(texts) - NAMED
    return ", ".join(texts[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
