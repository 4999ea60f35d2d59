"""Boilerplate out of mail: quoted replies, signatures, what programs append, legal footers and newsletters' last lines.

It goes by lines and by phrases that begin them, in English, German, French, Spanish, Italian and Dutch. What it does
not know stays.
"""

from __future__ import annotations

import re

from luthier.prepare.cleaners.code import around_code

MAX_SIGNATURE_LINES = 8
MAX_LINE = 60
"""Characters of a line that may belong to a signature: a longer one is a sentence."""
MAX_TOLD = 300
"""Characters of what tells who wrote a reply, and when."""
ROUNDS = 10
"""What one removal lays bare another may remove; a real mail needs two or three."""
ANY = re.IGNORECASE | re.MULTILINE
BEGAN = re.compile(r"[> \t]*(?:On|Am|Le|El|Il giorno|Il|Op)\s")
WROTE = re.compile(
    r"\b(?:wrote|schrieb|a écrit|escribió|ha scritto|schreef)\b[^\n]{0,80}:[ \t]*$",
    re.MULTILINE,
)
"""What ends the line that begins a quoted reply; programs break it in two."""
FORWARDED = re.compile(
    r"^[> \t]*-{2,}+[ \t]*(?:original message|forwarded message|ursprüngliche nachricht|weitergeleitete nachricht|"
    r"message d'origine|message transféré|mensaje original|messaggio originale|oorspronkelijk bericht)"
    r"[ \t]*-{2,}+[ \t]*$",
    ANY,
)
HEADER = re.compile(
    r"^\*?(?:From|Von|De|Da|Van)\*?:[^\n]+\n"
    r"(?:\*?(?:Sent|Date|To|Cc|Subject|Gesendet|Datum|An|Betreff|Envoyé|Date|À|Objet|Enviado|Para|Asunto|Inviato|"
    r"A|Oggetto|Verzonden|Aan|Onderwerp)\*?[ \t]?:[^\n]*(?:\n|\Z)){2,}",
    re.MULTILINE,
)
QUOTED = re.compile(r"(?:^[ \t]*>[^\n]*(?:\n|\Z)|^[ \t]*\n(?=[ \t]*>))+", re.MULTILINE)
DASHES = re.compile(r"^-- ?$", re.MULTILINE)
PROGRAM = re.compile(
    r"^[ \t]*(?:sent (?:from|via|with) (?:my |the )?[^\n]{2,60}|get outlook for (?:ios|android)\b[^\n]*|"
    r"von (?:meinem|unterwegs)[^\n]{0,40} gesendet\.?|gesendet (?:von|mit) [^\n]{2,50}|"
    r"envoyé (?:de|depuis) mon [^\n]{2,40}|"
    r"enviado desde (?:mi|el) [^\n]{2,40}|inviato da(?:l mio)? [^\n]{2,40}|verzonden vanaf mijn [^\n]{2,40}|"
    r"virus-free\.[^\n]*)[ \t]*$",
    ANY,
)
FOOTER = re.compile(
    r"^[ \t*_]*(?:(?:confidentiality|privacy|legal|important) (?:notice|disclaimer)\b|disclaimer:|"
    r"this (?:e-?mail|message|communication)(?: message)?,?(?: and| including| \(including)? ?[^\n]{0,60}"
    r"(?:is|are|may be|contains?|may contain)[^\n]{0,60}(?:confidential|privileged|intended)|"
    r"if you (?:are not|have received) (?:the intended|this)[^\n]{0,80}(?:recipient|error|mistake)|"
    r"please (?:consider|think of) the environment before printing|"
    r"you(?: are|'re) receiving this (?:e-?mail|message|newsletter)? ?because|"
    r"(?:click here )?to unsubscribe\b|unsubscribe(?: here| from [^\n]{1,60})?\s*[|.]?\s*$|"
    r"view this e-?mail in your browser|"
    r"diese (?:e-?mail|nachricht) (?:enthält|ist|kann)[^\n]{0,60}vertraulich|"
    r"ce (?:message|courriel|mail)[^\n]{0,60}confidentiel|este (?:mensaje|correo)[^\n]{0,80}confidencial|"
    r"(?:questo|il presente) messaggio[^\n]{0,80}riservat|dit (?:bericht|e-mailbericht)[^\n]{0,80}vertrouwelijk)"
    r"[^\n]*(?:\n[^\n]*\S[^\n]*)*",
    ANY,
)
CLOSING = re.compile(
    r"^[ \t]*(?:(?:(?:with |many )?(?:kind|best|warm|warmest) (?:regards|wishes)|(?:best )?regards|best|cheers|"
    r"sincerely|"
    r"yours (?:sincerely|faithfully|truly)|(?:many )?thanks(?: and regards| in advance)?|thank you|respectfully|"
    r"mit (?:freundlichen|besten|vielen|herzlichen) grüßen|(?:viele|beste|liebe|schöne|freundliche) grüße|mfg|"
    r"cordialement|bien (?:à vous|cordialement)|(?:un cordial |atentamente|saludos)(?: cordiales)?|saludos?|"
    r"cordiali saluti|distinti saluti|met vriendelijke groet(?:en)?|groet(?:jes)?))[,.!]?[ \t]*$",
    ANY,
)


def boilerplate(text: str, replies: bool = True, signatures: bool = True, footers: bool = True) -> str:
    """The text without quoted replies, signatures ("-- ", "Best regards" and a name, "Sent from my ...") and footers.

    A quote in Markdown (lines that start with ">") stays unless a line says who wrote it. Code stays.
    """
    text = text.replace("\r\n", "\n")

    def change(part: str) -> str:
        for _ in range(ROUNDS):
            before = part
            part = _without_replies(part) if replies else part
            part = FOOTER.sub("", part) if footers else part
            part = _without_signature(part) if signatures else part
            if part == before:
                break
            part = part.strip()
        return part

    return around_code(text, change)


def _without_replies(text: str) -> str:
    for whole in (FORWARDED, HEADER):  # what follows is all of another message
        if match := whole.search(text):
            text = text[: match.start()]
    parts, at = [], 0
    for match in WROTE.finditer(text):
        start = _beginning(text, match.start())
        if start is not None and start >= at:
            quoted = QUOTED.match(text, min(match.end() + 1, len(text)))
            parts.append(text[at:start])
            at = quoted.end() if quoted else match.end()
    return "\n\n".join(part.strip("\n") for part in (*parts, text[at:]) if part.strip()) if parts else text


def _beginning(text: str, at: int) -> int | None:
    """Where the line, or the two lines, that tell when who wrote begin."""
    line = text.rfind("\n", 0, at) + 1
    before = text.rfind("\n", 0, max(line - 1, 0)) + 1
    return next((start for start in (line, before) if at - start < MAX_TOLD and BEGAN.match(text, start)), None)


def _without_signature(text: str) -> str:
    text = PROGRAM.sub("", text)
    near = len(text) - MAX_SIGNATURE_LINES * (MAX_LINE + 1)
    for match in DASHES.finditer(text, max(near, 0)):
        if _few_lines(text[match.end() :]):
            text = text[: match.start()]
            break
    first = len(text) - len(text.lstrip())
    for closing in reversed(list(CLOSING.finditer(text))):
        if closing.start() <= first or not _few_lines(text[closing.end() :]):
            break
        text = text[: closing.start()]
    return text


def _few_lines(text: str) -> bool:
    """Whether this may be the rest of a signature."""
    lines = text.strip().split("\n", MAX_SIGNATURE_LINES)
    return len(lines) <= MAX_SIGNATURE_LINES and all(len(line) <= MAX_LINE for line in lines)
