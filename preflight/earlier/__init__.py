"""What an earlier run left: continue it, take a newer listing, or start over."""
