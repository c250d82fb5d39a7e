"""One training example: a chat with messages of text and audio in order."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("system", "user", "assistant")
TEMPLATES = ("base", "chat")


@dataclass(frozen=True)
class TextPart:
    """Text of a message. Only *trusted* text (our prompts and templates, never data) may spell
    special tokens such as ``<|en|>``; in any other text those characters stay plain text."""

    text: str
    trusted: bool = False


@dataclass(frozen=True)
class AudioPart:
    """The place of clip number ``clip`` of the sample."""

    clip: int


@dataclass(frozen=True)
class Message:
    """One turn: ``role`` is system, user or assistant; ``content`` is in reading order.

    ``learned``: the data's mark of an answer as learned (even with last_turn_only) or not learned.
    ``unfinished``: the beginning of the last answer, which a model goes on with; part of its prompt.
    """

    role: str
    content: tuple[TextPart | AudioPart, ...]
    learned: bool | None = None
    unfinished: bool = False


@dataclass(frozen=True)
class Sample:
    """A chat with its clips, before tokens and before any audio is read.

    ``template`` is "base" (audio + prompt + target, as in pretraining) or "chat" (ChatML). With
    ``chosen`` and ``rejected`` it is a preference pair, and the messages end with the user turn.
    """

    key: str
    messages: tuple[Message, ...]
    num_clips: int
    task: str
    language: str | None = None
    template: str = "chat"
    chosen: tuple[TextPart, ...] | None = None
    rejected: tuple[TextPart, ...] | None = None

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ValueError(f"{self.key}: template {self.template!r} is unknown; use one of {TEMPLATES}")
        for message in self.messages:
            if message.role not in ROLES:
                raise ValueError(f"{self.key}: role {message.role!r} is unknown; use one of {ROLES}")
        clips = [p.clip for m in self.messages for p in m.content if isinstance(p, AudioPart)]
        if clips != list(range(self.num_clips)):
            raise ValueError(
                f"{self.key}: the messages place clips {clips} but the sample has {self.num_clips}; "
                "every clip must appear once, in order"
            )
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError(f"{self.key}: a preference pair needs both a chosen and a rejected answer")
