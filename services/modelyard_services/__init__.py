"""What acts: pure policy, the effects that touch the world, and one shell per process around them."""

__version__ = "0.1.0"
