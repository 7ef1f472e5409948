"""What all ideas use: connections, clocks, decorators and labels. Imports no idea."""
