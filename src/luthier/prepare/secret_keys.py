"""Keys and secrets of machines in a text, by the prefixes that their issuers give them, or by their randomness.

Few texts hold a word of sixteen characters and more, so only such words are looked at closely. A long hexadecimal
number counts as a key: nobody can tell a digest from a secret. What is longer than any key (a picture) does not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
WORD = re.compile(r"(?<![A-Za-z0-9_+/.-])[A-Za-z0-9_+/.-]{16,}+={0,2}")
PREFIXES = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b",  # Amazon
    r"AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{28}",  # Google
    r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,}",  # GitHub, GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,}",  # Slack
    r"hooks\.slack\.com/services/T\w+/B\w+/\w+",
    r"sk-(?:proj|svcacct|admin|ant|or-v1)-[\w-]{20,}|sk-[A-Za-z0-9]{20,}",  # OpenAI, Anthropic, OpenRouter
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/]{24,}",  # Stripe
    r"SG\.[\w-]{22}\.[\w-]{43}|key-[0-9a-f]{32}\b|(?:AC|SK)[0-9a-f]{32}\b",  # SendGrid, Mailgun, Twilio
    r"npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,}|hf_[A-Za-z0-9]{30,}",  # registries and hubs
    r"do[opr]_v1_[0-9a-f]{64}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|dapi[0-9a-f]{32}",  # DigitalOcean, Shopify ...
    r"gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{30,}|hvs\.[\w-]{20,}",  # Groq, xAI, Replicate
    r"AA[\w-]{33}\b(?<=:AA.{33})",  # Telegram, after the bot's number
    r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?",  # a JSON web token
)
PREFIXED = re.compile(f"(?<![A-Za-z0-9])(?:{'|'.join(PREFIXES)})")
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
RANDOM = re.compile(r"[A-Za-z0-9_+/-]{32,200}={0,2}")
HEX_BITS, BASE64_BITS = 3.0, 4.4
"""Entropy of one character, by the characters of the word itself, above which it counts as drawn: words of a language
and names of a program stay below."""


def find(text: str) -> Iterator[tuple[int, int]]:
    """Where each key starts and ends, in no order; some may overlap."""
    if "PRIVATE KEY" in text:
        for match in BLOCK.finditer(text):
            yield match.span()
    for word in WORD.finditer(text):
        found = False
        for match in PREFIXED.finditer(text, *word.span()):
            found = True
            yield match.span()
        if not found:
            yield from _random(text, *word.span())


def _random(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    word = text[start:end].rstrip(".")
    if RANDOM.fullmatch(word) and not UUID.fullmatch(word) and is_random(word.rstrip("=")):
        yield start, start + len(word)


def is_random(word: str) -> bool:
    """Whether the word looks drawn: hexadecimal, or base64 with digits and both cases mixed."""
    bits = entropy(word)
    n_digits = sum(c.isdigit() for c in word)
    if re.fullmatch("[0-9a-f]+|[0-9A-F]+", word):
        return bits > HEX_BITS and 0 < n_digits < len(word)
    n_upper, n_lower = sum(c.isupper() for c in word), sum(c.islower() for c in word)
    parted = sum(c in "/-_" for c in word) > len(word) / 8  # as words are in a path
    return bits > BASE64_BITS and n_digits > 0 and min(n_upper, n_lower) >= 3 and not parted


def entropy(word: str) -> float:
    """Shannon entropy in bits a character (Shannon 1948)."""
    return -sum(n / len(word) * math.log2(n / len(word)) for n in Counter(word).values())
