"""What a person looks at: curves, the confusion matrix, tables as text."""
