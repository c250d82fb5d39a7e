"""What a trainer calls while it trains: held-out sets and the gates of DPO.

This is the one place where training and evaluation meet: `qa_train.commands.train_stage` builds a callback here and
hands it to a stage. Imported from outside: `held_out.HeldOut` and `gates.Gates`, each only by the command
that needs it.
"""
