"""Load datasets by name (uint8 images, integer labels, class names) and batch them."""
