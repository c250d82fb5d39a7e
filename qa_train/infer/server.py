"""`qa-train serve`: one or several checkpoints behind an address; the default one is this machine only."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qa_train.config import ServeConfig
from qa_train.infer.encoded import EncodedClips
from qa_train.infer.generate import Generator
from qa_train.infer.prompt_format import template_for
from qa_train.model import load_answering_model
from qa_train.utils.loopback import LOOPBACK, listen


def named_checkpoints(options: ServeConfig) -> dict[str, str]:
    """The checkpoints by the name that clients use: ``checkpoint`` is one, a list, or {name: checkpoint}.

    Raises:
        ValueError: none, or two of one name.
    """
    given = options.checkpoint
    pairs = list(given.items()) if isinstance(given, dict) else [
        (_name(str(each)), each) for each in ([given] if isinstance(given, str) else given)
    ]  # fmt: skip
    names = [str(name) for name, _ in pairs]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"serve: the checkpoints are called {names}; expected one or more, each with its own name: "
            "checkpoint={first: DIR, second: DIR}"
        )
    return {str(name): str(checkpoint) for name, checkpoint in pairs}


def open_models(options: ServeConfig) -> dict[str, Generator]:
    """A generator for each of `named_checkpoints`; they share encoded clips. ValueError as there."""
    clips = EncodedClips()
    made = {}
    for name, checkpoint in named_checkpoints(options).items():
        model, processor = load_answering_model(
            checkpoint, device=options.device, verify=options.verify, allow_missing=options.allow_missing
        )
        made[name] = Generator(model, processor, clips=clips)
    return made


def _name(checkpoint: str) -> str:
    """A checkpoint of a run is called after the run's folder."""
    path = Path(checkpoint.rstrip("/"))
    while path.name.startswith("checkpoint") and path.parent.name:
        path = path.parent
    return path.name


def serve(options: ServeConfig) -> int:
    """Load the checkpoints and serve until a signal ends it.

    Raises:
        ValueError: the extra is not installed, a checkpoint cannot be read, or the address is taken.
    """
    if find_spec("uvicorn") is None or find_spec("starlette") is None:
        raise ValueError("serving needs starlette and uvicorn: pip install 'qa-train[serve]'")
    import uvicorn

    counts = ("max_requests", "batch_size", "token_budget", "max_new_tokens", "max_clips", "decode_workers")
    if wrong := [f"{name}={value}" for name in counts if (value := getattr(options, name)) < 1]:
        raise ValueError(f"serve: {', '.join(wrong)}: use 1 or more")
    from qa_train.infer.connections import Connection, connection_limit
    from qa_train.infer.service import Service, application

    # Report a wrong address before minutes of loading.
    listener = listen(options.host, options.port, "serve")
    host, port = listener.getsockname()[:2]
    templates = {name: template_for(place, options.template) for name, place in named_checkpoints(options).items()}
    service = Service(open_models(options), templates, options)
    service.start_decoders()
    if options.host not in LOOPBACK:
        print(f"warning: anybody who reaches {options.host} may use this server; it has no login", flush=True)
    shown = f"[{host}]" if ":" in host else host
    listener.listen(128)
    print(f"serving {', '.join(service.generators)} at http://{shown}:{port} (page: /, API: /v1)", flush=True)
    Connection.limit = connection_limit()
    config: Any = uvicorn.Config(
        application(service), http=Connection, log_level="warning", timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0
