"""Tables, figures and sentences of a finished sweep, and the page that holds them."""
