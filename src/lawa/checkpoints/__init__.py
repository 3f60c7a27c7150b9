"""Names and bytes on disk: publishing, finding, keeping. No model classes."""
