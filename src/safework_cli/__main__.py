"""``python -m safework_cli`` is ``safework``."""

from safework_cli.cli.main import main

if __name__ == "__main__":
    main()
