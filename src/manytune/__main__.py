"""`python -m manytune` is the `manytune` command."""

from manytune.cli.main import main

if __name__ == "__main__":
    main()
