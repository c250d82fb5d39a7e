"""The audio front end: what becomes of samples on their way to audio tokens. Arithmetic alone, without torch.

Samples are cut into segments of at most 30 s, a segment becomes mel frames (one every ``hop`` samples), two
convolutions halve these to conv frames, and pooling halves them again to audio tokens. Data, model and planner all
count by this one object; a model with another front end brings another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

# A number, or a tensor or array of them.
Length = TypeVar("Length", int, Any)


@dataclass(frozen=True)
class FrontEnd:
    """Sizes are in samples unless noted. The mel bins are the encoder's (``num_mel_bins``): 80 or 128."""

    sample_rate: int = 16_000
    # Between two mel frames, and the window of one.
    hop: int = 160
    window: int = 400
    # Mel frames of a whole segment: the encoder has so many positions, and attends within them.
    segment_frames: int = 3000
    # The last segment of a long clip borrows from the one before it rather than be shorter than this:
    # fewer than 3 mel frames give no audio token at all.
    shortest_segment: int = 1600
    # Mel frames outside a segment that its convolutions read: the second reads one past the last kept frame, and so
    # does the first.
    tail_frames: int = 2

    @property
    def segment(self) -> int:
        """Samples of a whole segment."""
        return self.segment_frames * self.hop

    @property
    def shortest_clip(self) -> int:
        """Samples that give one audio token: below 3 mel frames the two halvings leave nothing."""
        return 2 * self.hop + 1

    @property
    def frames_per_second(self) -> int:
        """Mel frames of one second."""
        return self.sample_rate // self.hop

    @property
    def tokens_per_second(self) -> int:
        """Audio tokens of one second."""
        return self.frames_per_second // self.frames_per_token

    @property
    def frames_per_token(self) -> int:
        """Mel frames of one audio token."""
        return 4

    @property
    def token_s(self) -> float:
        """Seconds of one audio token."""
        return self.frames_per_token * self.hop / self.sample_rate

    @property
    def segment_tokens(self) -> int:
        """Audio tokens of a whole segment."""
        return self.tokens_of(self.segment_frames)

    def segments(self, num_samples: int) -> list[int]:
        """Lengths of the segments that cover a clip; they sum to ``num_samples``."""
        full, rest = divmod(num_samples, self.segment)
        lengths = [self.segment] * full + ([rest] if rest else [])
        if full and 0 < rest < self.shortest_segment:
            lengths[-2:] = [self.segment - self.shortest_segment, rest + self.shortest_segment]
        return lengths

    def frames(self, num_samples: Length) -> Length:
        """Real mel frames of a segment: every frame with its centre inside it, including the last partial hop.

        That is how many ``WhisperFeatureExtractor`` marks in its attention mask (every 160th sample of the mask).
        """
        return -(-num_samples // self.hop)

    def tail(self, num_frames: int) -> int:
        """Mel frames after the real ones that the convolutions look at: two, within a whole segment."""
        return min(self.tail_frames, self.segment_frames - num_frames)

    def conv_frames(self, num_frames: Length) -> Length:
        """Frames after the two convolutions, of ``num_frames`` real mel frames.

        As in ``Qwen2AudioEncoder._get_feat_extract_output_lengths`` of transformers.
        """
        return (num_frames - 1) // 2 + 1

    def tokens_of(self, num_frames: Length) -> Length:
        """Audio tokens (encoder output positions) of ``num_frames`` real mel frames of a segment."""
        return (self.conv_frames(num_frames) - 2) // 2 + 1

    def tokens(self, num_samples: Length) -> Length:
        """Audio tokens of a clip, over all its segments (`segments`)."""
        full, rest = num_samples // self.segment, num_samples % self.segment
        borrows = (full > 0) & (rest > 0) & (rest < self.shortest_segment)
        shortened, last = (self.segment - self.shortest_segment) * borrows, rest + self.shortest_segment * borrows
        tokens = (full - borrows) * self.segment_tokens
        for length in (shortened, last):
            tokens = tokens + self.tokens_of(self.frames(length))
        return tokens


# That of Qwen2-Audio, which is Whisper's with a pooling by two.
FRONT_END = FrontEnd()
