"""Invisible characters, from Unicode's published tables instead of the library that the package uses."""

import sys
import unicodedata

# Default_Ignorable_Code_Point, in DerivedCoreProperties.txt.
IGNORABLE_RANGES = """00AD 034F 061C 115F-1160 17B4-17B5 180B-180F 200B-200F 202A-202E 2060-206F 3164 FE00-FE0F FEFF
FFA0 FFF0-FFF8 1BCA0-1BCA3 1D173-1D17A E0000-E0FFF"""


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first, 16), int(last or first, 16) + 1)


IGNORABLE = [chr(i) for part in IGNORABLE_RANGES.split() for i in _range(part)]
CONTROLS = [chr(i) for i in [*range(0x20), *range(0x7F, 0xA0)] if chr(i) not in "\t\n\r"]
FORMATS = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) == "Cf"]
HIDDEN = list(dict.fromkeys([*CONTROLS, *IGNORABLE, *FORMATS]))
OTHERS = ["\ud800", "\udfff", "\ue000", "\U0010fffd", "\uffff", "\u0378"]  # surrogates, private use, no character
