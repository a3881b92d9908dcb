"""One module per resource; each route is: parse, one call of the store, a view."""
