"""The threats of SECURITY.md, a test for each."""
