"""A finished sweep in a form for others: research object, post, data set."""
