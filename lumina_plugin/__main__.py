"""`python -m lumina_plugin` is `lumina`."""

from .cli import main

if __name__ == '__main__':
    main()
