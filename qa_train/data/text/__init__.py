"""From a record to a chat and its token ids: derived fields, tasks, prompts, the chat template.

Imports only the configuration and its own files; no torch, no audio. From outside: `sample`, `prompts.PromptBank`,
`template.encode` and its siblings, `tasks` and `records`.
"""
