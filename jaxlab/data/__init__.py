"""From a name to batches: uint8 images, integer labels, class names."""
