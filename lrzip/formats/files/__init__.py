"""Files: written atomically, streamed, and read without running anything."""
