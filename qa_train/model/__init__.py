"""The model: assembled, loaded, made unpadded, hashed and frozen here.

What other packages use is offered here and imported on first use. `layers` and `encoders` are its parts, `stored`
reads model folders; `build` joins them, `flops` counts their work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qa_train.utils.deferred import deferred

if TYPE_CHECKING:
    from qa_train.model.build import (
        build_model,
        find_checkpoint,
        load_answering_model,
        load_model,
        load_model_config,
        load_model_tokenizer,
    )
    from qa_train.model.stored.manifest import fingerprint
    from qa_train.model.stored.weights import encoder_hash, freeze, load_weights, weights_digest
    from qa_train.model.tokenizers import load_tokenizer
    from qa_train.model.unpadded import UnpaddedQwen2AudioForConditionalGeneration, encoder_states

if not TYPE_CHECKING:
    __all__, __getattr__ = deferred(__name__, __file__)
