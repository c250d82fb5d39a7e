"""What keeps a bad step out of the weights: guards, going back to a checkpoint, committed saves, checks at the start.

Used by the trainer mixin and by the launch of a stage; `rollback.RollBack` ends a process that is to start again.
"""
