"""What is stored and searched: manifests, shards, runs, generations, exact search, CMC. No Ray."""
