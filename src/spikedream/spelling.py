"""What was probably meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.5) -> list[str]:
    """At most `count` of the `known` names, best first: dotted ones that end in it, or else those whose spelling is alike, by at
    least `cutoff` of 1."""
    known = list(known)
    inner = [other for other in known if other.endswith(f".{name}")]
    return inner[:count] or difflib.get_close_matches(name, known, count, cutoff)


def suggestion(name: str, known: Iterable[str]) -> str:
    """For the end of a message: the nearest name, or all that are known."""
    known = [str(other) for other in known]
    near = nearest(name, known)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
