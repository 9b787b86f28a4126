"""What a run did: report.json for programs, the closing lines for people."""
