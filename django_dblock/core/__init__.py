"""What each idea stands on: connections, clocks, decorators, labels. Imports no idea."""
