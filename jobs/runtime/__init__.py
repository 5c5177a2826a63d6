"""What commands share at run time: Ray, progress, metrics, and streams of images."""
