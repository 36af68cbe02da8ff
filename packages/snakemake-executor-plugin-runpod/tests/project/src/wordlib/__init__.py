"""A package of the project, which is not installed anywhere."""

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def count(text, alphabet, shift):
    """Count the letters of a text, each moved by a number of places."""
    return {alphabet[(i + shift) % 26]: text.count(c) for i, c in enumerate(alphabet)}
