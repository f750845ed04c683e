"""The files of a run, and how a run is resumed from them."""
