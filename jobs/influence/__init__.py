"""The experiment that finds which training images pull a model towards an image."""
