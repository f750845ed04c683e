"""Where images come from: uint8 images, integer labels, class names."""
