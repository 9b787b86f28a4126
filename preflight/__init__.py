"""Everything that happens before the first image is fetched: check, plan, begin or continue."""
