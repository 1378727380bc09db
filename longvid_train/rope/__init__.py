"""Window extension: one method a file gives inverse frequencies; a context manager installs them for a while."""
