"""`qa-train export`."""

from __future__ import annotations

from qa_train.config import ExportConfig


def export(options: ExportConfig) -> int:
    """Write a Hugging Face folder that stock transformers loads, and compare its logits with ours."""
    from qa_train.export import hugging_face

    done = hugging_face.export(
        options.checkpoint,
        options.out,
        results=options.results,
        verify=options.verify,
        allow_missing=options.allow_missing,
    )
    print(
        f"{done.path}: {done.parameters / 1e6:,.1f} M parameters, model card in README.md; stock transformers gives "
        f"the same logits for a probe clip (largest difference {done.max_difference:.1e} of the largest logit)"
    )
    return 0
