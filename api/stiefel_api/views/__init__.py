"""What the service takes and gives, as pydantic models: the source of the OpenAPI document."""
