"""The path of an image, the same for every engine: fetch, decode, batch, embed, record."""
