"""`python -m samtune`: the command line."""

from samtune.cli.main import main

if __name__ == "__main__":
    main()
