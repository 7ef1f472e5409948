"""One command under one lease: its process group, its signals, its end. Needs POSIX."""
