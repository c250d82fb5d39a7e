"""What has no home of its own and depends on nothing here."""
