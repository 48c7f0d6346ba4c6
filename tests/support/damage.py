"""Files with damaged bytes, and the outcome of reading them."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file in which some bytes were changed, removed or added."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        # Formats keep what matters at their beginning and end.
        edge = st.integers(0, min(200, len(content)))
        at = draw(st.one_of(edge, edge.map(lambda i: len(content) - i), st.integers(0, len(content))))
        content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.one_of(st.just(None), st.integers(0, len(content))))])


def outcome(read, path, kind):
    """What `read` returns, or the error of this kind that it raises."""
    try:
        return read(path)
    except kind as error:
        return error
