"""A plug-in whose one method misbehaves on request."""
