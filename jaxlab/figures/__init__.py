"""Output for people to read: curves, the confusion matrix and text tables."""
