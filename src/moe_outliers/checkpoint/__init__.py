"""A model's files, on the hub or in a folder: listed, fetched, verified, their headers read."""
