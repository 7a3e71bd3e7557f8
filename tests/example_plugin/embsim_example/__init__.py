"""A distribution of its own that gives embsim a backend named "example"."""
