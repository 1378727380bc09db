"""``python -m data_prep``: the sources and tools that there are."""

import sys

from data_prep.registry import SOURCES, TOOLS


def main() -> int:
    """Print every module with its first line."""
    width = max(map(len, (*SOURCES, *TOOLS)))
    print("usage: python -m data_prep.NAME [ARGUMENTS]   (--help shows an example)")
    for title, entries in (("sources", SOURCES), ("tools", TOOLS)):
        print(f"\n{title}:")
        for name, summary in entries.items():
            print(f"  {name:<{width}}  {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
