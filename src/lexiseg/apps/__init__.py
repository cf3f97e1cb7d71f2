"""Programs on top of the package."""
