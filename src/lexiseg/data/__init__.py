"""Reading labelled photos."""
