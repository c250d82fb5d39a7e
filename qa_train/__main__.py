"""`python -m qa_train ...` and `torchrun -m qa_train ...` are the console script `qa-train`."""

from qa_train.cli import main

if __name__ == "__main__":
    main()
