"""Walking the pages of an Ogg file: chained streams become parts, and a file that ends inside a page was cut.

Source: RFC 3533, sections 4 and 6.
"""

from __future__ import annotations

from qa_train.data.audio.structure.containers import Data, Part, damaged

_PAGE = b"OggS"
_HEADER = 27
_BEGINS = 2
# First bytes of a stream's first packet.
_CODECS = {
    b"\x01vorbis": "Vorbis",
    b"OpusHead": "Opus",
    b"\x7fFLAC": "FLAC",
    b"Speex   ": "Speex",
    b"\x80theora": "Theora video",
}


def ogg_parts(data: Data) -> tuple[tuple[Part, ...], str]:
    """The streams that follow one another, () for a single one; and the name of the first's codec.

    Raises BadAudio for a file that was cut, or has other bytes between its pages.
    """
    at, starts, beginning, codec = 0, [0], True, ""
    while at < len(data):
        head = data[at : at + _HEADER]
        if not _PAGE.startswith(head[:4]) and head[:4] != _PAGE:
            if (behind := data.find(_PAGE, at)) >= 0:
                raise damaged(f"Ogg {codec}", f"the {behind - at} bytes at byte {at} are not pages")
            break
        sizes = data[at + _HEADER : at + _HEADER + head[26]] if len(head) == _HEADER else b""
        stop = at + _HEADER + len(sizes) + sum(sizes)
        if len(head) < _HEADER or len(sizes) < head[26] or stop > len(data):
            raise damaged(f"Ogg {codec}", f"it ends inside a page, at byte {len(data)}")
        begins = bool(head[5] & _BEGINS)
        if begins:
            packet = data[stop - sum(sizes) : stop - sum(sizes) + 8]
            codec = codec or next((name for start, name in _CODECS.items() if packet.startswith(start)), "")
        if begins and not beginning:
            starts.append(at)
        beginning, at = begins, stop
    spans = zip(starts, [*starts[1:], at], strict=True)
    return tuple(Part((span,)) for span in spans) if len(starts) > 1 else (), codec
