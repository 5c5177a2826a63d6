"""Feature transforms fitted on an archive without labels: whitening, camera means, L2 normalisation."""
