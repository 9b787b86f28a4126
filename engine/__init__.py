"""An image from listing to record: downloads, decoding, thumbnails, batches, checkpoints."""
