"""`python -m kernelsimp` and the console script."""

from kernelsimp.cli.main import main

if __name__ == "__main__":
    main()
