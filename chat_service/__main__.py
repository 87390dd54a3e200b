"""`python -m chat_service`: the command line, as `chat` where it is installed."""

import sys

from chat_service.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
