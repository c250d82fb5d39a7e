"""Labels by a model: transcripts, captions, languages and what else a task of the prompt bank asks for.

`label_command` is the command, `label_options` its options, `build_labels` what it does; `label_shard` asks about one
shard's records, `answer_form` turns answers into fields, and `label_filters` finds the invented ones.
"""
