"""From the bytes of a file to blocks of samples: by content and not by name, and to the end of the file."""
