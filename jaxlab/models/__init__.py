"""Networks and their layers, without weights, file access or image preprocessing."""
