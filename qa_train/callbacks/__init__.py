"""What a trainer calls while it trains: held-out sets, and the rule that ends a run when they drift.

This is the one place where training and evaluation meet: `qa_train.commands.train_stage` builds a callback here and
hands it to a stage. Imported from outside: `held_out.HeldOut`, only by runs that evaluate.
"""
