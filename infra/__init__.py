"""Where the system runs: settings, object storage, local servers."""
