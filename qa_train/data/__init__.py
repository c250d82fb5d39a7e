"""From shards on disk to batches of real tokens and real audio frames.

1. ``shards.index``: one scan of a tar shard writes a sidecar with offsets, lengths and metadata.
2. ``text.prompts``: a record and a task become a chat ``Sample``; the wording is a keyed draw.
3. ``text.template``: a sample becomes token ids and labels.
4. ``order.batch_plan``: a pure function that maps batch number k to its samples.
5. ``batches``: reads those samples by byte range and joins their mel frames without padding.

The packages, lowest layer first: ``audio``, ``order``, ``text`` and ``stores``; ``shards``; the files of this folder,
which join them; ``tools``. Never imported here: the model, training, evaluation, torch.cuda.

``stream`` hands the samples to code of others. It is imported on first use.
"""

from typing import TYPE_CHECKING

from qa_train.utils.deferred import deferred

if TYPE_CHECKING:
    from qa_train.data.streaming import stream

if not TYPE_CHECKING:
    __all__, __getattr__ = deferred(__name__, __file__)
