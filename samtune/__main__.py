"""`python -m samtune`: the command line."""

from samtune.cli import main

if __name__ == "__main__":
    main()
