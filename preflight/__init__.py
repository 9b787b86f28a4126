"""Everything that happens before the first image is fetched: options, checks, and the plan."""
