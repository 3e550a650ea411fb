"""`python -m extproc` is the command `tokenweir`."""

from extproc.cli import main

if __name__ == "__main__":
    main()
