"""The page and its API: what the browser asks for, answered from database, index and buckets."""
