"""Qwen2-Audio without padding inside: stock weights, names and layers, an ordinary interface.

Shapes: B rows of the batch, L their padded length, T real tokens of all rows, S audio segments,
M mel bins, P joined mel columns, A audio tokens of all segments, E encoder width, D LLM width.

The forward takes ``input_ids``, ``attention_mask`` and ``labels`` [B, L] and the audio in one of these forms:
 - ``input_features`` [M, P] with ``feature_lengths`` [S]: all segments joined on time (training);
 - ``audio_states`` [A, E]: stored outputs of the encoder (a frozen encoder's cache);
 - ``input_features`` [S, M, 3000] with ``feature_attention_mask`` [S, 3000]: the stock padded form;
 - nothing, when no row has audio.
``audio_gather`` [number of <|AUDIO|> tokens] is the index of the audio token at each of them, so that rows can share a
clip; without it the audio tokens are taken in order. ``on_cpu`` has copies of these of a batch that is on a GPU,
from which no value is read then.

The encoder and the LLM run on real frames and real tokens only; hidden states return as [B, L, D] with zeros
at padding. Every forward calls encoder and projector exactly once (on a dummy clip, multiplied by zero, when no
row has audio), because ZeRO-3 hangs when ranks run different modules. With ``audio_states``, even of zero rows,
the encoder is not called on any rank: a cached run passes them with every batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration
from transformers.cache_utils import Cache
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.qwen2_audio.modeling_qwen2_audio import (
    Qwen2AudioCausalLMOutputWithPast,
    Qwen2AudioModel,
    Qwen2AudioModelOutputWithPast,
    Qwen2AudioMultiModalProjector,
)
from transformers.utils.generic import can_return_tuple

from qa_train.model.encoders.kinds import kind_of
from qa_train.model.layers.attention import UNPADDED, choose_attention
from qa_train.model.layers.head import Head, supervised_loss
from qa_train.model.layers.lengths import mel_columns
from qa_train.model.layers.on_cpu import OnCpu, sent
from qa_train.model.layers.recompute import LayerwiseRecompute
from qa_train.model.layers.rows import Rows, joined_features

_DUMMY_FRAMES = 4
# transformers 5.24 gave the cache another name, in arguments and in outputs.
_CACHE = "cache" if "cache" in {field.name for field in fields(Qwen2AudioModelOutputWithPast)} else "past_key_values"


@dataclass(frozen=True)
class _Audio:
    values: torch.Tensor  # [A, D]
    dummy: bool


@dataclass
class UnpaddedOutput(Qwen2AudioCausalLMOutputWithPast):
    """The stock output, and on request the cross-entropy of each row, summed over its supervised tokens [B], no
    gradient."""

    row_losses: torch.Tensor | None = None


class _StockName:
    """Saved under the stock class's name, which every other tool knows."""

    def save_pretrained(self, save_directory: Any, *args: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in the stock class, and under its name."""
        super().save_pretrained(save_directory, *args, is_main_process=is_main_process, **kwargs)  # type: ignore[misc]
        if is_main_process:
            config: Any = self.config  # type: ignore[attr-defined]
            config.architectures = [type(self).__name__.removeprefix("Unpadded")]
            config.save_pretrained(save_directory)


class UnpaddedQwen2AudioModel(_StockName, Qwen2AudioModel):
    """Encoder, projector and LLM without head (the stock ``Qwen2AudioModel`` on real frames and tokens).

    neftune_noise_alpha: greatest noise on the embeddings of text in training, times sqrt(tokens of the document x D)
    (NEFTune, arXiv 2310.05914); None: none.
    """

    neftune_noise_alpha: float | None = None

    def __init__(self, config: Qwen2AudioConfig) -> None:
        choose_attention(config)
        super(Qwen2AudioModel, self).__init__(config)
        self.audio_tower = kind_of(config.audio_config).network._from_config(config.audio_config)
        self.multi_modal_projector = Qwen2AudioMultiModalProjector(config)
        text: Any = config.text_config
        self.vocab_size = text.vocab_size
        self.language_model = AutoModel.from_config(text)
        self.pad_token_id = -1 if text.pad_token_id is None else text.pad_token_id
        self._padding_side = "left"
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        feature_lengths: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_gather: torch.Tensor | None = None,
        on_cpu: OnCpu | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Qwen2AudioModelOutputWithPast:
        """The inputs of the module docstring -> last_hidden_state [B, L, D].

        With a cache (generation), a 4-D mask or another attention than ``UNPADDED`` the LLM runs on the padded batch
        as in the stock model; the audio is encoded unpadded all the same. ``use_cache=None`` means no cache.
        ``past_key_values`` and ``cache`` are the same: the names before transformers 5.24 and since.
        """
        cache = past_key_values if cache is None else cache
        cached = bool(use_cache) or cache is not None
        own = self.language_model.config._attn_implementation == UNPADDED
        unpadded = own and not cached and (attention_mask is None or attention_mask.ndim == 2)
        decoding = cache is not None and cache.get_seq_length() > 0
        ids = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
        assert ids is not None, "one of input_ids and inputs_embeds is needed"
        seen = on_cpu or OnCpu(ids, attention_mask, feature_lengths=feature_lengths)
        rows = Rows.of((ids.shape[0], ids.shape[1]), seen.attention_mask, ids.device) if unpadded else None

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(ids.flatten() if rows is None else rows.drop_padding(ids))
            # Not for a reference that is this model without its adapters.
            if self.training and torch.is_grad_enabled() and self.neftune_noise_alpha and rows is not None:
                inputs_embeds = inputs_embeds + rows.noise(inputs_embeds) * self.neftune_noise_alpha
            if not decoding or input_features is not None or audio_states is not None:
                features, lengths = joined_features(input_features, feature_attention_mask, seen.feature_lengths)
                audio = self._audio(features, lengths, audio_states)
                inputs_embeds = self._insert(inputs_embeds, seen, rows, audio, audio_gather)
            inputs_embeds = inputs_embeds[None] if rows else inputs_embeds.view(*ids.shape, -1)
        elif rows is not None:
            inputs_embeds = rows.drop_padding(inputs_embeds)[None]

        kwargs |= {_CACHE: cache, "use_cache": cached}
        outputs = self._run_llm(inputs_embeds, rows, attention_mask, position_ids, **kwargs)
        restore = rows.restore if rows else lambda values: values
        return Qwen2AudioModelOutputWithPast(
            last_hidden_state=restore(outputs.last_hidden_state),
            **{_CACHE: getattr(outputs, _CACHE) if cached else None},
            # None stands for a layer that ``output_hidden_states=[1, ...]`` did not ask for.
            hidden_states=outputs.hidden_states
            and tuple(h if h is None else restore(h) for h in outputs.hidden_states),
            attentions=outputs.attentions,
            attention_mask=attention_mask,
            labels=labels,
        )

    def _run_llm(
        self,
        embeds: torch.Tensor,
        rows: Rows | None,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """The LLM on joined rows [1, T, D], or on the padded batch [B, L, D] if ``rows`` is None."""
        if rows is not None:
            positions = rows.positions if positions is None else rows.drop_padding(positions.expand(rows.shape))[None]
            # A mask of four dimensions passes through transformers' mask code untouched, and the
            # attention ignores it: otherwise a quadratic mask of all documents would be built.
            mask = embeds.new_empty(1, 1, 1, 1)
            kwargs["documents"] = rows.documents
        return self.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **kwargs)

    def _audio(
        self, features: torch.Tensor | None, lengths: torch.Tensor | None, states: torch.Tensor | None
    ) -> _Audio:
        """Projected audio tokens [A, D], from a dummy clip when there is no audio."""
        encoder, weight = self.audio_tower, self.multi_modal_projector.linear.weight
        dummy = False
        if states is not None:
            dummy = len(states) == 0
            width = encoder.config.d_model
            if states.ndim != 2 or states.shape[1] != width:
                raise ValueError(f"audio_states have shape {list(states.shape)}; this encoder gives [tokens, {width}]")
            states = weight.new_zeros(1, width) if dummy else states.to(weight.device)
        else:
            if features is None or lengths is None:
                dummy = True
                lengths = torch.tensor([_DUMMY_FRAMES])
                columns = int(mel_columns(lengths, encoder.max_frames))
                features = torch.zeros(encoder.num_mel_bins, columns)
            states = encoder(features, lengths).last_hidden_state
        # A projector trained with adapters is float32, whatever the encoder is.
        return _Audio(self.multi_modal_projector(states.to(weight.dtype)), dummy)

    def _insert(
        self,
        embeds: torch.Tensor,
        seen: OnCpu,
        rows: Rows | None,
        audio: _Audio,
        gather: torch.Tensor | None,
    ) -> torch.Tensor:
        """Put the audio tokens at the places of <|AUDIO|>: embeds [T, D].

        As in the stock model, a place under a mask of 0 has its audio token too, which is dropped with the place.
        """
        marks = seen.input_ids.flatten() == self.config.audio_token_id
        mask = seen.attention_mask if rows is not None else None
        real = slice(None) if mask is None else mask.flatten().bool()
        kept = marks[real]
        places = kept.nonzero().flatten()
        values = audio.values.to(embeds.device, embeds.dtype)
        if audio.dummy:
            if len(places):
                raise ValueError(
                    f"input_ids have {len(places)} <|AUDIO|> tokens, but no audio was given: pass input_features "
                    "with feature_lengths, or audio_states (a trainer that drops unknown columns loses them)"
                )
            return embeds + 0.0 * values.sum()
        if gather is not None:
            values = values[gather]
        if len(places) != len(values) == int(marks.sum()) and rows is not None:
            values = values[sent((marks.cumsum(0) - 1)[real][kept], values.device)]
        if len(places) != len(values):
            raise ValueError(
                f"input_ids have {len(places)} <|AUDIO|> tokens, but the audio gives {len(values)}: every segment of F "
                "mel frames needs ((F - 1)//2 + 1)//2 consecutive <|AUDIO|> tokens; expand them with the processor "
                "or qa_train.data, and do not cut samples between expansion and model"
            )
        return embeds.index_copy(0, sent(places, embeds.device), values)


class UnpaddedQwen2AudioForConditionalGeneration(_StockName, LayerwiseRecompute, Qwen2AudioForConditionalGeneration):
    """The unpadded model with its LM head; a drop-in for the stock class, in training and in ``generate``.

    return_logits: whether a forward with labels returns logits too, as the stock class does. They cost the head on
    every position, and only metrics that read them need them: ``Trainer.evaluate`` with ``compute_metrics``.
    """

    return_logits = False

    def __init__(self, config: Qwen2AudioConfig) -> None:
        choose_attention(config)
        super(Qwen2AudioForConditionalGeneration, self).__init__(config)
        self.model = UnpaddedQwen2AudioModel(config)
        text: Any = config.text_config
        self.lm_head = Head(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        feature_lengths: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_gather: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        row_weights: torch.Tensor | None = None,
        smoothing: float = 0.0,
        return_row_losses: bool = False,
        return_logits: bool | None = None,
        on_cpu: OnCpu | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> UnpaddedOutput:
        """The inputs of the module docstring -> logits [B, L, V], or the loss when ``labels`` are given.

        The loss is the cross-entropy summed over supervised tokens (label not -100) and divided by
        ``num_items_in_batch``, or by their number; only their rows meet the head, and no logits are returned unless
        ``return_logits`` asks for them (None: as the attribute of that name).
        ``row_weights`` [B]: factors on the loss of the rows; ``smoothing``: of their labels (no name with
        "label", which a Trainer would look for in batches); ``return_row_losses``: also
        the losses of the rows.
        ``logits_to_keep``: only the last so many positions of the logits (0: all), or the positions themselves.
        """
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            attention_mask=attention_mask,
            feature_attention_mask=feature_attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            feature_lengths=feature_lengths,
            audio_states=audio_states,
            audio_gather=audio_gather,
            on_cpu=on_cpu,
            cache=past_key_values if cache is None else cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = row_losses = logits = None
        if labels is None or (self.return_logits if return_logits is None else return_logits):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        if labels is not None:
            loss, row_losses = supervised_loss(
                self.lm_head, hidden, labels, attention_mask, num_items_in_batch, row_weights, smoothing, on_cpu
            )
        return UnpaddedOutput(
            loss=loss,
            row_losses=row_losses if return_row_losses else None,
            logits=logits,
            **{_CACHE: getattr(outputs, _CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            # Without logits nothing that a Trainer would take for predictions.
            attention_mask=None if logits is None else attention_mask,
        )

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head. A plain linear layer (``resize_token_embeddings`` makes one) becomes a `Head`."""
        plain = type(new_embeddings) is nn.Linear and not hasattr(new_embeddings, "_hf_hook")
        self.lm_head = Head.of(new_embeddings) if plain else new_embeddings  # type: ignore[arg-type]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in the stock class; the audio goes in with the prompt only. ``generate`` looks for ``inputs_embeds``."""
        audio = {name: kwargs.pop(name) for name in _AUDIO_INPUTS if name in kwargs}
        kwargs |= {"inputs_embeds": inputs_embeds, "is_first_iteration": is_first_iteration}
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        # An assistant is never told that an iteration is its first; without audio it would guess deaf, as stock does.
        cache = inputs.get(_CACHE)
        prompt = is_first_iteration or cache is None or cache.get_seq_length() == 0
        return inputs | audio if prompt or not kwargs.get("use_cache", True) else inputs

    def _expand_inputs_for_generation(  # type: ignore[override]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.LongTensor | None, dict[str, Any]]:
        """Repeat each row for beams and ``num_return_sequences``; its copies share one encoding of the audio."""
        audio = {name: kwargs.pop(name) for name in _AUDIO_INPUTS if kwargs.get(name) is not None}
        if audio and expand_size > 1 and input_ids is not None:
            counts = (input_ids == self.config.audio_token_id).sum(1).tolist()
            gather = audio.get("audio_gather", torch.arange(sum(counts), device=input_ids.device))
            per_row = [part for part in gather.split(counts) for _ in range(expand_size)]
            audio["audio_gather"] = torch.cat(per_row)
        expand: Any = super()._expand_inputs_for_generation  # type: ignore[misc]
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | audio


_AUDIO_INPUTS = ("input_features", "feature_attention_mask", "feature_lengths", "audio_states", "audio_gather")


# transformers looks up how hub weight names map to module names by the class's own name.
register_checkpoint_conversion_mapping(
    UnpaddedQwen2AudioForConditionalGeneration.__name__, get_checkpoint_conversion_mapping("qwen2_audio")
)
register_checkpoint_conversion_mapping(
    UnpaddedQwen2AudioModel.__name__, get_checkpoint_conversion_mapping("Qwen2AudioModel")
)


@torch.no_grad()
def encoder_states(
    model: UnpaddedQwen2AudioForConditionalGeneration, input_features: torch.Tensor, feature_lengths: torch.Tensor
) -> torch.Tensor:
    """The encoder's output for joined segments: mel [M, P] and lengths [S] -> [audio tokens, E], before the projector.

    These are the ``audio_states`` that the forward takes instead of mels when the encoder is frozen.
    """
    return model.model.audio_tower(input_features, feature_lengths).last_hidden_state
