"""Images as people have them: recognised by looking, and read where they are stored."""
