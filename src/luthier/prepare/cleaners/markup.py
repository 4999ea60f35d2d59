"""Markup out of a text: `strip_html`."""

from __future__ import annotations

import html
import re

from luthier.prepare.cleaners.code import around_code

BOOLEAN = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled|formnovalidate|hidden|"
    "ismap|itemscope|loop|multiple|muted|noshade|novalidate|nowrap|open|readonly|required|reversed|selected"
)
VALUE = r"""(?:"[^"]*+"|'[^']*+'|[^\s"'<>]++)"""
ATTRIBUTES = rf"(?:\s++(?:(?:{BOOLEAN})(?![\w=])|[A-Za-z_:@][\w:.@-]*+\s*+=\s*+{VALUE}))*+\s*+/?"
"""What a word without a value means: `a<b and c>d` holds no tag."""
PARAGRAPH = (
    "address|article|aside|blockquote|body|center|dl|details|fieldset|figure|footer|form|h[1-6]|header|hr|html|main|nav|"
    "ol|p|pre|section|table|ul"
)
LINE = "br|caption|div|dd|dt|figcaption|legend|option|summary|tbody|tfoot|thead|title|tr"
INLINE = (
    "abbr|acronym|area|audio|a|base|bdi|bdo|big|button|b|canvas|cite|code|colgroup|col|data|del|dfn|embed|em|font|head|"
    "iframe|img|input|ins|i|kbd|label|link|map|mark|meta|meter|noscript|object|output|o:p|param|picture|progress|q|ruby|"
    "rt|rp|samp|script|select|small|source|span|strike|strong|style|sub|sup|svg|s|template|textarea|time|tt|u|var|video|"
    "wbr"
)
TAG = re.compile(rf"<(/?)(?:({PARAGRAPH})|({LINE})|(li)|(td|th)|(?:{INLINE})){ATTRIBUTES}>", re.IGNORECASE)
ANY = rf"</?(?:{PARAGRAPH}|{LINE}|li|td|th|{INLINE}){ATTRIBUTES}>"  # without groups: they break possessive repeats
RUN = re.compile(rf"(?<![ \t\n])[ \t\n]*+(?:{ANY}[ \t\n]*+)++", re.IGNORECASE)
"""Tags that stand together, with the white space around them."""
SILENT = re.compile(rf"<(script|style){ATTRIBUTES}>|<(!--)", re.IGNORECASE)
DECLARED = re.compile(r"<!doctype[^<>]*+>|<\?xml[^<>]*+>", re.IGNORECASE)
ROUNDS = 6
"""Tags within tags, `<<b>b>`, come apart one by one; more is somebody's attack, not somebody's text."""


def strip_html(text: str) -> str:
    """The text without HTML: tags of paragraphs and lines become line breaks, list items "- ", entities characters.

    Scripts, styles and comments go with their content. Only elements of HTML count as tags, so `<think>`,
    `List<String>` and `a < b` stay; code in Markdown stays as it is. `&lt;b&gt;` becomes the text `<b>`, which a second
    cleaning would take for a tag.
    """
    if "<" not in text and "&" not in text:
        return text
    plain = text
    for _ in range(ROUNDS):
        before, plain = plain, around_code(plain, _without_tags)
        if plain == before:
            break
    plain = around_code(plain, html.unescape)
    return plain if plain == text else plain.strip()


def _without_tags(text: str) -> str:
    if "<" not in text:
        return text
    return RUN.sub(_gap, DECLARED.sub("", _without_silent(text)))


def _without_silent(text: str) -> str:
    """Without scripts, styles and comments; one that does not end stays, as its tag alone says nothing."""
    parts, at = [], 0
    for match in SILENT.finditer(text):
        if match.start() < at:
            continue
        ends = "-->" if match[2] else f"</{match[1].lower()}"
        end = _find(text, ends, match.end())
        close = end + len(ends) if match[2] else text.find(">", end) + 1
        if end < 0 or close == 0:
            break
        parts.append(text[at : match.start()])
        at = close
    return "".join((*parts, text[at:]))


def _find(text: str, what: str, start: int) -> int:
    found = re.compile(re.escape(what), re.IGNORECASE).search(text, start)
    return found.start() if found else -1


def _gap(run: re.Match[str]) -> str:
    """What stands where tags stood: the widest gap that one of them makes."""
    tags = list(TAG.finditer(run[0]))
    if not any(tag.lastindex and tag.lastindex > 1 for tag in tags):
        return TAG.sub("", run[0])
    item = "- " if any(tag[4] and not tag[1] for tag in tags) else ""
    if any(tag[2] for tag in tags) and not item:
        return "\n\n"
    return "\n" + item if item or any(tag[3] or tag[4] for tag in tags) else " "
