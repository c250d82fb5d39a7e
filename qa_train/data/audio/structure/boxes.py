"""Whether an MP4 or a Matroska file is there to its end, by the sizes of its outer boxes and elements.

Sources: ISO/IEC 14496-12, section 4.2; RFC 8794 (EBML), sections 4 to 6, and RFC 9559 (Matroska).
"""

from __future__ import annotations

from qa_train.data.audio.structure.containers import Data, damaged

_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def check_boxes(data: Data, name: str) -> None:
    """BadAudio when an outer box of an MP4 ends beyond the file."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0:
            return  # up to the end of the file
        if size < 8 or at + size > len(data):
            raise damaged(name, f"its part {data[at + 4 : at + 8]!r} of {size} bytes at byte {at} ends beyond the file")
        at += size


def check_elements(data: Data, name: str) -> None:
    """BadAudio when an element of a Matroska or WebM file ends beyond it.

    Segments and clusters of unknown size, as recorders write them, are checked by the elements inside.
    """
    at = 0
    while at < len(data):
        identity = data[at : at + _width(data, at)]
        place = at + len(identity)
        width = _width(data, place)
        body = place + width
        if not identity or not width or body > len(data):
            raise damaged(name, f"it ends inside an element, at byte {at}")
        mark = 1 << 7 * width
        size = int.from_bytes(data[place:body], "big") & mark - 1
        if size == mark - 1 and identity in (_SEGMENT, _CLUSTER):
            at = body
            continue
        if body + size > len(data):
            raise damaged(name, f"an element of {size} bytes at byte {at} ends beyond the file")
        at = body if identity == _SEGMENT else body + size


def _width(data: Data, at: int) -> int:
    """Bytes of the number of variable length at ``at``; 0 if it is missing."""
    return 9 - data[at].bit_length() if at < len(data) and data[at] else 0
