"""What goes over SSH: the connection, files, the console, and what a machine says of itself."""
