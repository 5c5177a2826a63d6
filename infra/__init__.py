"""Settings, object storage, logging, errors and local servers."""
