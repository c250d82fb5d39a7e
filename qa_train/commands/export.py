"""`qa-train export` and `qa-train convert`."""

from __future__ import annotations

from pathlib import Path

from qa_train.config import ConvertConfig, ExportConfig
from qa_train.utils.progress import amount


def export(options: ExportConfig) -> int:
    """Write a Hugging Face folder that stock transformers loads, and compare its logits with ours."""
    from qa_train.export import hub, hugging_face

    if options.push is not None:
        hub.check_name(options.push)
        base = None if options.merge or options.base_model else hugging_face.base_of(options.checkpoint)
        if base is not None and Path(base).exists():
            raise ValueError(
                f"the adapters would be published with the path {base} as their base, which exists only on this "
                "machine: give its hub id, base_model=owner/name"
            )
    elif options.dry_run:
        raise ValueError("dry_run lists what push=owner/name would upload: give push too")
    names = ("base_model", "license", "language", "datasets")
    facts = {name: value for name in names if (value := getattr(options, name))}
    done = hugging_face.export(
        options.checkpoint,
        options.out,
        merge=options.merge,
        facts=facts,
        results=options.results,
        verify=options.verify,
        allow_missing=options.allow_missing,
    )
    what = "parameters" if options.merge else "parameters of adapters"
    print(
        f"{done.path}: {amount(done.parameters)} {what}, model card in README.md; stock transformers gives "
        f"the same logits for a probe clip (largest difference {done.max_difference:.1e} of the largest logit)"
    )
    if options.push is not None:
        print(hub.push(done.path, options.push, private=options.private, dry_run=options.dry_run))
    return 0


def convert(options: ConvertConfig) -> int:
    """Join the ZeRO parts of a checkpoint in place: complete weights, and states for any number of processes."""
    from qa_train.train.job import checkpoints, owner, reshape
    from qa_train.train.job.states import fault

    folder = Path(options.checkpoint)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give a run folder, or one of its checkpoints")
    is_run = (folder / "checkpoints").is_dir()
    run = folder if is_run else folder.resolve().parent.parent
    if (run / owner.LOCK).is_file():
        # A training would delete the folder, or join its parts at the same time.
        owner.own(run)
    if is_run:
        newest = checkpoints.newest_complete(folder / "checkpoints", fault)
        if newest is None:
            raise ValueError(f"{folder} has no complete checkpoint: give another run, or one of its checkpoints")
        folder = newest
    elif (reason := fault(folder)) is not None:
        raise ValueError(f"{folder} is not a complete checkpoint of a run ({reason}): give another one")
    if "latest" not in checkpoints.read_manifest(folder)["files"]:
        raise ValueError(f"{folder} is not cut in parts: any number of processes resumes from it as it is")
    done = ["weights"] if reshape.write_weights(folder) else []
    if options.resume and reshape.make_universal(folder):
        done.append("state for any number of processes")
    print(f"{folder}: {' and '.join(done) or 'nothing to join'}")
    owner.release()
    return 0
