"""What every other folder may use: errors, names, terminal output, files, retries, options."""
