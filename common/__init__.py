"""What every other folder may use: names, terminal output, files, signals, options."""
