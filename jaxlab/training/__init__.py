"""How a network learns: steps, epochs, what they start from, what they are fed."""
