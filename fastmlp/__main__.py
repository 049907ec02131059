"""``python -m fastmlp``: the command line, where its script is not on the path."""

from fastmlp.cli import main

if __name__ == "__main__":
    main()
