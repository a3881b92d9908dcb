"""The verbs of the store: each module one concern, each function one transaction."""
