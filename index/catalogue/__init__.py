"""What an archive is known to hold, in partitions: the basis of every incremental run."""
