"""`python -m mftcoder ...` is `mft ...`: the form that `torchrun -m` and `accelerate launch -m` need."""

from mftcoder.cli import main

if __name__ == "__main__":
    main()
