"""What the API and the workers share: states, tables, store, artifacts, doorbell, settings."""
