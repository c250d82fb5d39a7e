"""Questions about audio: ClothoAQA, AVQA, OpenAQA, and SALMONN's annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from data_pipelines.corpora.base import (
    DEV,
    NOT_OBTAINED,
    TEST,
    TRAIN,
    Corpus,
    Drop,
    Found,
    Item,
    Request,
    obtained,
    present,
    stem,
)


def _clotho_aqa(request: Request) -> Found:
    """``clotho_aqa_{split}.csv``: file_name, QuestionText, answer, confidence; several annotators per question."""
    tree = request.tree
    (listed, *_) = tree.need(f"clotho_aqa_{request.split}.csv", what="ClothoAQA list")
    rows = tree.table(listed, ("file_name", "QuestionText", "answer"))
    count: Counter[str] = Counter()
    asked: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        asked.setdefault((row["file_name"], row["QuestionText"].strip()), []).append(row["answer"].strip())
    for (file, question), answers in asked.items():
        count[file] += 1
        name = f"{stem(file)}-{count[file]}"
        audio = tree.by_stem(stem(file))
        (answer, votes), *_ = Counter(answers).most_common(1)
        if audio is None or votes * 2 <= len(answers):
            reason = "missing audio" if audio is None else "annotators disagree"
            yield Drop(name, reason, f"{question}: {answers}", filter=audio is not None)
            continue
        record = present(question=question, answer=answer, answers=answers if len(answers) > 1 else [])
        yield Item(name, (tree.recording(audio),), record, (f"clotho:{file}",))


def _avqa(request: Request) -> Found:
    """``{split}_qa.json``: a list of {id, video_name, question_text, multi_choice, answer (index), question_type}."""
    tree = request.tree
    (listed, *_) = tree.need(f"{request.split}_qa.json", what="AVQA list")
    for row in tree.objects(listed):
        video, choices, answer = str(row["video_name"]), list(map(str, row["multi_choice"])), int(row["answer"])
        audio = tree.by_stem(video)
        if audio is None or not 0 <= answer < len(choices):
            yield Drop(str(row["id"]), NOT_OBTAINED if audio is None else "no such choice", video)
            continue
        record = present(question=str(row["question_text"]).strip(), answer=choices[answer], choices=choices,
                         question_type=row.get("question_type"))  # fmt: skip
        # VGGSound names a clip VIDEO_SECONDS.
        yield Item(f"{row['id']}", (tree.recording(audio),), record, (f"youtube:{video.rpartition('_')[0]}",))


# part of the dataset's name in OpenAQA -> whose ids its files carry
_NAMESPACES = {"audioset": "youtube", "as_": "youtube", "audiocaps": "youtube", "vggsound": "youtube",
               "clotho": "clotho", "fsd50k": "freesound", "freesound": "freesound"}  # fmt: skip


def _file_ids(dataset: str, file: str) -> Iterator[str]:
    for part, namespace in _NAMESPACES.items():
        if part in dataset.lower():
            yield f"{namespace}:{file.rpartition('/')[2] if namespace == 'clotho' else stem(file)}"


def _openaqa(request: Request) -> Found:
    """A JSON list of {instruction, input, audio_id, dataset, task, output}; audio from the source corpora."""
    tree = request.tree
    number = 0
    for listed in tree.need("*.json", what="OpenAQA list (*.json)"):
        for row in tree.objects(listed):
            number += 1
            file = str(row["audio_id"])
            # Lists of the original repository hold absolute paths of its authors' machine.
            audio = tree.by_stem(stem(file))
            question = " ".join(part for part in (str(row["instruction"]), str(row.get("input") or "")) if part).strip()
            record = present(question=question, answer=str(row["output"]).strip(), subset=str(row.get("dataset", "")))
            ids = tuple(_file_ids(str(row.get("dataset", "")), file))
            yield obtained(tree, f"{number:08d}", audio, record, ids, file)


def _salmonn(request: Request) -> Found:
    """{"annotation": [{path, text, task, Q?}]}: a question with its answer, or a transcript, caption or translation."""
    tree = request.tree
    number = 0
    for listed in tree.need("*.json", what="SALMONN annotation (*.json)"):
        for row in tree.objects(listed, "annotation"):
            number += 1
            audio = tree.by_stem(stem(str(row["path"])))
            task, text, question = str(row.get("task", "")), str(row["text"]).strip(), str(row.get("Q") or "").strip()
            field = "answer" if question else "caption" if "caption" in task else "text"
            record = present(**{field: text}, question=question, subset=task)
            yield obtained(tree, f"{number:08d}", audio, record, (), str(row["path"]))


CORPORA = (
    Corpus("clotho_aqa", "ClothoAQA", "not stated", "https://zenodo.org/records/6473207",
           {"train": TRAIN, "val": DEV, "test": TEST}, _clotho_aqa, ("question", "answer"),
           "the answer of most annotators; questions without a majority are dropped",
           tasks=("audio_qa",)),
    Corpus("avqa", "AVQA", "not stated", "https://mn.cs.tsinghua.edu.cn/avqa/", {"train": TRAIN, "val": DEV}, _avqa,
           ("question", "answer"), "extract the sound of the videos (VGGSound) as VIDEO_SECONDS.wav",
           tasks=("audio_qa",)),
    Corpus("openaqa", "OpenAQA / OpenASQA", "not stated", "https://github.com/YuanGongND/ltu", {"train": TRAIN},
           _openaqa, ("question", "answer"), "put the audio of the source corpora next to the list",
           tasks=("audio_qa",)),
    Corpus("salmonn", "SALMONN annotations", "not stated", "https://github.com/bytedance/SALMONN", {"train": TRAIN},
           _salmonn, ("question", "answer", "text", "caption"), "put the audio of the source corpora next to the list",
           tasks=("audio_qa", "asr", "sound_caption")),
)  # fmt: skip
