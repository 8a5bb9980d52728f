"""The embedded source: handwritten digits and drawn shapes on photographs and textures."""
