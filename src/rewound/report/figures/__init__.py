"""The figures, one subject a file: each turns series into a section, or into None where there is nothing to draw."""
