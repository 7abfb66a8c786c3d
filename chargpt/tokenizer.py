"""Text to ids and back: by characters, or by the bytes of UTF-8."""

import itertools
import unicodedata
from collections.abc import Iterable

from chargpt.errors import UserError

BLANKS = {" ": "␣", "\n": "↵", "\t": "⇥"}


class UnknownCharacterError(UserError):
    """A text has characters that the vocabulary lacks; `characters` holds them, each once, in order of appearance."""

    def __init__(self, characters: str, hint: str = ""):
        self.characters = characters
        shown = ", ".join(f"{char!r} (U+{ord(char):04X})" for char in characters[:8])
        more = f" and {len(characters) - 8} more" if len(characters) > 8 else ""
        super().__init__(f"characters outside the vocabulary: {shown}{more}{hint}")


class CharTokenizer:
    """A vocabulary of single characters (Unicode code points); the id of a character is its place in the vocabulary.

    Args:
        characters: the vocabulary, each character once, in order of code point.
    """

    kind = "characters"
    unit = "character"  # what an id stands for

    def __init__(self, characters: str):
        if type(characters) is not str or not characters or any(a >= b for a, b in itertools.pairwise(characters)):
            raise UserError("a vocabulary is one or more distinct characters in order of code point")
        self.characters = characters
        self._ids = {char: i for i, char in enumerate(characters)}

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str, *, skip_unknown: bool = False) -> list[int]:
        """The ids of a text, one per character; raises UnknownCharacterError unless `skip_unknown`."""
        unknown = "".join(char for char in dict.fromkeys(text) if char not in self._ids)
        if unknown and not skip_unknown:
            hint = ""
            if not set(unicodedata.normalize("NFC", text)) - set(self.characters):
                hint = "; the training text writes an accented letter as one character (NFC)"
            elif not set(unicodedata.normalize("NFD", text)) - set(self.characters):
                hint = "; the training text writes an accent as a character after its letter (NFD)"
            raise UnknownCharacterError(unknown, hint)
        return [self._ids[char] for char in text if char in self._ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: any iterable of whole numbers, such as a 1-D tensor or array."""
        return "".join(self.characters[i] for i in ids)


class ByteTokenizer:
    """The bytes of UTF-8: 256 ids for any text, without a vocabulary to build.

    A character outside ASCII is two to four ids. Ids that are not valid UTF-8 are decoded as U+FFFD.
    """

    kind = "bytes"
    unit = "byte"
    characters = None
    vocab_size = 256

    def encode(self, text: str, *, skip_unknown: bool = False) -> list[int]:
        """The bytes of a text, including those of a command line that are not UTF-8."""
        return list(text.encode(errors="surrogateescape"))

    def decode(self, ids: Iterable[int]) -> str:
        """As `CharTokenizer.decode`."""
        return bytes(map(int, ids)).decode(errors="replace")


Tokenizer = CharTokenizer | ByteTokenizer
KINDS = (CharTokenizer.kind, ByteTokenizer.kind)


def tokenizer_of(characters: str | None) -> Tokenizer:
    """The tokenizer of a vocabulary; None stands for bytes."""
    return ByteTokenizer() if characters is None else CharTokenizer(characters)


def visible(character: str) -> str:
    """How pictures show a character: a symbol for a blank, an escape for others that cannot be printed."""
    if character in BLANKS:
        return BLANKS[character]
    return character if character.isprintable() else character.encode("unicode_escape").decode()
