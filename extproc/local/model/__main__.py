"""Run ``python -m extproc.local.model``."""

from extproc.local.model.server import main

if __name__ == "__main__":
    main()
