"""The crops of an archive in object storage: listed, described, labelled and compared."""
