"""The command line: flags from a dataclass, terminal output and signals."""
