"""The ways from a picture to noise, and how a method holds on to what they passed."""
