"""Training: steps, epochs, optimizers, initial weights and inputs."""
