"""Labels by a model: transcripts, captions, languages and what else a task of the prompt bank asks for.

`build_labels` is the command, `label_options` its options; `label_shard` asks about one shard's records, `answer_form`
turns answers into fields, and `label_filters` finds the invented ones.
"""
