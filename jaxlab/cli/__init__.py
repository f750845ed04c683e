"""The command line: flags from a dataclass, the terminal, signals."""
