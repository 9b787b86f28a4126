"""The path of an image: fetch, decode, batch, embed, record."""
