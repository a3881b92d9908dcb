"""The HTTP service: parse, one store call, a view."""
