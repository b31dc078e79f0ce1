"""`python -m headscope`: the same as the command."""

from headscope.cli import main

if __name__ == "__main__":
    main()
