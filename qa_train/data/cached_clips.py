"""The clips that a run needs in its encoder cache, shard by shard.

What a shard holds is looked at only when the cache's manifest does not answer for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qa_train.data.audio.encoder_cache import share_of
from qa_train.data.clips import Clip
from qa_train.data.source import Source


@dataclass
class WantedShard:
    """A shard by the digest of its index, and what the sources take of it.

    ``seconds`` of audio at most; ``takers``: source, number of the shard in it, digest of its choice of records.
    """

    digest: str
    seconds: float = 0.0
    takers: list[tuple[Source, int, str]] = field(default_factory=list)

    @property
    def taken(self) -> set[str]:
        """Digests of all choices."""
        return {taken for _, _, taken in self.takers}

    def clips(self, share: int, of: int) -> list[Clip]:
        """The distinct clips of a share, by length (similar ones together)."""
        found = {
            clip.id: clip
            for source, shard, _ in self.takers
            for clip in source.clips_of_shard(shard)
            if share_of(clip.id, of) == share
        }
        return sorted(found.values(), key=lambda clip: (clip.num_samples, clip.id))


def wanted_shards(sources: Sequence[Source], here: Callable[[str], bool]) -> dict[str, WantedShard]:
    """The shards that the sources (those of weight 0 apart) hold samples of, by digest, as far as ``here`` holds for
    the digest. Reads no rows.
    """
    found: dict[str, WantedShard] = {}
    for source in (source for source in sources if source.weight > 0):
        table = source.table
        for shard, digest in enumerate(table.fingerprints):
            if source.shard_lengths[shard] and here(digest):
                wanted = found.setdefault(digest, WantedShard(digest))
                wanted.takers.append((source, shard, source.eligible.choice(shard)))
                # Different sources may take the same clips, and never more than all.
                wanted.seconds += float(table.matching_seconds[shard])
                wanted.seconds = min(wanted.seconds, float(table.seconds[shard]))
    return found
