"""The commands `span` and `lightning`: parse, call, print; exit codes and one-line errors."""
