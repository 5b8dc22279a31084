"""What a run looks like: pictures, charts, and the self-contained HTML page."""
