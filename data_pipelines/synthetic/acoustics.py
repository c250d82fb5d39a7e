"""What happens to a recording on its way to the microphone: other sounds at a known level, and a room.

Waveforms are mono float32 [n] at 16 kHz. Every draw depends on the names it is given, never on an order.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.clips.picks import draw
from qa_train.data.audio.waveform import SAMPLE_RATE

# Share of the loudest 20 ms frames by which the level of a recording is judged: pauses do not count.
_ACTIVE_SHARE = 0.5
_FRAME = SAMPLE_RATE // 50
# Energy of a room's decay falls by 60 dB in rt60: its amplitude by exp(-6.91).
_DECAY = 6.9078


def generator(*names: object) -> np.random.Generator:
    """A random generator that depends on ``names`` alone."""
    return np.random.default_rng(int(draw(*names) * 2**53))


def level(wave: np.ndarray) -> float:
    """Root mean square of the louder half of the 20 ms frames; 0.0 for silence or nothing."""
    count = max(1, len(wave) // _FRAME)
    powers = np.sort([float(np.mean(np.square(frame))) for frame in np.array_split(wave, count) if len(frame)])
    loud = powers[int(len(powers) * (1 - _ACTIVE_SHARE)) :]
    return float(np.sqrt(loud.mean())) if len(loud) else 0.0


def at_snr(wave: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """``wave`` with ``other`` under it, whose level is ``snr_db`` below; ``other`` is repeated or cut to its length.

    Silence on either side leaves ``wave`` as it is. The sum is turned down where it would clip.
    """
    repeats = -(-len(wave) // max(1, len(other)))
    under = np.tile(other, repeats)[: len(wave)] if len(other) else np.zeros_like(wave)
    loud, quiet = level(wave), level(under)
    if not loud or not quiet:
        return wave
    return unclipped(wave + under * (loud / quiet * 10 ** (-snr_db / 20)))


def unclipped(wave: np.ndarray) -> np.ndarray:
    """The waveform, turned down if it goes beyond 1."""
    peak = float(np.abs(wave).max(initial=0.0))
    return np.asarray(wave / peak * 0.99 if peak > 0.99 else wave, dtype=np.float32)


def coloured_noise(num_samples: int, *names: object) -> np.ndarray:
    """Gaussian noise whose power falls with frequency ** -c, c between 0 (white) and 1 (pink), of level about 1."""
    rng = generator(*names, "noise")
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequency = np.maximum(np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE), 20.0)
    noise = np.fft.irfft(spectrum * frequency ** (-rng.random() / 2), num_samples)
    return np.asarray(noise / max(1e-9, float(noise.std())), dtype=np.float32)


def in_room(wave: np.ndarray, rt60_s: float, direct_db: float, *names: object) -> np.ndarray:
    """``wave`` in a room whose sound dies away by 60 dB in ``rt60_s``; the length stays.

    The room is the direct sound and an exponentially decaying noise tail (Polack's model) that begins after 2 to
    12 ms and has ``direct_db`` less energy than the direct sound.
    """
    rng = generator(*names, "room")
    gap = int(SAMPLE_RATE * rng.uniform(0.002, 0.012))
    tail = rng.standard_normal(int(SAMPLE_RATE * rt60_s)) * np.exp(
        -_DECAY * np.linspace(0, 1, int(SAMPLE_RATE * rt60_s))
    )
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.square(tail).sum())
    impulse = np.concatenate([[1.0], np.zeros(gap), tail])
    size = 1 << (len(wave) + len(impulse)).bit_length()
    heard = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(impulse, size), size)[: len(wave)]
    return unclipped(heard)
