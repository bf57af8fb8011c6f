"""Makes texts from files fit for a terminal, in one line."""

_ELLIPSIS = " ... "


def one_line(text: str, *, limit: int = 2000) -> str:
    r"""Escape what is not printable, and leave out the middle of what is too long.

    Control characters and escape sequences could rewrite what the terminal shows, line ends could
    forge further messages, and surrogates cannot be encoded.

    Args:
        text: Any text.
        limit: Most characters to return, at least 20.

    >>> print(one_line("a\x1b[2Jb\n\u202ec"))
    a\x1b[2Jb\n\u202ec
    >>> one_line("x" * 30 + "y" * 30, limit=25)
    'xxxxxxxxxx ... yyyyyyyyyy'
    """
    head, tail = text[:limit], text[limit:][-limit:]
    shown = "".join(
        character if character.isprintable() else _escape(character) for character in head + tail
    )
    if len(shown) <= limit:
        return shown
    half = (limit - len(_ELLIPSIS)) // 2
    return shown[:half] + _ELLIPSIS + shown[-half:]


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
